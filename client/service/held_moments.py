"""The last moments, as features and in memory alone, so that their owner can say what they were."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor


class _Moment(NamedTuple):
    """Features that can still be labelled, and until when."""

    features: Tensor
    ends_at: float


class HeldMoments:
    """Features of moments that can still be corrected; never their sound.

    Args:
        most: Moments that are held at a time; the oldest make room.
        clock: In seconds, monotonic.

    Guarantees:
        - Nothing is written to a disk.
        - A moment is found no longer than it was to be held, and takes memory hardly longer where
          :meth:`drop_old` is called now and then.

    Example:
        >>> import torch
        >>> moments = HeldMoments(most=2)
        >>> name = moments.hold(torch.ones(3), seconds=60)
        >>> moments.find(name)
        tensor([1., 1., 1.])
        >>> moments.clear()
        >>> moments.find(name)
    """

    def __init__(self, *, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most: Final = most
        self._clock: Final = clock
        self._held: OrderedDict[str, _Moment] = OrderedDict()
        self._lock = threading.Lock()

    def hold(self, features: Tensor, *, seconds: float) -> str:
        """Hold the features of a moment; returns the name by which they are found."""
        # A name that cannot be guessed: apps with the same scope cannot correct each other's.
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._held[name] = _Moment(features, self._clock() + seconds)
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return name

    def find(self, name: str) -> Tensor | None:
        """Find the features of a moment; None where they are not held any more."""
        self.drop_old()
        with self._lock:
            held = self._held.get(name)
        return held.features if held else None

    def drop_old(self) -> None:
        """Let go of moments whose time is over."""
        now = self._clock()
        with self._lock:
            for name in [name for name, held in self._held.items() if held.ends_at <= now]:
                del self._held[name]

    def clear(self) -> None:
        """Let go of all moments."""
        with self._lock:
            self._held.clear()
