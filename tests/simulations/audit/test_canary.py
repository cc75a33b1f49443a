"""A canary is caught where nothing hides it, and stays below every honest claim."""

from dataclasses import replace
from typing import Any

import pytest

from sottovoce.shared.privacy import accounting
from sottovoce.simulations.audit import canary
from sottovoce.simulations.audit.device_under_test import with_exact_normaliser


def _bound(transcript: Any, people: Any, terms: Any, trials: int) -> canary.EpsilonBound:
    own = people(1)["u00"].examples
    return canary.bound_epsilon(
        *canary.collect_statistics(transcript, own, trials=trials, seed=0), **terms
    )


def test_without_noise_a_canary_is_always_seen(
    make_transcript: Any, people: Any, terms: Any
) -> None:
    found = _bound(make_transcript(None), people, terms, 40)

    assert found.epsilon == found.ceiling
    assert found.epsilon_gaussian > 10


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_a_booked_canary_stays_below_the_claim(
    make_transcript: Any, people: Any, terms: Any, epsilon: float
) -> None:
    found = _bound(make_transcript(epsilon), people, terms, 60)

    assert found.epsilon <= epsilon
    assert found.epsilon_gaussian <= epsilon


def test_at_epsilon_eight_the_audit_sees_something(
    make_transcript: Any, people: Any, terms: Any
) -> None:
    found = _bound(make_transcript(8.0), people, terms, 100)

    assert found.epsilon_gaussian > 0.5, "a blind audit would prove nothing"


def test_a_canary_in_an_unbooked_normaliser_is_caught(
    make_transcript: Any, people: Any, terms: Any
) -> None:
    booked = make_transcript(1.0)

    caught = _bound(with_exact_normaliser(booked), people, terms, 70)

    assert caught.epsilon > 1.0, "the gradients' noise hides it from nobody"
    assert caught.epsilon_gaussian > 1.0
    assert _bound(booked, people, terms, 70).epsilon <= 1.0


def test_the_first_message_alone_shows_that_nothing_is_hidden(
    make_transcript: Any, terms: Any
) -> None:
    off = canary.bound_first_message(make_transcript(None), trials=2_000, seed=0, **terms)
    on = canary.bound_first_message(make_transcript(8.0), trials=2_000, seed=0, **terms)

    assert off.epsilon == off.ceiling > 5
    assert on.epsilon <= on.epsilon_gaussian + 1 <= 9


def test_the_last_message_alone_shows_that_nothing_is_hidden(
    make_transcript: Any, terms: Any
) -> None:
    off = canary.bound_last_message(make_transcript(None), trials=2_000, seed=0, **terms)

    assert off is not None
    assert off.epsilon == off.ceiling > 5


@pytest.mark.parametrize("noise", [1.0, 0.5])
def test_the_last_message_alone_shows_its_own_epsilon(
    make_transcript: Any, terms: Any, noise: float
) -> None:
    """Most of it, and so more than was booked where a device draws half of the noise."""
    booked = make_transcript(8.0)
    release = booked.plan.calibration_release()
    epsilon = accounting.compute_epsilon([release], terms["delta"])
    drawn = replace(booked.plan.calibration, noise_multiplier=noise * release.noise_multiplier)

    found = canary.bound_last_message(
        replace(booked, plan=replace(booked.plan, calibration=drawn)), trials=8_000, seed=0, **terms
    )

    assert found is not None
    assert (found.epsilon_gaussian > epsilon) == (noise < 1)
    assert found.epsilon_gaussian > 0.5 * epsilon
    assert found.epsilon <= found.epsilon_gaussian + 1


def test_without_a_last_request_there_is_no_bound_on_it(
    make_transcript: Any, people: Any, terms: Any
) -> None:
    silent = replace(make_transcript(8.0), statistics_request=None)

    assert canary.bound_last_message(silent, trials=20, seed=0, **terms) is None
    assert _bound(silent, people, terms, 20).epsilon <= 8.0


def test_the_same_seed_gives_the_same_figures(
    make_transcript: Any, people: Any, terms: Any
) -> None:
    assert _bound(make_transcript(8.0), people, terms, 10) == _bound(
        make_transcript(8.0), people, terms, 10
    )
