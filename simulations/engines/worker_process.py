"""Settings of an engine's processes: one torch thread, retained memory, a frozen heap.

Processes, not threads, share the cores, and sums are the same on every machine.
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
    """Restrict torch to one thread within a context.

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
    """Make the C library retain freed memory, for the next step needs as much again.

    glibc hands large blocks back to the system, which clears each of their pages anew when they are
    asked for: a fifth of a private step of ``cnn-attention``. Other C libraries stay as they are.
    """
    if sys.platform != "linux":
        return
    # Absent outside glibc, musl for one: then there is nothing to set.
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_TRIM, 2**30)
        tune(_MAP, 2**25)


_TRIM, _MAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h: from how many bytes memory is handed
back, and from how many a block is mapped apart."""


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Exclude all present objects from garbage collection within a context.

    Libraries leave half a million objects that stay for good. An exchange makes enough new ones for
    them all to be scanned again and again, which takes a tenth of a run's time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def initialise_worker() -> None:
    """Set up this process as a worker: one thread, no Ctrl-C, ended with its parent.

    The parent handles Ctrl-C and ends its workers. If it is killed, they end by themselves.
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
        # Not sys.exit: this is a thread, and only the process's end stops the others.
        os._exit(1)
