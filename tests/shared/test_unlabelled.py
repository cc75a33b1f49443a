"""Unlabelled speech: whatever its mix, the mean that is found is the user's over all emotions."""

import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared import normaliser, unlabelled
from sottovoce.shared.errors import ModelError
from sottovoce.shared.normaliser import Population
from sottovoce.shared.unlabelled import Belief

INPUTS = 3
EVEN = 1 / 4
OFFSET = torch.tensor([2.0, -1.0, 0.0])
"""Where neutral speech lies from its speaker's mean."""
OWN = torch.tensor([0.5, 1.0, -1.0])
"""Where this user's mean lies from the population's centre."""


def _population(*, between: float = 1.0, within: float = 0.5) -> Population:
    ones = torch.ones(INPUTS)
    return Population(
        between=between * ones,
        within=within * ones,
        neutral_offset=OFFSET,
        neutral_within=within * ones,
        offset_spread=0.01 * ones,
    )


PEOPLE = _population()


def _stream(neutral: int, other: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of a user whose emotions cancel in an even mix, and chances that are fairly sure."""
    noise = torch.randn(neutral + other, INPUTS, generator=torch.Generator().manual_seed(seed))
    calm = torch.arange(neutral + other) < neutral
    away = torch.where(calm[:, None], OFFSET, -OFFSET * EVEN / (1 - EVEN))
    return OWN + away + 0.3 * noise, torch.where(calm, 0.85, 0.05)


def _found(rows: Tensor, chances: Tensor, belief: Belief | None = None) -> Tensor:
    start = belief or unlabelled.begin(rows[:0], PEOPLE)
    return unlabelled.estimate(rows, chances, start, PEOPLE, even=EVEN)


def _miss(found: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - OWN))


# --- whatever the mix -------------------------------------------------------------------------


def test_a_mostly_neutral_stream_is_not_taken_for_the_user() -> None:
    rows, chances = _stream(16, 4)

    assert _miss(_found(rows, chances)) < 0.5 * _miss(rows.mean(0))
    # The test can fail: without knowing what is neutral, the plain mean is all there is.
    deaf = torch.full_like(chances, EVEN)
    assert _miss(_found(rows, deaf)) > 0.8 * _miss(rows.mean(0))


def test_where_public_speech_points_nowhere_the_model_helps() -> None:
    rows, chances = _stream(16, 4)
    strangers = Population(
        between=PEOPLE.between,
        within=PEOPLE.within,
        neutral_offset=torch.zeros(INPUTS),
        neutral_within=PEOPLE.neutral_within,
        offset_spread=PEOPLE.offset_spread,
    )
    start = unlabelled.begin(rows[:0], strangers)
    without, heard = (
        unlabelled.estimate(rows, chances, start, strangers, even=EVEN, direction=direction)
        for direction in (None, OFFSET / OFFSET.norm())
    )

    assert _miss(heard) < _miss(without)


def test_an_even_stream_keeps_its_mean() -> None:
    rows, chances = _stream(5, 15)

    found = _found(rows, chances)

    assert unlabelled.mix(chances, even=EVEN) < 0.01
    trust = 2 / (2 + 0.5 / len(rows))  # public speakers' variance counts twice
    assert torch.allclose(found, trust * rows.mean(0), atol=0.02)


def test_the_mix_is_told_from_what_the_model_hears() -> None:
    _, skewed = _stream(16, 4)
    _, even = _stream(5, 15)

    assert unlabelled.mix(skewed, even=EVEN) > 0.99
    assert unlabelled.mix(even, even=EVEN) < 0.01
    assert unlabelled.mix(even[:0], even=EVEN) == 0


def test_a_model_without_a_neutral_class_takes_every_mix_for_even() -> None:
    rows, chances = _stream(16, 4)
    start = unlabelled.begin(rows[:0], PEOPLE)

    found = unlabelled.estimate(rows, torch.zeros_like(chances), start, PEOPLE, even=0.0)

    assert torch.allclose(found, 2 / (2 + 0.5 / 20) * rows.mean(0))
    assert unlabelled.even_share(("angry", "sad")) == 0
    assert unlabelled.even_share(("angry", "calm", "neutral", "sad")) == 0.5


# --- one estimator that knows more or less ----------------------------------------------------


def test_without_speech_it_is_what_was_known() -> None:
    nothing, calm = torch.zeros(0, INPUTS), OWN + OFFSET + torch.zeros(4, INPUTS)

    assert torch.equal(_found(nothing, torch.zeros(0)), torch.zeros(INPUTS))
    known = unlabelled.begin(calm, PEOPLE)
    assert torch.equal(_found(nothing, torch.zeros(0), known), known.mean)
    assert torch.equal(known.mean, normaliser.estimate(calm, PEOPLE, neutral=True))


def test_neutral_clips_leave_less_doubt_and_more_of_them_less_still() -> None:
    calm = OWN + OFFSET + torch.zeros(9, INPUTS)
    doubts = [unlabelled.begin(calm[:count], PEOPLE).variance for count in (0, 1, 9)]

    assert bool((doubts[0] > doubts[1]).all())
    assert bool((doubts[1] > doubts[2]).all())
    assert bool((doubts[2] > 0).all())


def test_little_speech_moves_little() -> None:
    rows, chances = _stream(5, 15)
    doubtful = _population(within=50.0)
    start = unlabelled.begin(rows[:0], doubtful)

    found = unlabelled.estimate(rows[:1], chances[:1], start, doubtful, even=EVEN)

    assert float(found.norm()) < 0.1 * float(rows[0].norm())


def test_the_order_of_utterances_does_not_matter() -> None:
    rows, chances = _stream(12, 8)
    turned = torch.arange(len(rows)).flip(0)

    assert torch.allclose(_found(rows, chances), _found(rows[turned], chances[turned]), atol=1e-6)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chances", [torch.zeros(2), torch.zeros(4), torch.tensor([0.1, math.nan, 0.2])]
)
def test_chances_that_do_not_fit_are_refused(chances: Tensor) -> None:
    with pytest.raises(ModelError, match="one finite chance each"):
        _found(torch.zeros(3, INPUTS), chances)


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_model_that_is_quite_sure_gives_finite_means(chance: float) -> None:
    rows, _ = _stream(6, 4)

    assert bool(_found(rows, torch.full((10,), chance)).isfinite().all())


def test_speakers_who_never_differ_leave_the_population_alone() -> None:
    rows, chances = _stream(16, 4)
    alike = _population(between=0.0)
    start = unlabelled.begin(rows[:0], alike)

    found = unlabelled.estimate(rows, chances, start, alike, even=EVEN)

    assert float(found.norm()) < 1e-5
