"""A finished run on a corpus that its models never saw."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def strangers(make_corpus: Callable[..., Path], tmp_path: Path) -> Path:
    """Hums of other speakers, some of an emotion that the models do not know."""
    return make_corpus(
        tmp_path / "strangers", speakers=5, clips=15, labels=("angry", "neutral", "happy")
    )


def test_a_run_is_tried_on_a_corpus_by_its_manifest_alone(
    say: Say, tiny_run: Any, strangers: Path
) -> None:
    status, out, _ = say("crosscorpus", tiny_run.folder, "--data", strangers, "--json")
    found = json.loads(out)

    assert status == 0
    # Happy is unknown to the models: its clips are adapted to, and never scored.
    assert (found["clips"], found["speakers"]) == (50, 5)
    assert sorted(found["emotions"]) == ["angry", "neutral"]
    for one in found["uar"].values():
        assert 0 <= one["low"] <= one["estimate"] <= one["high"] <= 1
    # Hums differ by pitch, as the users' do: who knows the speaker's own pitch tells them apart.
    assert found["uar"]["user"]["estimate"] > 0.6
    assert found["uar"]["user"]["estimate"] >= found["uar"]["none"]["estimate"]

    status, out, _ = say("crosscorpus", tiny_run.folder, "--data", strangers)
    assert status == 0
    assert f"{found['uar']['user']['estimate']:.3f}" in out.splitlines()[-1]


def test_a_corpus_that_took_part_is_refused(say: Say, tiny_run: Any) -> None:
    for folder in (tiny_run.users, tiny_run.public):
        status, _, last = say("crosscorpus", tiny_run.folder, "--data", folder)

        assert status == 2
        assert "took part" in last


def test_what_cannot_be_tried_is_refused_with_a_way_out(
    say: Say, tiny_run: Any, strangers: Path, make_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    status, _, last = say("crosscorpus", tmp_path, "--data", strangers)
    assert (status, "sottovoce simulate" in last) == (2, True)

    others = make_corpus(tmp_path / "others", labels=("angry", "happy", "sad"))
    status, _, last = say("crosscorpus", tiny_run.folder, "--data", others)
    assert (status, "--label-map" in last) == (2, True)

    status, _, last = say("crosscorpus", tiny_run.folder, "--data", strangers, "--unlabelled", 0)
    assert (status, "unlabelled is 0" in last) == (2, True)
