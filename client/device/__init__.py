"""A device on disk: its profile, its sealed vault, its ledger and its randomness."""

__all__ = [
    "demo_device",
    "device",
    "privacy_report",
    "profile",
    "randomness",
    "user_key",
    "vault",
    "vault_anchor",
]
