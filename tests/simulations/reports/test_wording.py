"""The words of a promise say no more than the promise."""

import doctest
import math
from typing import Any

import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.simulations.reports import wording


def promise(**changes: Any) -> dict[str, Any]:
    return {"unit": "utterance", "epsilon": 8.0, "delta": 1e-5} | changes


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(wording).failed == 0


@pytest.mark.parametrize("unit", ["utterance", "user", "both"])
def test_a_promise_names_its_worst_case_and_its_chance(unit: str) -> None:
    text = " ".join(wording.explain_promise(promise(unit=unit)))

    assert "99.97\u202f%" in text
    assert "1 in 100,000" in text
    assert "moderate" in text
    assert ("have in common" in text) == (unit != "user")


@pytest.mark.parametrize("changes", [{"unit": "none"}, {"epsilon": None}])
def test_no_promise_promises_nothing(changes: dict[str, Any]) -> None:
    text = " ".join(wording.explain_promise(promise(**changes)))

    assert "no privacy promise" in text
    assert wording.summarise_promise(promise(**changes)) == "no guarantee"


def test_certainty_never_rounds_up_to_safety() -> None:
    assert wording.attacker_certainty(0) == "50.0\u202f%"
    assert wording.attacker_certainty(1e6) == "more than 99.99\u202f%"


@pytest.mark.parametrize(
    ("epsilon", "said"),
    [(None, "none"), (0.5, "strong"), (1.0, "strong"), (8.0, "moderate"), (11.0, "weak")],
)
def test_strength(epsilon: float | None, said: str) -> None:
    assert wording.promise_strength(epsilon) == said


@pytest.mark.parametrize("epsilon", [-1.0, math.nan])
def test_an_impossible_epsilon_is_refused(epsilon: float) -> None:
    with pytest.raises(SettingError):
        wording.promise_strength(epsilon)
