"""Predictions of test users, and every figure computed from them."""

__all__ = [
    "baselines",
    "bootstrap",
    "calibration",
    "enrolment_replay",
    "fold_result",
    "metrics",
    "personalisation",
    "personalisation_metrics",
    "predictions",
    "unlabelled_streams",
]
