"""Checks of settings: whatever value comes, a setting's error, short and with the limit."""

import math
from collections.abc import Callable

import pytest

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError

NO_NUMBERS: tuple[object, ...] = (
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    -(10**5000),
    True,
    "3",
    None,
    [1.0],
    -1,
)

CHECKS: dict[str, Callable[..., None]] = {
    "positive": validation.require_positive,
    "non_negative": validation.require_non_negative,
    "at_least": lambda **values: validation.require_at_least(0, **values),
    "count": lambda **values: validation.require_count(0, 9, **values),
    "range": lambda **values: validation.require_range(0, 9, **values),
    "fraction": validation.require_fraction,
    "norm": validation.require_norm,
    "whole_number": validation.require_whole_number,
    "between": lambda **values: validation.require_between(0, 1, **values),
    "rate": validation.require_rate,
}


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_no_number_in_range_is_refused_in_few_words(name: str) -> None:
    for value in NO_NUMBERS:
        if name == "whole_number" and value == 10**400:
            continue  # a whole number like any other
        with pytest.raises(SettingError, match=r"^steps is .*must") as caught:
            CHECKS[name](steps=value)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10**400, "about 1e400"),
        (-(10**5000), "about -1e5000"),
        ([10**5000], "a list"),
        ("x" * 1000, "'" + "x" * 56 + "..."),
        (0.1, "0.1"),
        (True, "True"),
    ],
    ids=["huge", "huge-negative", "list", "long", "float", "truth-value"],
)
def test_a_value_in_a_message_is_short_whatever_it_is(value: object, text: str) -> None:
    assert validation.format_value(value) == text


def test_bounds_themselves_are_allowed() -> None:
    validation.require_count(1, 9, low=1, high=9)
    validation.require_range(-0.5, 0.5, low=-0.5, high=0.5)
    validation.require_fraction(low=0.0)
    validation.require_norm(low=validation.MIN_NORM, high=validation.MAX_NORM)


def test_a_choice_that_is_no_text_is_refused_like_any_other() -> None:
    with pytest.raises(SettingError, match="loss is 3; it must be one of focal, brier"):
        validation.require_one_of(("focal", "brier"), loss=3)  # type: ignore[arg-type]
