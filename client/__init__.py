"""Code that runs on a user's device: ledger, vault, training, calibration, recognition, app."""
