"""One torch thread: an engine's processes share the cores, and sums come out the same on all."""

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
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


@contextmanager
def settled_heap() -> Iterator[None]:
    """Leave all that is there now out of what garbage collection looks through, for a while.

    Libraries leave half a million objects that stay for good. An exchange makes enough new ones to
    have them all looked through again and again: a tenth of a run's time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def begin_worker() -> None:
    """Make this process a worker: one thread, deaf to Ctrl-C, and gone once its parent is.

    The parent hears Ctrl-C and ends its workers. Were it killed, they would wait for work for ever.
    """
    torch.set_num_threads(1)
    gc.freeze()  # see settled_heap
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent to be gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
