"""A device's part in a run: enrolment, rounds, secure sums, statistics, the final model."""

__all__ = [
    "enrolment",
    "final_model",
    "own_contribution",
    "participation_spacing",
    "secagg_client",
    "secagg_state",
    "secure_sums",
    "statistics_round",
    "training_round",
]
