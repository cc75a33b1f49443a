"""Random generators derived from a purpose, so that no two purposes share a stream.

A run has one seed. Every draw takes a generator derived from (seed, purpose, and whatever else
names the draw: round, client). Order of execution and number of workers then change nothing. That
two streams of torch are one has a chance of 2^-32 (it keeps as many bits of a seed); that does no
harm in a simulation, and on a device no privacy rests on a seed.
"""

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose: SHA-256 over the seed and the names."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derive_fold_seed(seed: int, fold: str) -> int:
    """The seed of one fold's server and devices: all that they draw in a simulation.

    Together with a purpose, a round and a user's name it decides every draw; how a scenario is
    spelled, what its run is called and in which words a request travels do not.
    """
    return derive_seed(seed, "fold", fold)


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *names))


def torch_rng(seed: int, *names: str | int) -> torch.Generator:
    """A torch CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
