"""A device on disk: its profile, its sealed vault, its ledger and its randomness."""
