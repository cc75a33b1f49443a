"""Privacy mechanisms, the ledger of their releases, and accounting."""

__all__ = [
    "accountant",
    "banded_noise",
    "clipping",
    "gaussian_noise",
    "hash_chain",
    "ledger",
    "poisson_sampling",
    "release",
    "user_level",
]
