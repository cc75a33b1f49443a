"""One clip's statistics are bounded, are its own, and are what they should be."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sottovoce.shared.calibration import conformal, head_statistics
from sottovoce.shared.calibration.head_statistics import (
    SCORE_QUANTILES,
    SENSITIVITY,
    STATISTICS_SIZE,
    CalibrationQuery,
    CalibrationRelease,
)
from sottovoce.shared.errors import MessageError, SettingError

CLIPS, CLASSES = 40, 4
RANGES = len(SCORE_QUANTILES) + 1


def query(**changes: Any) -> CalibrationQuery:
    """Bins of even width, as a server might ask."""
    usual: dict[str, Any] = {
        "log_temperature": 0.2,
        "curvature": 0.5,
        "edges": torch.linspace(0.2, 0.9, len(SCORE_QUANTILES)),
        "shares": torch.full((RANGES,), 1 / RANGES),
    }
    return CalibrationQuery(**usual | changes)


def clips(scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    generator = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(CLIPS, CLASSES, generator=generator)
    return logits, torch.arange(CLIPS) % CLASSES


def test_the_parts_are_gradient_curvature_and_bin() -> None:
    logits, labels = clips(0.5)  # small enough that nothing is clipped
    asked = query()

    rows = head_statistics.compute_statistics(logits, labels, asked)

    log_temperature = torch.tensor(asked.log_temperature, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        logits.double() * torch.exp(-log_temperature), labels, reduction="sum"
    )
    slope = torch.autograd.grad(loss, log_temperature)[0]
    assert head_statistics.newton_terms(rows.sum(0))[0] == pytest.approx(float(slope), rel=1e-6)
    curvature = head_statistics.mean_curvature(logits, asked.log_temperature)
    assert head_statistics.newton_terms(rows.mean(0))[1] == pytest.approx(
        curvature - asked.curvature, abs=1e-6
    )
    scores = conformal.nonconformity(torch.softmax(logits.double() * math.exp(-0.2), 1), labels)
    ranges = torch.searchsorted(asked.edges.double(), scores)
    assert torch.equal(rows[:, 2:].argmax(1), ranges)
    assert torch.allclose(rows[:, 2:].sum(1), torch.zeros(CLIPS, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e4, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("curvature", [0.0, 9e5])
def test_no_clip_outgrows_the_bound(scale: float, curvature: float) -> None:
    logits, labels = clips(scale)
    far = torch.zeros(RANGES)
    far[0] = 1.0

    for shares in (far, far.flip(0), torch.full((RANGES,), 1 / RANGES), torch.zeros(RANGES)):
        rows = head_statistics.compute_statistics(
            logits, labels, query(curvature=curvature, shares=shares)
        )

        assert rows.shape == (CLIPS, STATISTICS_SIZE)
        assert float(torch.linalg.vector_norm(rows, dim=1).max()) <= SENSITIVITY * (1 + 1e-9)


def test_ranges_less_nothing_add_up_to_the_clips() -> None:
    logits, labels = clips()

    rows = head_statistics.compute_statistics(
        logits, labels, query(shares=torch.zeros(RANGES))
    ).sum(0)

    assert float(rows[2:].sum()) == pytest.approx(CLIPS)


def test_a_broken_clip_adds_zeros_and_changes_no_other() -> None:
    logits, labels = clips()
    whole = head_statistics.compute_statistics(logits, labels, query())
    logits[3, 1] = math.nan

    rows = head_statistics.compute_statistics(logits, labels, query())

    assert not rows[3].any()
    others = torch.arange(CLIPS) != 3
    assert torch.equal(rows[others], whole[others])
    alone = head_statistics.compute_statistics(logits[5:6], labels[5:6], query())
    assert torch.allclose(alone[0], whole[5])


def test_a_share_of_the_own_contribution_is_subtracted() -> None:
    weights, own = torch.arange(3.0), torch.tensor([1.0, 0.0, -2.0])

    assert torch.equal(
        head_statistics.subtract_own_contribution(weights, own, 0.5),
        torch.tensor([-0.5, 1.0, 3.0]),
    )
    assert torch.equal(head_statistics.subtract_own_contribution(weights, own, 0.0), weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"edges": torch.linspace(0.9, 0.2, len(SCORE_QUANTILES))},
        {"edges": torch.linspace(0.2, 1.1, len(SCORE_QUANTILES))},
        {"edges": torch.linspace(0.2, 0.9, len(SCORE_QUANTILES) + 1)},
        {"edges": torch.full((len(SCORE_QUANTILES),), math.nan)},
        {"shares": torch.full((RANGES,), 1.0)},
        {"shares": torch.full((RANGES - 1,), 1 / (RANGES - 1))},
        {"shares": torch.tensor([2.0, -1.0] + [0.0] * (RANGES - 2))},
        {"log_temperature": math.nan},
        {"log_temperature": 11.0},
        {"curvature": -1.0},
        {"curvature": math.nan},
    ],
)
def test_queries_that_no_server_of_ours_sends_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        query(**changes)


@pytest.mark.parametrize("name", ["noise_multiplier", "subtracted_share"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_settings_are_checked(name: str, value: float) -> None:
    usual = {"noise_multiplier": 1.0, "subtracted_share": 0.4}
    with pytest.raises(SettingError, match=name):
        CalibrationRelease(**usual | {name: value})
    with pytest.raises(SettingError, match="subtracted_share"):
        CalibrationRelease(noise_multiplier=1.0, subtracted_share=1.5)
