"""What a fold's clips become: examples, with the votes of raters where training reads them."""

from dataclasses import replace
from pathlib import Path

import torch

from sottovoce.shared.models.projection import identity_projection
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.speaker.normalisation import default_statistics
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.data.fold_inputs import FoldInputs

LABELS = ("happy", "sad", "angry")


def clip(name: str, emotion: str, *votes: tuple[str, int]) -> Clip:
    return Clip(
        clip_id=name, speaker="ana", emotion=emotion, label=emotion, path=Path(name), votes=votes
    )


CLIPS = (
    clip("a", "sad", ("sad", 3), ("happy", 1)),
    clip("b", "sad", ("sad", 3), ("bored", 2)),
    clip("c", "angry"),
    clip("d", "angry", ("bored", 4)),
)
INPUTS = FoldInputs(
    labels=LABELS,
    features={one.clip_id: torch.ones(2) for one in CLIPS},
    clips={"ana": CLIPS},
    projection=identity_projection(2),
    speaker_statistics=default_statistics(2),
    familiar_speech=None,
    model_spec=ModelSpec(kind="linear", inputs=2, classes=3),
    initial_weights=torch.zeros(9),
    held_out_file=None,
)


def test_shares_are_of_the_votes_for_classes_that_the_run_has() -> None:
    examples = replace(INPUTS, reads_votes=True).build_examples(CLIPS)

    assert examples.votes is not None
    assert examples.votes.tolist() == [[0.25, 0.75, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert examples.labels.tolist() == [1, 1, 2, 2], "the majority, which is evaluated"


def test_votes_come_where_training_reads_them_alone() -> None:
    assert INPUTS.build_examples(CLIPS).votes is None
    assert replace(INPUTS, reads_votes=True).build_examples(CLIPS, labelled=False).votes is None
