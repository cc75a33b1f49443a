"""A run on the server: job, participants, cohorts, messages, checkpoints."""

__all__ = [
    "checkpoint",
    "cohort_sampling",
    "coordinator",
    "device_channel",
    "membership",
    "participants",
    "participation_groups",
    "reply_limits",
    "sampled_coordinator",
    "training_job",
]
