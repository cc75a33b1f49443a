"""Privacy mechanisms, the ledger of their releases, and accounting."""

__all__ = [
    "accounting",
    "banded_noise",
    "bounds",
    "clipping",
    "gaussian_noise",
    "guarantees",
    "hash_chain",
    "ledger",
    "participation",
    "poisson_sampling",
    "release",
    "scheme",
    "schemes",
    "target",
    "user_level",
]
