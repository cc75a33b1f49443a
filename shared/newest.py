"""The newest of something costly, kept for whoever asks about the same things next.

In a simulation one process answers for many devices, and all of them are asked the same; a real
device is asked once a process, and keeps one value for nothing.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

_T = TypeVar("_T")


class Newest(Generic[_T]):
    """One value, and what it was made from.

    Example:
        >>> newest = Newest[int]()
        >>> newest.of(("a", 1), lambda: 7), newest.of(("a", 1), lambda: 8)
        (7, 7)
        >>> newest.of(("a", 2), lambda: 9)
        9
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[object, ...], _T] | None = None

    def of(self, key: tuple[object, ...], make: Callable[[], _T]) -> _T:
        """The value that was made from ``key``, or a new one, which is kept in its place.

        Args:
            key: All that the value depends on. Tensors are alike if they are the same object, which
                nobody may have written into; anything else if it is equal.
            make: Makes it; nobody may write into what it returns.
        """
        kept = self._kept
        if kept is None or not _alike(kept[0], key):
            kept = (key, make())
            self._kept = kept
        return kept[1]


def _alike(some: tuple[object, ...], others: tuple[object, ...]) -> bool:
    """Whether two keys are."""
    return len(some) == len(others) and all(
        one is other or not (isinstance(one, Tensor) or one != other)
        for one, other in zip(some, others, strict=True)
    )
