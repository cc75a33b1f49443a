"""Code that runs on a user's device: ledger, vault, training, calibration, recognition, app."""

__all__ = [
    "app",
    "device",
    "federation",
    "personalisation",
    "recognition",
    "service",
    "training",
    "user_data",
    "user_device",
    "web",
]
