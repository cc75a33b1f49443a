"""A device on disk: its profile, its sealed vault, its ledger and its randomness."""

__all__ = [
    "consent",
    "demo_device",
    "device",
    "intended_use",
    "privacy_report",
    "profile",
    "profile_seal",
    "randomness",
    "stored_clips",
    "sum_identity",
    "user_key",
    "vault",
    "vault_anchor",
    "withdrawal",
]
