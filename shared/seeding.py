"""Random generators derived from a purpose, so that no two purposes share a stream.

A run has one seed. Every draw takes a generator derived from (seed, purpose, and further names of
the draw, such as round and client). Order of execution and number of workers then change nothing.
Two streams of torch coincide with probability 2^-32, as torch uses 32 bits of a seed; that is
harmless in a simulation, and on a device no privacy rests on a seed.
"""

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed for one purpose: SHA-256 over the seed and the names.

    Example:
        >>> derive_seed(0, "dropout", 3) == derive_seed(0, "dropout", 3)
        True
        >>> derive_seed(0, "dropout", 3) == derive_seed(0, "batches", 3)
        False
    """
    # A separator that no name holds: ("ab", "c") and ("a", "bc") must differ.
    text = "\x1f".join([str(seed), *map(str, names)])
    # 63 bits, because torch takes seeds as signed 64-bit integers.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derive_fold_seed(seed: int, fold: str) -> int:
    """Derive the seed of all draws of one fold's server and devices in a simulation.

    Together with a purpose, a round and a user's name it determines every draw. The spelling of a
    scenario, the name of its run and the wording of messages do not matter.

    Example:
        >>> derive_fold_seed(0, "fold 1") == derive_seed(0, "fold", "fold 1")
        True
    """
    return derive_seed(seed, "fold", fold)


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    """Make a NumPy generator for one purpose.

    Example:
        >>> one, other = numpy_rng(0, "split"), numpy_rng(0, "split")
        >>> bool(one.random() == other.random())
        True
    """
    return np.random.default_rng(derive_seed(seed, *names))


def torch_rng(seed: int, *names: str | int) -> torch.Generator:
    """Make a torch CPU generator for one purpose.

    Example:
        >>> draws = [torch.rand(1, generator=torch_rng(0, "dropout", round)) for round in (1, 1, 2)]
        >>> bool(draws[0] == draws[1]), bool(draws[0] == draws[2])
        (True, False)
    """
    return torch.Generator().manual_seed(derive_seed(seed, *names))
