"""Cache of a single value: the last one that was computed, with its key.

In a simulation one process runs many devices, which all compute the same value; on a real device
the cache holds one value and does no harm.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

_T = TypeVar("_T")


class LastValueCache(Generic[_T]):
    """The last computed value, and the key from which it was computed.

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
        """Return the value of ``key``, computed now unless the last one had the same key.

        Args:
            key: Everything on which the value depends. Tensors are compared by identity and must
                not have been modified in place; anything else is compared by equality.
            make: Computes the value, which must not be modified in place.

        Returns:
            The cached or new value.
        """
        cached = self._cached
        if cached is None or not _same_key(cached[0], key):
            cached = (key, make())
            self._cached = cached
        return cached[1]


def _same_key(some: tuple[object, ...], others: tuple[object, ...]) -> bool:
    """Whether two keys are the same."""
    return len(some) == len(others) and all(
        # Comparing tensors by value would cost as much as what the cache saves.
        one is other or not (isinstance(one, Tensor) or one != other)
        for one, other in zip(some, others, strict=True)
    )
