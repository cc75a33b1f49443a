"""Runs of one corpus, and of two together, that a third judges."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce.simulations.corpora import open_corpus
from sottovoce.simulations.experiments.generalisation import cross_corpus, transfer


def test_no_corpus_judges_a_run_that_it_took_part_in() -> None:
    transfers = list(cross_corpus.list_transfers([0, 1]))

    assert all(one.judge not in (*one.users, one.public) for one in transfers)
    assert len({(one.run_name, one.judge) for one in transfers}) == len(transfers) == 36


def test_two_corpora_train_together_and_their_public_speakers_stay_out(
    make_corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, hertz in (("ravdess", 90.0), ("emodb", 97.0)):
        make_corpus(tmp_path / name, speakers=6, labels=("angry", "neutral", "calm"), hertz=hertz)
    monkeypatch.setattr(
        cross_corpus, "open_corpus", lambda name, folder: open_corpus("folder", folder)
    )

    cross_corpus.combine_corpora(tmp_path, ("ravdess", "emodb"), tmp_path / "both")

    users, public = (
        open_corpus("folder", tmp_path / "both" / room, follow_links=True)
        for room in ("users", "public")
    )
    # The first and the sixth of six speakers of each are public.
    assert len({clip.speaker for clip in users.clips}) == 8
    assert len({clip.speaker for clip in public.clips}) == 4
    assert not {clip.speaker for clip in users.clips} & {clip.speaker for clip in public.clips}
    # Calm is no emotion that all three corpora have.
    assert set(users.emotions) == {"angry", "neutral"}
    assert all(clip.path and clip.path.is_file() for clip in users.clips)


def test_utterances_that_are_adapted_to_are_not_scored(
    tiny_run: Any, make_corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_corpus("folder", make_corpus(tmp_path / "strangers", speakers=3, clips=8))
    counted: list[int] = []
    measure = transfer.bootstrap.uar_interval

    def count(users: np.ndarray, generator: np.random.Generator) -> object:
        counted.append(int(users.sum()))
        return measure(users, generator)

    monkeypatch.setattr(transfer.bootstrap, "uar_interval", count)
    torch.set_num_threads(1)

    transfer.measure_transfer(
        tiny_run.folder, corpus, known=("none", "unlabelled", "user"), unlabelled=3
    )

    folds = len(list(tiny_run.folder.glob("checkpoints/*/server")))
    assert counted == [24 * folds, 15 * folds, 24 * folds]
