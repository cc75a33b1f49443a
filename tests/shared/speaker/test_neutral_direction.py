"""Where neutral speech lies is told by the users' model, not by the corpus that it listens to."""

import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared.errors import ModelError
from sottovoce.shared.speaker import neutral_direction

LABELS = ("angry", "calm", "neutral", "sad")
INPUTS = 5
RANDOM = torch.Generator().manual_seed(0)
MIXING = torch.eye(INPUTS) + 0.5 * torch.randn(INPUTS, INPUTS, generator=RANDOM)
"""How inputs hang together within a speaker: not one by one."""
OFFSET = torch.tensor([1.0, -0.5, 0.0, 0.5, 0.0])
"""Where the users' neutral speech lies."""


def _weights() -> Tensor:
    """Of a linear discriminant: offsets behind the inverse of the covariance."""
    offsets = torch.stack([-OFFSET, OFFSET, OFFSET, -OFFSET])
    return torch.linalg.solve(MIXING @ MIXING.T, offsets.T).T


def _speakers(count: int = 6, size: int = 400, axes: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Public speakers whose emotions lie nowhere in particular, and what the model says of them."""
    spoken = []
    for _ in range(count):
        own = 3 * torch.randn(INPUTS, generator=RANDOM)
        rows = own + torch.randn(size, INPUTS, generator=RANDOM) @ MIXING.T
        logits = rows @ _weights().T
        spoken.append((rows if axes == 2 else rows[:, None], logits))
    return spoken


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_the_model_tells_where_its_users_neutral_speech_lies() -> None:
    found = neutral_direction.estimate_direction(_speakers(), LABELS)

    assert found is not None
    assert (found.dtype, found.shape) == (torch.float32, (INPUTS,))
    assert float(found.norm()) == pytest.approx(1.0)
    assert _cosine(found, OFFSET) > 0.98
    weights = _weights()
    assert _cosine(weights[1] - weights.mean(0), OFFSET) < 0.9, "weights alone do not"


def test_speakers_own_voices_say_nothing() -> None:
    speakers = _speakers()
    moved = [(rows + 100 * place, logits) for place, (rows, logits) in enumerate(speakers)]
    found, again = (
        neutral_direction.estimate_direction(spoken, LABELS) for spoken in (speakers, moved)
    )

    assert found is not None
    assert again is not None
    torch.testing.assert_close(found, again, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("speakers", "labels"),
    [
        ([], LABELS),
        (_speakers(axes=3), LABELS),
        (_speakers(), ("angry", "bored", "happy", "sad")),
        (_speakers(), ("calm", "neutral", "calm", "neutral")),
        ([(rows, 0 * logits) for rows, logits in _speakers()], LABELS),
        ([(math.nan * rows, logits) for rows, logits in _speakers()], LABELS),
    ],
)
def test_where_nothing_is_told_there_is_no_direction(
    speakers: list[tuple[Tensor, Tensor]], labels: tuple[str, ...]
) -> None:
    assert neutral_direction.estimate_direction(speakers, labels) is None


def test_only_unit_vectors_of_the_right_width_are_directions() -> None:
    neutral_direction.validate_direction(None, INPUTS)
    neutral_direction.validate_direction(OFFSET / OFFSET.norm(), INPUTS)
    for wrong in (OFFSET, 0 * OFFSET, math.nan * OFFSET, torch.ones(1), torch.ones(1, INPUTS)):
        with pytest.raises(ModelError, match=rf"needed: \({INPUTS},\) and 1"):
            neutral_direction.validate_direction(wrong, INPUTS)
