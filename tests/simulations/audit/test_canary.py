"""A canary is caught where nothing hides it, and stays below every honest claim."""

from dataclasses import replace
from typing import Any

import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accountant
from sottovoce.simulations.audit import canary, onerun
from sottovoce.simulations.audit.subject import exactly


def _bound(course: Any, people: Any, terms: Any, lives: int) -> canary.Bound:
    own = people(1)["u00"].examples
    return canary.judged(*canary.scores(course, own, lives=lives, seed=0), **terms)


def test_without_noise_a_canary_is_always_seen(course: Any, people: Any, terms: Any) -> None:
    found = _bound(course(None), people, terms, 40)

    assert found.epsilon == found.ceiling
    assert found.epsilon_gaussian > 10


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_a_booked_canary_stays_below_the_claim(
    course: Any, people: Any, terms: Any, epsilon: float
) -> None:
    found = _bound(course(epsilon), people, terms, 60)

    assert found.epsilon <= epsilon
    assert found.epsilon_gaussian <= epsilon


def test_at_epsilon_eight_the_audit_sees_something(course: Any, people: Any, terms: Any) -> None:
    found = _bound(course(8.0), people, terms, 100)

    assert found.epsilon_gaussian > 0.5, "a blind audit would prove nothing"


def test_a_canary_in_an_unbooked_normaliser_is_caught(course: Any, people: Any, terms: Any) -> None:
    booked = course(1.0)

    caught = _bound(exactly(booked), people, terms, 70)

    assert caught.epsilon > 1.0, "the gradients' noise hides it from nobody"
    assert caught.epsilon_gaussian > 1.0
    assert _bound(booked, people, terms, 70).epsilon <= 1.0


def test_the_first_message_alone_shows_that_nothing_is_hidden(course: Any, terms: Any) -> None:
    off = canary.first_message(course(None), lives=2_000, seed=0, **terms)
    on = canary.first_message(course(8.0), lives=2_000, seed=0, **terms)

    assert off.epsilon == off.ceiling > 5
    assert on.epsilon <= on.epsilon_gaussian + 1 <= 9


def test_the_last_message_alone_shows_that_nothing_is_hidden(course: Any, terms: Any) -> None:
    off = canary.last_message(course(None), lives=2_000, seed=0, **terms)

    assert off is not None
    assert off.epsilon == off.ceiling > 5


@pytest.mark.parametrize("noise", [1.0, 0.5])
def test_the_last_message_alone_shows_its_own_price(course: Any, terms: Any, noise: float) -> None:
    """Most of it, and so more than was booked where a device draws half of the noise."""
    booked = course(8.0)
    release = booked.plan.calibration_release()
    price = accountant.epsilon([release], terms["delta"])
    drawn = replace(booked.plan.calibration, noise_multiplier=noise * release.noise_multiplier)

    found = canary.last_message(
        replace(booked, plan=replace(booked.plan, calibration=drawn)), lives=8_000, seed=0, **terms
    )

    assert found is not None
    assert (found.epsilon_gaussian > price) == (noise < 1)
    assert found.epsilon_gaussian > 0.5 * price
    assert found.epsilon <= found.epsilon_gaussian + 1


def test_who_asks_nothing_at_the_end_is_told_nothing(course: Any, people: Any, terms: Any) -> None:
    silent = replace(course(8.0), asked=None)

    assert canary.last_message(silent, lives=20, seed=0, **terms) is None
    assert _bound(silent, people, terms, 20).epsilon <= 8.0


def test_one_run_tells_all_canaries_without_noise(course: Any, people: Any, terms: Any) -> None:
    own = people(1)["u00"].examples

    off = onerun.one_run(course(None), own, canaries=24, seed=0, **terms)
    on = onerun.one_run(course(1.0), own, canaries=24, seed=0, **terms)

    assert off.correct == off.guesses
    assert off.epsilon > 1.0
    assert on.epsilon <= 1.0


def test_one_run_needs_canaries(course: Any, people: Any, terms: Any) -> None:
    with pytest.raises(SettingError, match="at least 8"):
        onerun.one_run(course(1.0), people(1)["u00"].examples, canaries=4, seed=0, **terms)


def test_the_same_seed_gives_the_same_figures(course: Any, people: Any, terms: Any) -> None:
    assert _bound(course(8.0), people, terms, 10) == _bound(course(8.0), people, terms, 10)
