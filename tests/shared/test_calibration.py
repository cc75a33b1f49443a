"""One clip's answer is bounded, is its own, and says what it should."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sottovoce.shared import calibration, conformal
from sottovoce.shared.calibration import LEVELS, SENSITIVITY, WIDTH, CalibrationRelease, Question
from sottovoce.shared.errors import MessageError, SettingError

CLIPS, CLASSES = 40, 4
RANGES = len(LEVELS) + 1


def question(**changes: Any) -> Question:
    """Ranges of even width, as a server might ask."""
    usual: dict[str, Any] = {
        "log_temperature": 0.2,
        "bend": 0.5,
        "edges": torch.linspace(0.2, 0.9, len(LEVELS)),
        "shares": torch.full((RANGES,), 1 / RANGES),
    }
    return Question(**usual | changes)


def clips(scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    generator = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(CLIPS, CLASSES, generator=generator)
    return logits, torch.arange(CLIPS) % CLASSES


def test_the_parts_are_slope_bend_and_range() -> None:
    logits, labels = clips(0.5)  # small enough that nothing is clipped
    asked = question()

    told = calibration.answers(logits, labels, asked)

    place = torch.tensor(asked.log_temperature, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        logits.double() * torch.exp(-place), labels, reduction="sum"
    )
    slope = torch.autograd.grad(loss, place)[0]
    assert calibration.slopes_of(told.sum(0))[0] == pytest.approx(float(slope), rel=1e-6)
    bend = calibration.usual_bend(logits, asked.log_temperature)
    assert calibration.slopes_of(told.mean(0))[1] == pytest.approx(bend - asked.bend, abs=1e-6)
    scores = conformal.scores(torch.softmax(logits.double() * math.exp(-0.2), 1), labels)
    ranges = torch.searchsorted(asked.edges.double(), scores)
    assert torch.equal(told[:, 2:].argmax(1), ranges)
    assert torch.allclose(told[:, 2:].sum(1), torch.zeros(CLIPS, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e4, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("bend", [0.0, 9e5])
def test_no_clip_outgrows_the_bound(scale: float, bend: float) -> None:
    logits, labels = clips(scale)
    far = torch.zeros(RANGES)
    far[0] = 1.0

    for shares in (far, far.flip(0), torch.full((RANGES,), 1 / RANGES), torch.zeros(RANGES)):
        told = calibration.answers(logits, labels, question(bend=bend, shares=shares))

        assert told.shape == (CLIPS, WIDTH)
        assert float(torch.linalg.vector_norm(told, dim=1).max()) <= SENSITIVITY * (1 + 1e-9)


def test_ranges_less_nothing_add_up_to_the_clips() -> None:
    logits, labels = clips()

    told = calibration.answers(logits, labels, question(shares=torch.zeros(RANGES))).sum(0)

    assert float(told[2:].sum()) == pytest.approx(CLIPS)


def test_a_broken_clip_adds_zeros_and_changes_no_other() -> None:
    logits, labels = clips()
    whole = calibration.answers(logits, labels, question())
    logits[3, 1] = math.nan

    told = calibration.answers(logits, labels, question())

    assert not told[3].any()
    others = torch.arange(CLIPS) != 3
    assert torch.equal(told[others], whole[others])
    alone = calibration.answers(logits[5:6], labels[5:6], question())
    assert torch.allclose(alone[0], whole[5])


def test_a_share_of_what_was_given_is_taken_back() -> None:
    weights, given = torch.arange(3.0), torch.tensor([1.0, 0.0, -2.0])

    assert torch.equal(calibration.taken_back(weights, given, 0.5), torch.tensor([-0.5, 1.0, 3.0]))
    assert torch.equal(calibration.taken_back(weights, given, 0.0), weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"edges": torch.linspace(0.9, 0.2, len(LEVELS))},
        {"edges": torch.linspace(0.2, 1.1, len(LEVELS))},
        {"edges": torch.linspace(0.2, 0.9, len(LEVELS) + 1)},
        {"edges": torch.full((len(LEVELS),), math.nan)},
        {"shares": torch.full((RANGES,), 1.0)},
        {"shares": torch.full((RANGES - 1,), 1 / (RANGES - 1))},
        {"shares": torch.tensor([2.0, -1.0] + [0.0] * (RANGES - 2))},
        {"log_temperature": math.nan},
        {"log_temperature": 11.0},
        {"bend": -1.0},
        {"bend": math.nan},
    ],
)
def test_questions_that_no_server_of_ours_asks_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        question(**changes)


@pytest.mark.parametrize("name", ["noise_multiplier", "taken_back"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_settings_are_checked(name: str, value: float) -> None:
    usual = {"noise_multiplier": 1.0, "taken_back": 0.4}
    with pytest.raises(SettingError, match=name):
        CalibrationRelease(**usual | {name: value})
    with pytest.raises(SettingError, match="taken_back"):
        CalibrationRelease(noise_multiplier=1.0, taken_back=1.5)
