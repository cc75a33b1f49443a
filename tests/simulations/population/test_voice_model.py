"""Voices in feature space: the covariances of the corpus, the same in any order."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce.shared.errors import AudioError, FeatureError, ModelError
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.population.users import FeatureOnlyVoice
from sottovoce.simulations.population.voice_model import VoiceModel, fit_voice_model

LABELS = ("angry", "calm", "sad")
WIDTH, SPEAKERS, EACH = 10, 60, 4


@pytest.fixture(scope="module")
def corpus() -> tuple[Mapping[str, list[Clip]], Mapping[str, torch.Tensor]]:
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
            voice = FeatureOnlyVoice(seed=0, index=person, number=number)
            word = LABELS[emotion]
            clip = Clip(
                clip_id=name, speaker=f"s{person:02d}", emotion=word, label=word, voice=voice
            )
            clips.setdefault(clip.speaker, []).append(clip)
            features[name] = torch.from_numpy(row).float()
    return clips, features


@pytest.fixture(scope="module")
def voices(corpus: tuple[Mapping[str, list[Clip]], Mapping[str, torch.Tensor]]) -> VoiceModel:
    return fit_voice_model(LABELS, *corpus)


def test_users_vary_as_the_speakers_do(voices: VoiceModel) -> None:
    users = [voices.draw_user(1, index, 12) for index in range(1_500)]
    means = torch.stack([features.mean(0) for features, _ in users])
    deviation = means.std(0)

    assert abs(deviation[0] / 5 - 1) < 0.25, "who speaks"
    assert bool((deviation[4:] < 0.5).all())
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


def test_a_user_follows_from_seed_and_place_alone(voices: VoiceModel, tmp_path: Path) -> None:
    voices.save(tmp_path / "v.safetensors")
    loaded = VoiceModel.load(tmp_path / "v.safetensors")
    features, labels = voices.draw_user(1, 5, 12)

    assert torch.equal(features, loaded.draw_user(1, 5, 12)[0])
    assert torch.equal(labels, loaded.draw_user(1, 5, 12)[1])
    assert not torch.equal(features[:3], voices.draw_user(2, 5, 12)[0][:3])
    assert not torch.equal(features[:3], voices.draw_user(1, 6, 12)[0][:3])
    assert 6 <= len(features) <= 18
    assert features.dtype == torch.float32


def test_users_have_more_and_fewer_clips_and_lean_to_some_emotions(voices: VoiceModel) -> None:
    sizes = [len(voices.draw_user(1, index, 12)[1]) for index in range(300)]
    assert min(sizes) == 6
    assert max(sizes) == 18
    shares = [voices.draw_user(1, index, 200)[1].bincount(minlength=3).max() for index in range(50)]
    assert float(torch.stack(shares).float().mean()) / 200 > 0.4


def test_frames_and_too_few_speakers_are_refused(
    corpus: tuple[Mapping[str, list[Clip]], Mapping[str, torch.Tensor]],
) -> None:
    clips, features = corpus
    with pytest.raises(FeatureError, match="of 2 speakers"):
        fit_voice_model(LABELS, {name: clips[name] for name in list(clips)[:2]}, features)
    framed = {name: row.expand(4, -1) for name, row in features.items()}
    with pytest.raises(FeatureError, match="2 axes"):
        fit_voice_model(LABELS, clips, framed)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "v.safetensors").write_bytes(b"none")
    with pytest.raises(ModelError, match="holds no voices"):
        VoiceModel.load(tmp_path / "v.safetensors")


def test_there_is_no_sound() -> None:
    with pytest.raises(AudioError, match="clip 3 of user-000000007 was drawn as features"):
        FeatureOnlyVoice(seed=1, index=7, number=3).render()
