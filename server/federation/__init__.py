"""A run on the server: job, participants, cohorts, messages, checkpoints."""

__all__ = [
    "checkpoint",
    "cohort_sampling",
    "coordinator",
    "device_channel",
    "head_statistics_round",
    "membership",
    "model_distribution",
    "participants",
    "participation_groups",
    "reply_limits",
    "reply_validation",
    "sampled_coordinator",
    "sum_collection",
    "training_job",
]
