"""Running sums: the same bound, the same noise and the same record as sums over lists."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_plan

from sottovoce.server.aggregation.private_sums import LEDGER_FILE, LEDGER_OWNER, PrivateAggregator
from sottovoce.server.aggregation.streaming_sums import ClippedAccumulator, StreamingAggregator
from sottovoce.shared.errors import BudgetSpent
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, SumMechanism
from sottovoce.shared.privacy.user_level import UserLevelPrivacy

NOISE = SumMechanism(noise_multiplier=3.0, clip_norm=2.0, noised_by=NoiseSource.SERVER)
PLAN = make_plan(
    user=UserLevelPrivacy(counts=NOISE, centre=NOISE, update=replace(NOISE, sample_rate=0.1))
)
SIZE = 4_000


def _summed(parts: list[torch.Tensor], user: SumMechanism | None = NOISE) -> ClippedAccumulator:
    summed = ClippedAccumulator(SIZE, user)
    for part in parts:
        summed.add(part)
    return summed


def _parts(count: int, length: float) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(5)
    drawn = torch.randn(count, SIZE, generator=rng)
    return list(drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True) * length)


def test_it_is_the_sum_that_a_list_would_give(tmp_path: Path) -> None:
    """Bound, noise and all: an auditor of the one has audited the other."""
    parts = _parts(7, length=5.0)
    listed = PrivateAggregator(PLAN, tmp_path / "a", budgets=[], seed=1)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = listed.release_updates(2, parts, denominator=1.0)
    running = StreamingAggregator(PLAN, tmp_path / "b", budgets=[], seed=1)
    other = running.release_sum("round-2", PLAN.gradient_release(2), _summed(parts))

    assert torch.equal(one, other)
    files = [(tmp_path / name / LEDGER_FILE).read_bytes() for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize("length", [0.0, 1.0, 2.0, 1e6, math.inf, math.nan])
def test_no_user_moves_it_by_more_than_the_bound(length: float) -> None:
    without = _summed(_parts(3, 1.0))
    one = _summed([*_parts(3, 1.0), torch.full((SIZE,), length)])

    assert torch.linalg.vector_norm(one.total - without.total) <= 2.0 * (1 + 1e-6)


def test_what_is_no_number_adds_nothing_where_nothing_is_promised() -> None:
    summed = _summed([torch.full((SIZE,), math.nan), torch.ones(SIZE) * 1e6], user=None)
    assert torch.equal(summed.total, torch.ones(SIZE, dtype=torch.float64) * 1e6)


def test_nothing_of_a_user_is_kept() -> None:
    summed = _summed(_parts(50, 1.0))
    held = [value for value in vars(summed).values() if isinstance(value, torch.Tensor)]

    assert [tensor.numel() for tensor in held] == [SIZE]
    assert not any(isinstance(value, list | dict | tuple) for value in vars(summed).values())


def test_a_total_that_is_read_is_not_the_one_that_grows() -> None:
    summed = _summed(_parts(2, 1.0))
    before = summed.total
    before += 1
    assert not torch.equal(before, summed.total)


def test_a_sum_of_nobody_is_noise_of_the_promised_size(tmp_path: Path) -> None:
    sums = StreamingAggregator(PLAN, tmp_path, budgets=[], seed=1)
    drawn = sums.release_sum("round-1", PLAN.gradient_release(1), _summed([])).numpy()
    spread = NOISE.noise_multiplier * NOISE.clip_norm

    assert abs(np.std(drawn) / spread - 1) < 0.05
    assert abs(np.mean(drawn)) < 5 * spread / SIZE**0.5


def test_it_is_booked_before_it_is_noised_and_refused_where_the_budget_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = PrivacyBudget(epsilon=0.01, delta=1e-5, unit=PrivacyUnit.USER)
    sums = StreamingAggregator(PLAN, tmp_path, budgets=[budget], seed=1)
    with pytest.raises(BudgetSpent):
        sums.release_sum("label-counts", PLAN.counts_release(), _summed([]))
    assert not (tmp_path / LEDGER_FILE).exists()

    seen = []
    free = StreamingAggregator(PLAN, tmp_path, budgets=[], seed=1)
    add = SeededGaussianSampler.add_noise

    def watched(self: SeededGaussianSampler, values: torch.Tensor, std: float) -> torch.Tensor:
        seen.append(
            len(Ledger(tmp_path / LEDGER_FILE, owner=LEDGER_OWNER, read_only=True).releases)
        )
        return add(self, values, std)

    monkeypatch.setattr(SeededGaussianSampler, "add_noise", watched)
    free.release_sum("label-counts", PLAN.counts_release(), _summed([]))
    assert seen == [1]


@pytest.mark.parametrize("seed", [1, None])
def test_asked_again_a_server_gives_the_same_and_pays_once(
    tmp_path: Path, seed: int | None
) -> None:
    first, again = (
        StreamingAggregator(PLAN, tmp_path, budgets=[], seed=seed).release_sum(
            "round-1", PLAN.gradient_release(1), _summed([])
        )
        for _ in range(2)
    )
    assert torch.equal(first, again)
    assert len(StreamingAggregator(PLAN, tmp_path, budgets=[], seed=seed).ledger.releases) == 1
