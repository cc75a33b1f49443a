"""A device on disk: its profile, its sealed vault, its ledger and its randomness."""

__all__ = ["device", "privacy_report", "profile", "vault", "vault_anchor"]
