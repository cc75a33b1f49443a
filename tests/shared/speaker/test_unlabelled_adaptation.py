"""Unlabelled speech: whatever its mix, the mean that is found is the user's over all emotions."""

import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared.errors import ModelError
from sottovoce.shared.speaker import normalisation, unlabelled_adaptation
from sottovoce.shared.speaker.normalisation import SpeakerStatistics
from sottovoce.shared.speaker.unlabelled_adaptation import MeanPosterior

INPUTS = 3
EVEN = 1 / 4
OFFSET = torch.tensor([2.0, -1.0, 0.0])
"""Where neutral speech lies from its speaker's mean."""
OWN = torch.tensor([0.5, 1.0, -1.0])
"""Where this user's mean lies from the population's centre."""


def _population(*, between: float = 1.0, within: float = 0.5) -> SpeakerStatistics:
    ones = torch.ones(INPUTS)
    return SpeakerStatistics(
        between=between * ones,
        within=within * ones,
        neutral_offset=OFFSET,
        neutral_within=within * ones,
        offset_variance=0.01 * ones,
    )


PEOPLE = _population()


def _stream(neutral: int, other: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of a user whose emotions cancel in an even mix, and fairly sure probabilities."""
    noise = torch.randn(neutral + other, INPUTS, generator=torch.Generator().manual_seed(seed))
    calm = torch.arange(neutral + other) < neutral
    away = torch.where(calm[:, None], OFFSET, -OFFSET * EVEN / (1 - EVEN))
    return OWN + away + 0.3 * noise, torch.where(calm, 0.85, 0.05)


def _found(rows: Tensor, probabilities: Tensor, posterior: MeanPosterior | None = None) -> Tensor:
    start = posterior or unlabelled_adaptation.initial_posterior(rows[:0], PEOPLE)
    return unlabelled_adaptation.adapt_mean(rows, probabilities, start, PEOPLE, uniform_share=EVEN)


def _miss(found: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - OWN))


# --- whatever the mix -------------------------------------------------------------------------


def test_a_mostly_neutral_stream_is_not_taken_for_the_user() -> None:
    rows, probabilities = _stream(16, 4)

    assert _miss(_found(rows, probabilities)) < 0.5 * _miss(rows.mean(0))
    # The test can fail: without knowing what is neutral, the plain mean is all there is.
    uninformed = torch.full_like(probabilities, EVEN)
    assert _miss(_found(rows, uninformed)) > 0.8 * _miss(rows.mean(0))


def test_where_public_speech_points_nowhere_the_model_helps() -> None:
    rows, probabilities = _stream(16, 4)
    strangers = SpeakerStatistics(
        between=PEOPLE.between,
        within=PEOPLE.within,
        neutral_offset=torch.zeros(INPUTS),
        neutral_within=PEOPLE.neutral_within,
        offset_variance=PEOPLE.offset_variance,
    )
    start = unlabelled_adaptation.initial_posterior(rows[:0], strangers)
    without, directed = (
        unlabelled_adaptation.adapt_mean(
            rows, probabilities, start, strangers, uniform_share=EVEN, direction=direction
        )
        for direction in (None, OFFSET / OFFSET.norm())
    )

    assert _miss(directed) < _miss(without)


def test_an_even_stream_keeps_its_mean() -> None:
    rows, probabilities = _stream(5, 15)

    found = _found(rows, probabilities)

    trust = 2 / (2 + 0.5 / len(rows))  # public speakers' variance counts twice
    assert torch.allclose(found, trust * rows.mean(0), atol=0.02)


def test_a_model_without_a_neutral_class_takes_every_mix_for_even() -> None:
    rows, probabilities = _stream(16, 4)
    start = unlabelled_adaptation.initial_posterior(rows[:0], PEOPLE)

    found = unlabelled_adaptation.adapt_mean(
        rows, torch.zeros_like(probabilities), start, PEOPLE, uniform_share=0.0
    )

    assert torch.allclose(found, 2 / (2 + 0.5 / 20) * rows.mean(0))
    assert unlabelled_adaptation.uniform_neutral_share(("angry", "sad")) == 0
    assert unlabelled_adaptation.uniform_neutral_share(("angry", "calm", "neutral", "sad")) == 0.5


# --- one estimator that knows more or less ----------------------------------------------------


def test_without_speech_it_is_what_was_known() -> None:
    nothing, calm = torch.zeros(0, INPUTS), OWN + OFFSET + torch.zeros(4, INPUTS)

    assert torch.equal(_found(nothing, torch.zeros(0)), torch.zeros(INPUTS))
    known = unlabelled_adaptation.initial_posterior(calm, PEOPLE)
    assert torch.equal(_found(nothing, torch.zeros(0), known), known.mean)
    assert torch.equal(known.mean, normalisation.estimate_mean(calm, PEOPLE, is_neutral=True))


def test_neutral_clips_leave_less_doubt_and_more_of_them_less_still() -> None:
    calm = OWN + OFFSET + torch.zeros(9, INPUTS)
    doubts = [
        unlabelled_adaptation.initial_posterior(calm[:count], PEOPLE).variance
        for count in (0, 1, 9)
    ]

    assert bool((doubts[0] > doubts[1]).all())
    assert bool((doubts[1] > doubts[2]).all())
    assert bool((doubts[2] > 0).all())


def test_little_speech_moves_little() -> None:
    rows, probabilities = _stream(5, 15)
    doubtful = _population(within=50.0)
    start = unlabelled_adaptation.initial_posterior(rows[:0], doubtful)

    found = unlabelled_adaptation.adapt_mean(
        rows[:1], probabilities[:1], start, doubtful, uniform_share=EVEN
    )

    assert float(found.norm()) < 0.1 * float(rows[0].norm())


def test_the_order_of_utterances_does_not_matter() -> None:
    rows, probabilities = _stream(12, 8)
    turned = torch.arange(len(rows)).flip(0)

    assert torch.allclose(
        _found(rows, probabilities), _found(rows[turned], probabilities[turned]), atol=1e-6
    )


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "probabilities", [torch.zeros(2), torch.zeros(4), torch.tensor([0.1, math.nan, 0.2])]
)
def test_probabilities_that_do_not_fit_are_refused(probabilities: Tensor) -> None:
    with pytest.raises(ModelError, match="one finite probability each"):
        _found(torch.zeros(3, INPUTS), probabilities)


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_model_that_is_quite_sure_gives_finite_means(chance: float) -> None:
    rows, _ = _stream(6, 4)

    assert bool(_found(rows, torch.full((10,), chance)).isfinite().all())


def test_speakers_who_never_differ_leave_the_population_alone() -> None:
    rows, probabilities = _stream(16, 4)
    identical = _population(between=0.0)
    start = unlabelled_adaptation.initial_posterior(rows[:0], identical)

    found = unlabelled_adaptation.adapt_mean(
        rows, probabilities, start, identical, uniform_share=EVEN
    )

    assert float(found.norm()) < 1e-5
