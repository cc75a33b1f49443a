"""What a curriculum weighs, and that it bounds and couples as before."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from builders import make_examples

from sottovoce.client.training.curriculum_weights import compute_curriculum_weights
from sottovoce.client.training.local_trainer import TrainingSettings, compute_gradient_sum
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.losses import Loss
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.protocol.local_training import (
    Curriculum,
    ExampleLevelMechanism,
    LocalTraining,
)

CLASSES, WIDTH, CLIP = 3, 4, 0.5
VOTES = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.6, 0.2], [0.0, 0.5, 0.5]])
CLIPS = replace(
    make_examples(
        20 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0)), classes=CLASSES
    ),
    votes=VOTES,
)
LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, -4.0]])


def weights(kind: str, progress: float, strength: float = 2.0) -> list[float] | None:
    found = compute_curriculum_weights(
        Curriculum(kind=kind, strength=strength), LOGITS, CLIPS, progress
    )
    return None if found is None else found.tolist()


def test_agreement_is_the_largest_share_of_the_votes() -> None:
    assert weights("agreement", 0.0) == pytest.approx([1.0, 0.36, 0.25])
    assert weights("agreement", 0.5) == pytest.approx([1.0, 0.6, 0.5])


def test_confidence_is_the_model_s_own_in_the_label() -> None:
    chances = torch.softmax(LOGITS, 1).diagonal().tolist()

    assert weights("confidence", 0.5) == pytest.approx(chances)


@pytest.mark.parametrize("kind", ["agreement", "confidence"])
def test_in_the_last_round_all_count_in_full(kind: str) -> None:
    assert weights(kind, 1.0) is None
    assert weights("none", 0.0) is None


def test_without_votes_everybody_agrees() -> None:
    plain = replace(CLIPS, votes=None)
    curriculum = Curriculum(kind="agreement")

    assert compute_curriculum_weights(curriculum, LOGITS, plain, 0.0) is None


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("model", ["linear", "mlp", "cnn-attention"])
@pytest.mark.parametrize("kind", ["agreement", "confidence"])
@pytest.mark.parametrize("loss", ["cross-entropy", "ordinal", "hierarchical"])
def test_one_utterance_moves_the_sum_by_the_clip_at_most(
    model: str, kind: str, loss: str, isolated: bool
) -> None:
    """The factor goes before the clip, and nobody else's depends on the utterance."""
    network = build_network(ModelSpec(kind=model, inputs=WIDTH, classes=CLASSES, hidden=8), seed=0)
    clips = CLIPS
    if network.axes == 3:
        clips = replace(
            CLIPS, features=CLIPS.features[:, None].repeat(1, 9, 1), frames=torch.full((3,), 9)
        )
    training = LocalTraining(
        steps=1,
        sample_rate=1.0,
        learning_rate=1.0,
        denominator=1.0,
        loss=Loss(kind=loss, weight=1e4).assign_coordinates(("sad", "happy", "angry")),
        targets="soft",
        curriculum=Curriculum(kind=kind),
    )
    settings = TrainingSettings(
        local_training=training,
        mechanism=ExampleLevelMechanism(clip_norm=CLIP, noise_multiplier=1.0),
        class_weights=torch.tensor([1.0, 2.0, 100.0]),
        isolate_examples=isolated,
        progress=0.25,
    )
    sums = [
        compute_gradient_sum(network, clips.select(slice(n)), settings, torch.Generator())
        for n in range(4)
    ]

    for fewer, more in pairwise(sums):
        assert torch.linalg.vector_norm(more - fewer) <= CLIP * (1 + 1e-5)
    alone = compute_gradient_sum(network, clips.select(slice(2, 3)), settings, torch.Generator())
    torch.testing.assert_close(sums[3] - sums[2], alone, atol=1e-6, rtol=1e-5)
    assert torch.linalg.vector_norm(alone) > 0


@pytest.mark.parametrize("strength", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_a_strength_that_is_none_is_refused(strength: float) -> None:
    with pytest.raises(SettingError, match="strength"):
        Curriculum(kind="agreement", strength=strength)


def test_a_loss_of_whole_batches_cannot_be_weighed() -> None:
    with pytest.raises(SettingError, match="couples utterances"):
        LocalTraining(
            steps=1,
            sample_rate=1.0,
            learning_rate=1.0,
            denominator=1.0,
            loss=Loss(kind="mmce"),
            curriculum=Curriculum(kind="confidence"),
        )


@pytest.mark.parametrize("kind", ["agreement", "confidence"])
def test_no_weight_depends_on_another_utterance(kind: str) -> None:
    curriculum = Curriculum(kind=kind)
    everybody = compute_curriculum_weights(curriculum, LOGITS, CLIPS, 0.0)
    fewer = compute_curriculum_weights(curriculum, LOGITS[:2], CLIPS.select(slice(2)), 0.0)

    assert everybody is not None
    assert fewer is not None
    assert torch.equal(everybody[:2], fewer)
