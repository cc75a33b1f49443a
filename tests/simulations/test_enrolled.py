"""Enrolments tried on a finished run are its devices' own; streams are what they are called."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.simulations import enrolled, personal, streams
from sottovoce.simulations.corpora.clips import Clip

FEW = {"neutral": 9, "angry": 5, "happy": 5, "sad": 2}


def _clips(**counts: int) -> list[Clip]:
    return [
        Clip(
            clip_id=f"{emotion}{number}", speaker="ada", emotion=emotion, label=emotion, path=Path()
        )
        for emotion, count in counts.items()
        for number in range(count)
    ]


def _mix(clips: list[Clip], places: tuple[int, ...]) -> Counter[str]:
    return Counter(clips[place].emotion for place in places)


# --- a finished run ---------------------------------------------------------------------------


def test_a_finished_run_is_heard_as_its_devices_heard_it(tiny_run: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to(tiny_run.users)
    kept = {one.speaker: one for one in personal.people(tiny_run.folder, tmp_path)}
    everybody = list(enrolled.speakers(tiny_run.folder, tmp_path))

    assert {one.name for one in everybody} == set(kept)
    for one in everybody:
        mean = one.plain(range(len(one.clips)))  # the run enrolled its users with all clips
        chances = torch.softmax(one.model.logits(one.rows, mean), 1)
        assert torch.equal(one.labels, kept[one.name].labels)
        assert torch.allclose(chances.log(), kept[one.name].logits, atol=1e-3)
        nobody = torch.softmax(one.model.logits(one.rows, torch.zeros_like(mean)), 1)
        assert not torch.allclose(nobody.log(), kept[one.name].logits, atol=1e-3)


def test_no_clips_are_no_enrolment_whichever_way(tiny_run: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to(tiny_run.users)
    one = next(iter(enrolled.speakers(tiny_run.folder, tmp_path)))
    nobody = torch.zeros_like(one.model.centre)

    assert torch.equal(one.neutral(()), nobody)
    assert torch.equal(one.plain(()), nobody)
    assert torch.equal(one.unlabelled(()), nobody)
    assert torch.equal(one.unlabelled_but_neutral(()), nobody)
    assert torch.equal(one.unlabelled((), (0, 1)), one.neutral((0, 1)))
    usual = torch.softmax(one.model.logits(one.rows, nobody).double(), 1)
    assert one.chances(range(len(one.clips)), nobody).shape == usual.shape


# --- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(5))
def test_streams_are_equally_long_and_leave_every_emotion_to_score(number: int) -> None:
    clips = _clips(**FEW)
    found = streams.draw(clips, number, seed=0)

    assert found is not None
    assert len(found.even) == len(found.skewed) == 10
    assert _mix(clips, found.skewed)["neutral"] == 8
    assert max(_mix(clips, found.even).values()) <= 4, "sad has but one to spare"
    for part in (found.even, found.skewed):
        assert len(set(part)) == len(part), "no clip twice"
        assert not set(part) & set(found.scored)
    assert set(_mix(clips, found.scored)) == set(FEW)
    assert {*found.even, *found.skewed, *found.scored} == set(range(len(clips)))


def test_draws_differ_and_repeat() -> None:
    clips = _clips(**FEW)
    assert streams.draw(clips, 0, seed=0) == streams.draw(clips, 0, seed=0)
    assert streams.draw(clips, 0, seed=0) != streams.draw(clips, 1, seed=0)


@pytest.mark.parametrize(("neutral", "length"), [(4, 0), (5, 5), (13, 15), (99, 20)])
def test_streams_are_as_long_as_neutral_clips_allow(neutral: int, length: int) -> None:
    found = streams.draw(_clips(neutral=neutral, angry=20, sad=20), 0, seed=0)
    assert (len(found.skewed) if found else 0) == length


def test_calm_counts_as_neutral_and_too_few_others_make_no_stream() -> None:
    clips = _clips(neutral=4, calm=8, angry=8)
    found = streams.draw(clips, 0, seed=0)
    assert found is not None
    assert sum(_mix(clips, found.skewed)[name] for name in ("neutral", "calm")) == 8
    assert streams.draw(_clips(neutral=9, angry=1), 0, seed=0) is None
