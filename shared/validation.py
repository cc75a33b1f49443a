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

MIN_FACTOR: Final = 1e-9
MAX_FACTOR: Final = 1e6
"""Range of learning rates, weights and other factors, far from what floats cannot hold."""

MAX_ROUNDS: Final = 10_000
"""Most rounds of training, and most participation groups, bands and averaged rounds."""

MAX_SEED: Final = 2**63 - 1
"""Largest seed: what TOML and other readers of a scenario take as a whole number."""

_MAX_SHOWN: Final = 60
_LONG_NUMBER_BITS: Final = 128


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
        if not (is_finite(value) and value > 0):
            raise SettingError(
                f"{name} is {format_value(value)}; it must be a finite number above 0"
            )


def require_non_negative(**values: float) -> None:
    """Raise ``SettingError`` unless every value is finite and at least 0.

    Example:
        >>> require_non_negative(noise_multiplier=0.0)
    """
    for name, value in values.items():
        if not (is_finite(value) and value >= 0):
            raise SettingError(
                f"{name} is {format_value(value)}; it must be a finite number, 0 or above"
            )


def require_at_least(limit: float, /, **values: float) -> None:
    """Raise ``SettingError`` unless every value is finite and at least ``limit``.

    Example:
        >>> require_at_least(3, devices=2)
        Traceback (most recent call last):
        sottovoce.shared.errors.SettingError: devices is 2; it must be at least 3
    """
    for name, value in values.items():
        if not (is_finite(value) and value >= limit):
            raise SettingError(f"{name} is {format_value(value)}; it must be at least {limit}")


def require_count(least: int, most: int, /, **values: float) -> None:
    """Raise ``SettingError`` unless every value is a whole number from ``least`` to ``most``.

    Example:
        >>> require_count(1, 10_000, rounds=8)
        >>> require_count(1, 10_000, rounds=10**400)
        Traceback (most recent call last):
        sottovoce.shared.errors.SettingError: rounds is about 1e400; it must be a whole number ...
    """
    for name, value in values.items():
        # In Python a bool is an int, but True is not a count.
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and least <= value <= most):
            raise SettingError(
                f"{name} is {format_value(value)}; it must be a whole number from {least:,} to "
                f"{most:,}"
            )


def require_range(low: float, high: float, /, **values: float) -> None:
    """Raise ``SettingError`` unless every value is a number from ``low`` to ``high``, both in.

    Example:
        >>> require_range(0, 1, whitening=0.5)
        >>> require_range(0, 1, whitening=math.inf)
        Traceback (most recent call last):
        sottovoce.shared.errors.SettingError: whitening is inf; it must be from 0 to 1
    """
    for name, value in values.items():
        if not (is_finite(value) and low <= value <= high):
            raise SettingError(
                f"{name} is {format_value(value)}; it must be from {low:g} to {high:g}"
            )


def require_fraction(**values: float) -> None:
    """Raise ``SettingError`` unless every value is in [0, 1): 0 in, 1 out.

    Example:
        >>> require_fraction(dropout=0.0)
        >>> require_fraction(dropout=1.0)
        Traceback (most recent call last):
        sottovoce.shared.errors.SettingError: dropout is 1.0; it must be in [0, 1)
    """
    for name, value in values.items():
        if not (is_finite(value) and 0 <= value < 1):
            raise SettingError(f"{name} is {format_value(value)}; it must be in [0, 1)")


def require_norm(**values: float) -> None:
    """Raise ``SettingError`` unless every value is a bound on a norm that floats can represent.

    Example:
        >>> require_norm(clip_norm=0.5)
    """
    for name, value in values.items():
        if not (is_finite(value) and MIN_NORM <= value <= MAX_NORM):
            raise SettingError(
                f"{name} is {format_value(value)}; it must be from {MIN_NORM:g} to "
                f"{MAX_NORM:g}, or rounding would break the bound: choose one in between, or other "
                "units"
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
            raise SettingError(
                f"{name} is {format_value(value)}; it must be a whole number, 0 or above"
            )


def require_between(low: float, high: float, /, **values: float) -> None:
    """Raise ``SettingError`` unless every value lies strictly between ``low`` and ``high``.

    Example:
        >>> require_between(0, 1, delta=1e-5)
    """
    for name, value in values.items():
        if not (is_finite(value) and low < value < high):
            raise SettingError(
                f"{name} is {format_value(value)}; it must lie between {low} and {high}, both out"
            )


def require_rate(**values: float) -> None:
    """Raise ``SettingError`` unless every value is a sampling rate in (0, 1].

    Example:
        >>> require_rate(cohort_rate=1.0)
    """
    for name, value in values.items():
        if not (is_finite(value) and 0 < value <= 1):
            raise SettingError(f"{name} is {format_value(value)}; it must be above 0 and at most 1")


def require_one_of(options: Collection[str], **values: str) -> None:
    """Raise ``SettingError`` unless every value is one of ``options``.

    Example:
        >>> require_one_of(("focal", "brier"), loss="brier")
    """
    for name, value in values.items():
        if value not in options:
            raise SettingError(
                f"{name} is {format_value(value)}{suggest_name(value, options)}; it must be one of "
                f"{', '.join(options)}"
            )


def is_finite(value: object) -> bool:
    """Whether a value is a finite number that a float can hold; a truth value is no number.

    Example:
        >>> is_finite(3), is_finite(10**400), is_finite(True), is_finite("3")
        (True, False, False, False)
    """
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)  # type: ignore[arg-type]  # whatever cannot be, is caught
    except (OverflowError, TypeError, ValueError):  # beyond all floats, or no number
        return False


def format_value(value: object) -> str:
    """Format a value for a message; whatever it is, the text is short.

    Example:
        >>> format_value("user"), format_value(0.5), format_value(-(10**400))
        ("'user'", '0.5', 'about -1e400')
    """
    if isinstance(value, int) and value.bit_length() > _LONG_NUMBER_BITS:
        # str() of a number of thousands of digits is refused by Python itself.
        exponent = round((value.bit_length() - 0.5) * math.log10(2))
        return f"about {'-' if value < 0 else ''}1e{exponent}"
    try:
        text = str(value) if isinstance(value, float) else repr(value)
    except ValueError:  # such a number within a list
        return f"a {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


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
    near = difflib.get_close_matches(str(name)[:_MAX_SHOWN], list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
