"""A cache of one value: the last one that was computed, with the key it was computed from.

In a simulation one process answers for many devices, and all of them are asked the same; a real
device is asked once a process, and keeps one value for nothing.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

_T = TypeVar("_T")


class LastValueCache(Generic[_T]):
    """The last value, and the key that it was computed from.

    Example:
        >>> cache = LastValueCache[int]()
        >>> cache.get(("a", 1), lambda: 7), cache.get(("a", 1), lambda: 8)
        (7, 7)
        >>> cache.get(("a", 2), lambda: 9)
        9
    """

    def __init__(self) -> None:
        self._cached: tuple[tuple[object, ...], _T] | None = None

    def get(self, key: tuple[object, ...], make: Callable[[], _T]) -> _T:
        """The value that was made from ``key``, or a new one, which is cached instead.

        Args:
            key: All that the value depends on. Tensors are the same if they are one object, which
                nobody may have written into; anything else is the same if it is equal.
            make: Makes it; nobody may write into what it returns.
        """
        cached = self._cached
        if cached is None or not _same_key(cached[0], key):
            cached = (key, make())
            self._cached = cached
        return cached[1]


def _same_key(some: tuple[object, ...], others: tuple[object, ...]) -> bool:
    """Whether two keys are the same."""
    return len(some) == len(others) and all(
        one is other or not (isinstance(one, Tensor) or one != other)
        for one, other in zip(some, others, strict=True)
    )
