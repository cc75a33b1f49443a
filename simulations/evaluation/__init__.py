"""Predictions of test users, and every figure computed from them."""

__all__ = [
    "baselines",
    "bootstrap",
    "bootstrap_side",
    "calibration",
    "enrolment_replay",
    "fairness",
    "finished_model",
    "fold_result",
    "metrics",
    "personalisation",
    "personalisation_metrics",
    "predictions",
    "scoring",
    "unlabelled_streams",
]
