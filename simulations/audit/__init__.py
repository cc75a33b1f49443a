"""Attacks on a run by its owner: empirical lower bounds against the promised guarantee."""

__all__ = [
    "adversary_view",
    "audited_fold",
    "bounds",
    "canary",
    "device_under_test",
    "gender_inference",
    "gradient_inversion",
    "kernel_ridge",
    "membership_inference",
    "one_run",
    "server_transcript",
    "speaker_identification",
    "suite",
    "table",
]
