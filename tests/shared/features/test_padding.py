"""Contract of the features: as many are recognised with silence or noise around them as without."""

from functools import cache

import pytest
import torch
from torch import Tensor

from sottovoce.shared.audio import Signal
from sottovoce.shared.features import registry
from sottovoce.simulations.corpora import open_corpus
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.experiments.generalisation.padding import PaddedClip, make_room_noise

EXTRACTOR = registry.create_extractor("whisper-tiny-en")


@cache
def clips() -> tuple[Clip, ...]:
    return open_corpus("synthetic", "speakers=8,clips=6,seed=99").clips


@cache
def features(kind: str, seconds: float) -> Tensor:
    """Of all clips, padded; (clips, features)."""
    padded = (PaddedClip(clip=clip, kind=kind, seconds=seconds) for clip in clips())
    return torch.stack([EXTRACTOR(clip.load_signal()) for clip in padded])


@cache
def right(kind: str, seconds: float) -> int:
    """How many a ridge regression recognises, fitted on other speakers' clips as they are."""
    emotions = sorted({clip.emotion for clip in clips()})
    labels = torch.tensor([emotions.index(clip.emotion) for clip in clips()])
    speakers = torch.tensor([int(clip.speaker[-4:]) for clip in clips()])
    plain = features("silence", 0)
    means = torch.stack([plain[speakers == speaker].mean(0) for speaker in speakers])
    train, test = (
        torch.nn.functional.normalize((one - means) / plain.std(0))
        for one in (plain, features(kind, seconds))
    )
    found = 0
    for fold in range(4):
        own, others = speakers % 4 == fold, speakers % 4 != fold
        targets = torch.nn.functional.one_hot(labels[others], len(emotions)).float()
        kernel = train[others] @ train[others].T + 0.1 * torch.eye(int(others.sum()))
        weights = torch.linalg.solve(kernel, targets - targets.mean(0))
        guesses = (test[own] @ train[others].T @ weights).argmax(1)
        found += int((guesses == labels[own]).sum())
    return found


@pytest.mark.parametrize("seconds", [0.5, 1.0])
def test_as_many_are_right_with_silence_around_them(seconds: float) -> None:
    assert right("silence", 0) > len(clips()) / 3  # twice chance
    assert right("silence", seconds) == right("silence", 0)
    assert torch.equal(features("silence", seconds), features("silence", 0))


def test_about_as_many_are_right_with_noise_of_the_room_around_them() -> None:
    assert abs(right("room noise", 1.0) - right("silence", 0)) <= 3


def test_room_noise_has_the_level_and_the_spectrum_of_the_quietest_moment() -> None:
    rng = torch.Generator().manual_seed(0)
    hiss = 0.01 * torch.diff(torch.randn(1, 16_001, generator=rng))  # high frequencies
    loud = torch.cat([hiss, 0.5 * torch.sin(torch.arange(16_000) / 8)[None]], dim=1)

    noise = make_room_noise(Signal(loud, 16_000), 32_000, seed=0)

    powers = torch.fft.rfft(noise[0]).abs().square()
    assert noise.std() == pytest.approx(float(hiss.std()), rel=0.2)
    assert powers[8_000:].sum() > 2 * powers[:8_000].sum()
