"""What runs on a user's device: ledger, vault, trainer, calibrator, recogniser, ClientApp."""
