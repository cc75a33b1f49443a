"""Checks of settings, written so that NaN fails them."""

import difflib
import math
from collections.abc import Collection, Iterable
from typing import Final

from sottovoce.shared.errors import SettingError

MIN_NORM: Final = 1e-12
MAX_NORM: Final = 1e12
"""Range in which a clip norm, and vectors scaled to it, are far from overflow and underflow. A
server chooses clip norms: one at the end of floats could make devices exceed the bound."""


def require_positive(**values: float) -> None:
    """Raise ``SettingError`` unless every value is finite and above 0.

    Example:
        >>> require_positive(clip_norm=1.0)
        >>> require_positive(clip_norm=math.nan)
        Traceback (most recent call last):
        sottovoce.shared.errors.SettingError: clip_norm is nan; it must be a finite number above 0
    """
    for name, value in values.items():
        # Every check is the negation of what must hold: NaN compares as False and is refused.
        if not (math.isfinite(value) and value > 0):
            raise SettingError(f"{name} is {value}; it must be a finite number above 0")


def require_non_negative(**values: float) -> None:
    """Raise ``SettingError`` unless every value is finite and at least 0.

    Example:
        >>> require_non_negative(noise_multiplier=0.0)
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise SettingError(f"{name} is {value}; it must be a finite number, 0 or above")


def require_at_least(limit: float, **values: float) -> None:
    """Raise ``SettingError`` unless every value is finite and at least ``limit``.

    Example:
        >>> require_at_least(3, devices=2)
        Traceback (most recent call last):
        sottovoce.shared.errors.SettingError: devices is 2; it must be at least 3
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value >= limit):
            raise SettingError(f"{name} is {value}; it must be at least {limit}")


def require_norm(**values: float) -> None:
    """Raise ``SettingError`` unless every value is a bound on a norm that floats can represent.

    Example:
        >>> require_norm(clip_norm=0.5)
    """
    for name, value in values.items():
        if not MIN_NORM <= value <= MAX_NORM:
            raise SettingError(
                f"{name} is {value}; it must be from {MIN_NORM:g} to {MAX_NORM:g}, or rounding "
                "would break the bound: choose one in between, or other units"
            )


def require_whole_number(**values: float) -> None:
    """Raise ``SettingError`` unless every value is a whole number, 0 or above.

    Example:
        >>> require_whole_number(rounds=2.5)
        Traceback (most recent call last):
        sottovoce.shared.errors.SettingError: rounds is 2.5; it must be a whole number, 0 or above
    """
    for name, value in values.items():
        # In Python a bool is an int, but True is not a count.
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise SettingError(f"{name} is {value!r}; it must be a whole number, 0 or above")


def require_between(low: float, high: float, **values: float) -> None:
    """Raise ``SettingError`` unless every value lies strictly between ``low`` and ``high``.

    Example:
        >>> require_between(0, 1, delta=1e-5)
    """
    for name, value in values.items():
        if not low < value < high:
            raise SettingError(f"{name} is {value}; it must lie between {low} and {high}, both out")


def require_rate(**values: float) -> None:
    """Raise ``SettingError`` unless every value is a sampling rate in (0, 1].

    Example:
        >>> require_rate(cohort_rate=1.0)
    """
    for name, value in values.items():
        if not 0 < value <= 1:
            raise SettingError(f"{name} is {value}; it must be above 0 and at most 1")


def require_one_of(options: Collection[str], **values: str) -> None:
    """Raise ``SettingError`` unless every value is one of ``options``.

    Example:
        >>> require_one_of(("focal", "brier"), loss="brier")
    """
    for name, value in values.items():
        if value not in options:
            raise SettingError(
                f"{name} is {value!r}{suggest_name(value, options)}; it must be one of "
                f"{', '.join(options)}"
            )


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Ask whether a name near an unknown one was meant; empty where none is near.

    Args:
        name: The unknown name.
        known: The names that there are.

    >>> suggest_name("utterence", ("utterance", "user"))
    ' (did you mean utterance?)'
    >>> suggest_name("x", ("utterance", "user"))
    ''
    """
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
