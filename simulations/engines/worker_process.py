"""What an engine's processes are set to: one torch thread, memory that stays, a frozen heap.

They share the cores, and sums come out the same on all.
"""

import ctypes
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_torch_thread() -> Iterator[None]:
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


def retain_freed_memory() -> None:
    """Have the C library keep what is freed, for the next step wants as much again.

    glibc hands large blocks back to the system, which clears each of their pages anew when they are
    asked for: a fifth of a private step of ``cnn-attention``. Other C libraries stay as they are.
    """
    if sys.platform != "linux":
        return
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_TRIM, 2**30)
        tune(_MAP, 2**25)


_TRIM, _MAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h: from how many bytes memory is handed
back, and from how many a block is mapped apart."""


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Leave all that is there now out of what garbage collection looks through, for a while.

    Libraries leave half a million objects that stay for good. An exchange makes enough new ones to
    have them all looked through again and again: a tenth of a run's time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def initialise_worker() -> None:
    """Make this process a worker: one thread, deaf to Ctrl-C, and gone once its parent is.

    The parent hears Ctrl-C and ends its workers. Were it killed, they would wait for work for ever.
    """
    torch.set_num_threads(1)
    retain_freed_memory()
    gc.freeze()  # see frozen_heap
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent to be gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
