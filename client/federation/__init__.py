"""A device's part in a run: enrolment, rounds, secure sums, statistics, the final model."""

__all__ = [
    "agreed_plan",
    "enrolment",
    "final_model",
    "model_inputs",
    "own_contribution",
    "participation_spacing",
    "secagg_client",
    "secagg_state",
    "secure_sums",
    "statistics_round",
    "training_round",
    "training_set",
]
