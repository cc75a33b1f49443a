"""One torch thread: an engine's processes share the cores, and sums come out the same on all."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread for a while.

    A sum that is split between threads may differ in its last bit. A ledger names the weights it
    answered by their hash, so such a bit would give every engine other ledgers.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
