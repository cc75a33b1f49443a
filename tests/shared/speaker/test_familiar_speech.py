"""Contracts of familiar speech: its own kind lies within, other sounds beyond, and are doubted."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sottovoce.shared.errors import ModelError
from sottovoce.shared.speaker import familiar_speech
from sottovoce.shared.speaker.familiar_speech import FamiliarSpeech
from sottovoce.shared.speaker.familiarity import soften_probabilities

INPUTS = 16


def speech(count: int, *, seed: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rows of speakers that differ, as their utterances do."""
    rng = torch.Generator().manual_seed(seed)
    speakers = torch.arange(count) % 12
    own = torch.randn(12, INPUTS, generator=rng)
    return shift + own[speakers] + torch.randn(count, INPUTS, generator=rng), speakers


def known() -> FamiliarSpeech:
    fitted = familiar_speech.fit_familiar_speech(*speech(600, seed=0))
    assert fitted is not None
    return fitted


def test_new_speakers_of_the_same_kind_are_familiar() -> None:
    rows, _ = speech(600, seed=1)

    beyond = [known().measure_unfamiliarity(row) > 1 for row in rows]

    assert sum(beyond) / len(beyond) < 0.04


@pytest.mark.parametrize(
    "row",
    [
        torch.full((INPUTS,), 6.0),
        torch.full((INPUTS,), -6.0),
        torch.full((INPUTS,), math.nan),
        torch.full((INPUTS,), math.inf),
        torch.full((INPUTS,), 1e30),
    ],
)
def test_other_sound_is_not_familiar(row: Tensor) -> None:
    distance = known().measure_unfamiliarity(row)

    assert math.isfinite(distance)
    assert distance > 1


def test_one_odd_input_alone_does_not_decide() -> None:
    row = torch.zeros(256)
    row[3] = 1e6
    ones = torch.ones(256)
    model = FamiliarSpeech(mean=0 * ones, scale=ones, limit=torch.ones(1))

    assert model.measure_unfamiliarity(row) < 1


def test_the_training_users_microphone_is_familiar() -> None:
    far = torch.full((INPUTS,), 6.0)

    assert known().measure_unfamiliarity(far, torch.full((INPUTS,), 5.5)) < 1


def test_the_limit_is_of_speakers_that_were_held_out() -> None:
    # Speakers that differ much more than their utterances do: each lies far from all others.
    speakers = torch.arange(40) % 5
    centres = 10 * torch.eye(5, INPUTS)
    rng = torch.Generator().manual_seed(2)
    rows = centres[speakers] + 0.1 * torch.randn(40, INPUTS, generator=rng)
    fitted = familiar_speech.fit_familiar_speech(rows, speakers)

    assert fitted is not None
    seen = ((rows - fitted.mean) / fitted.scale).square().mean(1).sqrt()
    assert float(fitted.limit) > 2 * float(seen.max())


def test_too_little_public_speech_tells_nothing() -> None:
    rows, speakers = speech(40, seed=3)

    assert familiar_speech.fit_familiar_speech(rows[:19], speakers[:19]) is None
    assert familiar_speech.fit_familiar_speech(rows, torch.zeros(40, dtype=torch.int64)) is None


@pytest.mark.parametrize("distance", [0.0, 0.5, 0.9, 1.0, 1.01, 2.0, 1e9, math.inf])
def test_softened_probabilities_keep_their_sum_and_their_order(distance: float) -> None:
    sure = np.array([0.02, 0.97, 0.01])

    softened = soften_probabilities(sure, distance)

    assert float(softened.sum()) == pytest.approx(1)
    assert int(softened.argmax()) == 1
    assert (float(softened[1]) == 0.97) == (distance < 0.8)
    assert float(softened[1]) < 0.5 or distance < 1


def test_less_familiar_is_never_surer() -> None:
    sure = np.array([0.02, 0.97, 0.01])
    tops = [float(soften_probabilities(sure, step / 50).max()) for step in range(200)]

    assert tops == sorted(tops, reverse=True)
    assert max(abs(a - b) for a, b in itertools.pairwise(tops)) < 0.06  # no jump


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", torch.zeros(INPUTS)),
        ("scale", torch.ones(3)),
        ("mean", torch.full((INPUTS,), math.nan)),
        ("limit", torch.zeros(1)),
        ("limit", torch.ones(2)),
        ("limit", torch.full((1,), math.inf)),
    ],
)
def test_statistics_that_are_none_are_refused(name: str, value: Tensor) -> None:
    tensors = known().to_tensors() | {name: value}

    with pytest.raises(ModelError, match="familiar speech"):
        FamiliarSpeech.from_tensors(tensors)
    tensors.pop(name)
    with pytest.raises(ModelError, match=f"lacks {name}"):
        FamiliarSpeech.from_tensors(tensors)
