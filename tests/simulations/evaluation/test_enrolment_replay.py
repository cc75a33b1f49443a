"""Enrolments tried on a finished run are its devices' own; streams are what they are called."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.evaluation import enrolment_replay, personalisation, unlabelled_streams

FEW = {"neutral": 9, "angry": 5, "happy": 5, "sad": 2}


def _clips(**counts: int) -> list[Clip]:
    return [
        Clip(
            clip_id=f"{emotion}{number}", speaker="ada", emotion=emotion, label=emotion, path=Path()
        )
        for emotion, count in counts.items()
        for number in range(count)
    ]


def _mix(clips: list[Clip], indices: tuple[int, ...]) -> Counter[str]:
    return Counter(clips[index].emotion for index in indices)


# --- a finished run ---------------------------------------------------------------------------


def test_a_finished_run_is_heard_as_its_devices_heard_it(tiny_run: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to(tiny_run.users)
    scored = {one.name: one for one in personalisation.load_speakers(tiny_run.folder, tmp_path)}
    everybody = list(enrolment_replay.load_speakers(tiny_run.folder, tmp_path))

    assert {one.name for one in everybody} == set(scored)
    for one in everybody:
        mean = one.plain_mean(range(len(one.clips)))  # the run enrolled its users with all clips
        chances = torch.softmax(one.model.predict_logits(one.features, mean), 1)
        assert torch.equal(one.labels, scored[one.name].labels)
        assert torch.allclose(chances.log(), scored[one.name].logits, atol=1e-3)
        nobody = torch.softmax(one.model.predict_logits(one.features, torch.zeros_like(mean)), 1)
        assert not torch.allclose(nobody.log(), scored[one.name].logits, atol=1e-3)


def test_no_clips_are_no_enrolment_whichever_way(tiny_run: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to(tiny_run.users)
    one = next(iter(enrolment_replay.load_speakers(tiny_run.folder, tmp_path)))
    nobody = torch.zeros_like(one.model.centre)

    assert torch.equal(one.neutral_mean(()), nobody)
    assert torch.equal(one.plain_mean(()), nobody)
    assert torch.equal(one.unlabelled_mean(()), nobody)
    assert torch.equal(one.oracle_unlabelled_mean(()), nobody)
    assert torch.equal(one.unlabelled_mean((), (0, 1)), one.neutral_mean((0, 1)))
    usual = torch.softmax(one.model.predict_logits(one.features, nobody).double(), 1)
    assert one.predict_probabilities(range(len(one.clips)), nobody).shape == usual.shape


# --- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(5))
def test_streams_are_equally_long_and_leave_every_emotion_to_score(number: int) -> None:
    clips = _clips(**FEW)
    found = unlabelled_streams.draw_streams(clips, number, seed=0)

    assert found is not None
    assert len(found.balanced) == len(found.skewed) == 10
    assert _mix(clips, found.skewed)["neutral"] == 8
    assert max(_mix(clips, found.balanced).values()) <= 4, "sad has but one to spare"
    for part in (found.balanced, found.skewed):
        assert len(set(part)) == len(part), "no clip twice"
        assert not set(part) & set(found.scored)
    assert set(_mix(clips, found.scored)) == set(FEW)
    assert {*found.balanced, *found.skewed, *found.scored} == set(range(len(clips)))


def test_draws_differ_and_repeat() -> None:
    clips = _clips(**FEW)
    assert unlabelled_streams.draw_streams(clips, 0, seed=0) == unlabelled_streams.draw_streams(
        clips, 0, seed=0
    )
    assert unlabelled_streams.draw_streams(clips, 0, seed=0) != unlabelled_streams.draw_streams(
        clips, 1, seed=0
    )


@pytest.mark.parametrize(("neutral", "length"), [(4, 0), (5, 5), (13, 15), (99, 20)])
def test_streams_are_as_long_as_neutral_clips_allow(neutral: int, length: int) -> None:
    found = unlabelled_streams.draw_streams(_clips(neutral=neutral, angry=20, sad=20), 0, seed=0)
    assert (len(found.skewed) if found else 0) == length


def test_calm_counts_as_neutral_and_too_few_others_make_no_stream() -> None:
    clips = _clips(neutral=4, calm=8, angry=8)
    found = unlabelled_streams.draw_streams(clips, 0, seed=0)
    assert found is not None
    assert sum(_mix(clips, found.skewed)[name] for name in ("neutral", "calm")) == 8
    assert unlabelled_streams.draw_streams(_clips(neutral=9, angry=1), 0, seed=0) is None
