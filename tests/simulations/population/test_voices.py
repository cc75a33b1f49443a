"""Voices in feature space: the covariances that were heard, the same in any order."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce.shared.errors import AudioError, FeatureError, ModelError
from sottovoce.simulations.corpora.clips import Clip
from sottovoce.simulations.population.crowd import Unheard
from sottovoce.simulations.population.voices import Voices, fit

LABELS = ("angry", "calm", "sad")
WIDTH, SPEAKERS, EACH = 10, 60, 4


@pytest.fixture(scope="module")
def heard() -> tuple[Mapping[str, list[Clip]], Mapping[str, torch.Tensor]]:
    """Speakers whose parts are known: far apart in one direction, emotions in two others."""
    rng = np.random.default_rng(3)
    clips: dict[str, list[Clip]] = {}
    features: dict[str, torch.Tensor] = {}
    for person in range(SPEAKERS):
        who = np.zeros(WIDTH)
        who[0] = 5 * rng.normal()
        for number in range(EACH * len(LABELS)):
            emotion = number % len(LABELS)
            row = who + 0.5 * rng.normal(size=WIDTH)
            row[1 + emotion] += 3
            name = f"s{person:02d}/{number}"
            voice = Unheard(seed=0, place=person, number=number)
            word = LABELS[emotion]
            clip = Clip(
                clip_id=name, speaker=f"s{person:02d}", emotion=word, label=word, voice=voice
            )
            clips.setdefault(clip.speaker, []).append(clip)
            features[name] = torch.from_numpy(row).float()
    return clips, features


@pytest.fixture(scope="module")
def voices(heard: tuple[Mapping[str, list[Clip]], Mapping[str, torch.Tensor]]) -> Voices:
    return fit(LABELS, *heard)


def test_a_crowd_varies_as_those_who_were_heard(voices: Voices) -> None:
    users = [voices.user(1, place, 12) for place in range(1_500)]
    means = torch.stack([features.mean(0) for features, _ in users])
    spread = means.std(0)

    assert abs(spread[0] / 5 - 1) < 0.25, "who speaks"
    assert bool((spread[4:] < 0.5).all())
    for label in range(len(LABELS)):
        rows = torch.cat([features[labels == label] for features, labels in users]).mean(0)
        others = torch.cat([features[labels != label] for features, labels in users]).mean(0)
        assert abs(float((rows - others)[1 + label]) - 3) < 0.3, "what an emotion adds"
    left = torch.cat(
        [features[labels == 0] - features[labels == 0].mean(0) for features, labels in users]
    )
    sizes = torch.tensor([int((labels == 0).sum()) for _, labels in users]).clamp(min=1)
    shrunk = ((sizes - 1).sum() / sizes.sum()).sqrt()
    assert abs(float(left[:, 7].std() / shrunk) / 0.5 - 1) < 0.15, "what is left"


def test_a_user_follows_from_seed_and_place_alone(voices: Voices, tmp_path: Path) -> None:
    voices.save(tmp_path / "v.safetensors")
    kept = Voices.load(tmp_path / "v.safetensors")
    features, labels = voices.user(1, 5, 12)

    assert torch.equal(features, kept.user(1, 5, 12)[0])
    assert torch.equal(labels, kept.user(1, 5, 12)[1])
    assert not torch.equal(features[:3], voices.user(2, 5, 12)[0][:3])
    assert not torch.equal(features[:3], voices.user(1, 6, 12)[0][:3])
    assert 6 <= len(features) <= 18
    assert features.dtype == torch.float32


def test_users_have_more_and_fewer_clips_and_lean_to_some_emotions(voices: Voices) -> None:
    sizes = [len(voices.user(1, place, 12)[1]) for place in range(300)]
    assert min(sizes) == 6
    assert max(sizes) == 18
    shares = [voices.user(1, place, 200)[1].bincount(minlength=3).max() for place in range(50)]
    assert float(torch.stack(shares).float().mean()) / 200 > 0.4


def test_frames_and_too_few_speakers_are_refused(
    heard: tuple[Mapping[str, list[Clip]], Mapping[str, torch.Tensor]],
) -> None:
    clips, features = heard
    with pytest.raises(FeatureError, match="of 2 speakers"):
        fit(LABELS, {name: clips[name] for name in list(clips)[:2]}, features)
    framed = {name: row.expand(4, -1) for name, row in features.items()}
    with pytest.raises(FeatureError, match="2 axes"):
        fit(LABELS, clips, framed)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "v.safetensors").write_bytes(b"none")
    with pytest.raises(ModelError, match="holds no voices"):
        Voices.load(tmp_path / "v.safetensors")


def test_there_is_no_sound() -> None:
    with pytest.raises(AudioError, match="clip 3 of user-000000007 was drawn as features"):
        Unheard(seed=1, place=7, number=3).render()
