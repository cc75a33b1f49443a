"""A model from public speech alone knows its speakers' emotions and doubts strange channels."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sottovoce.server.planning.public_pretraining import ProjectionSettings
from sottovoce.server.planning.recipe import Recipe
from sottovoce.shared.errors import CorpusError
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.data import public_model
from sottovoce.simulations.data.public_model import LabelledSpeech, train_public_model

LABELS = ("neutral", "happy", "sad")
RECIPE = Recipe(projection=ProjectionSettings(dims=8), pretraining_weight_decay=1e-3)
WIDTH = 12


def make_speech(speakers: int) -> LabelledSpeech:
    """Speakers whose emotions lie in the same directions from a place of each speaker's own."""
    generator = torch.Generator().manual_seed(0)
    directions = 2 * torch.randn(len(LABELS), WIDTH, generator=generator)
    clips, features = [], {}
    for speaker in range(speakers):
        own = torch.randn(WIDTH, generator=generator)
        for number in range(30):
            emotion = number % len(LABELS)
            clip = Clip(
                clip_id=f"{speaker}-{number}",
                speaker=str(speaker),
                emotion=LABELS[emotion],
                label=LABELS[emotion],
                path=Path("unused.wav"),
            )
            clips.append(clip)
            spread = torch.randn(WIDTH, generator=generator)
            features[clip.clip_id] = own + directions[emotion] + spread
    return LabelledSpeech(clips=clips, features=features)


def held_out_features(speech: LabelledSpeech) -> dict[str, Tensor]:
    held_out = public_model.held_out_speakers(speech.clips)
    return {
        clip.clip_id: speech.features[clip.clip_id]
        for clip in speech.clips
        if clip.speaker in held_out
    }


def test_strange_channels_raise_the_temperature_and_nothing_else() -> None:
    speech = make_speech(10)
    usual = held_out_features(speech)
    strange = {name: 4 * torch.roll(row, 3) for name, row in usual.items()}

    familiar, doubting = (
        train_public_model(speech, channels, labels=LABELS, extractor="log-mel", recipe=RECIPE)
        for channels in (usual, strange)
    )

    assert familiar.unknown_voice_temperature < 1.5
    assert doubting.unknown_voice_temperature > 2
    assert torch.equal(familiar.weights, doubting.weights)
    assert familiar.model_hash == doubting.model_hash


def test_it_knows_the_emotions_of_speakers_that_it_was_not_trained_on() -> None:
    speech = make_speech(10)
    channels = held_out_features(speech)
    package = train_public_model(
        speech, channels, labels=LABELS, extractor="log-mel", recipe=RECIPE
    )
    rows = torch.stack(list(channels.values()))
    own = [clip for clip in speech.clips if clip.clip_id in channels]
    by_speaker = {clip.speaker for clip in own}
    right = 0
    for speaker in by_speaker:
        mine = torch.tensor([clip.speaker == speaker for clip in own])
        mean = package.projection.project_features(rows[mine]).mean(0)
        logits = package.compute_logits(
            rows[mine], torch.ones(int(mine.sum()), dtype=torch.int64), mean
        )
        truth = [LABELS.index(clip.emotion) for clip in own if clip.speaker == speaker]
        right += int((logits.argmax(1) == torch.tensor(truth)).sum())

    assert right > 0.9 * len(own)


def test_too_few_speakers_are_refused_with_the_number() -> None:
    speech = make_speech(4)

    with pytest.raises(CorpusError, match="4 speakers: too few"):
        train_public_model(speech, {}, labels=LABELS, extractor="log-mel", recipe=RECIPE)
