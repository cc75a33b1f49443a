"""Sums under correlated noise: its covariance, its cost, what a crash leaves."""

import math
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import is_unlocked, make_plan
from safetensors.torch import load_file
from torch import Tensor

from sottovoce.server.aggregation import correlated_noise, private_sums
from sottovoce.server.aggregation.private_sums import LEDGER_FILE, LEDGER_OWNER, PrivateAggregator
from sottovoce.server.aggregation.server_optimizer import AggregationSettings, compute_learning_rate
from sottovoce.shared.errors import BudgetSpent, PrivacyError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.gaussian_noise import SystemGaussianSampler, lattice_step
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, ReleaseKind, SumMechanism
from sottovoce.shared.privacy.user_level import UserLevelPrivacy
from sottovoce.shared.protocol.training_plan import Plan

SIZE, ROUNDS, DELTA = 4_000, 6, 1e-3
BANDS = BandedNoise.from_square_root(bands=3, min_separation=3)
HIDDEN = SumMechanism(noise_multiplier=3.0, clip_norm=2.0, noised_by=NoiseSource.SERVER)
USERS = UserLevelPrivacy(
    counts=replace(HIDDEN, clip_norm=30.0),
    centre=replace(HIDDEN, clip_norm=1.5),
    update=replace(HIDDEN, bands=BANDS),
)
PLAN = make_plan(rounds=ROUNDS, user=USERS)
NOTHING = [torch.zeros(SIZE)] * 5
SEEDS = pytest.mark.parametrize("seed", [1, None])


def make(
    folder: Path, plan: Plan = PLAN, *, seed: int | None, epsilon: float | None = None
) -> PrivateAggregator:
    """The aggregator of a server that has just begun, or begun again."""
    budgets = (
        []
        if epsilon is None
        else [PrivacyBudget(epsilon=epsilon, delta=DELTA, unit=PrivacyUnit.USER)]
    )
    return PrivateAggregator(plan, folder, budgets=budgets, seed=seed)


def made(server: PrivateAggregator, number: int) -> Tensor:
    """A round's sum over users who add nothing: its noise."""
    return server.release_updates(number, NOTHING, denominator=1.0)


def booked(folder: Path) -> list[int]:
    """Rounds in the ledger on disk."""
    ledger = Ledger(folder / LEDGER_FILE, owner=LEDGER_OWNER, read_only=True)
    return [one.round for one in ledger.releases if one.kind is ReleaseKind.GRADIENT]


def wanted(bands: BandedNoise, spread: float) -> Tensor:
    """Covariance of rounds that the ledger stands for: (C'C)⁻¹, spread out by the draws' scale."""
    matrix = torch.zeros(ROUNDS, ROUNDS, dtype=torch.float64)
    for index in range(ROUNDS):
        column = torch.tensor(bands.coefficients[: ROUNDS - index], dtype=torch.float64)
        matrix[index : index + len(column), index] = column
    return torch.linalg.inv(matrix.T @ matrix) * spread**2


def accepts(noise: Tensor, covariance: Tensor) -> bool:
    """Whether noise of shape (rounds, draws) has this covariance; wrong about the right in 1e9.

    Whitened by it, all values are independent of scale 1: a chi-square of all their squares
    (Fisher's approximation), and no correlation between any two rounds.
    """
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), noise, upper=False)
    square = float(white.square().sum())
    scaled = abs(math.sqrt(2 * square) - math.sqrt(2 * white.numel() - 1)) < 6.2
    joint = torch.corrcoef(white) - torch.eye(len(white), dtype=white.dtype)
    return scaled and float(joint.abs().max()) < 7 / math.sqrt(noise.shape[1])


@SEEDS
def test_the_noise_of_rounds_is_what_was_booked_and_nothing_else(
    tmp_path: Path, seed: int | None
) -> None:
    server = make(tmp_path, seed=seed)
    noise = torch.stack([made(server, number) for number in range(1, ROUNDS + 1)])
    ledger = Ledger(tmp_path / LEDGER_FILE, owner=LEDGER_OWNER, read_only=True)
    (user,) = {one.user for one in ledger.releases}
    assert user is not None
    assert user.bands is not None
    # As an auditor reads the line: the multiplier is over the bound times a column's norm.
    spread = user.noise_multiplier * user.clip_norm * math.sqrt(1 + 0.5**2 + 0.375**2)

    assert accepts(noise, wanted(user.bands, spread))
    for wrong in (2 / 3, 3 / 2):
        assert not accepts(noise, wanted(user.bands, spread * wrong))
    assert not accepts(noise, wanted(BandedNoise(min_separation=3), spread)), "independent noise"
    independent = torch.randn(ROUNDS, SIZE, dtype=torch.float64) * spread
    assert not accepts(independent, wanted(user.bands, spread))
    assert private_sums.noise_std(PLAN, devices=5, denominator=1.0) == pytest.approx(spread)


@SEEDS
def test_noise_that_does_not_hang_together_is_each_rounds_own(
    tmp_path: Path, seed: int | None
) -> None:
    alone = replace(
        PLAN, user=replace(USERS, update=replace(HIDDEN, bands=BandedNoise(min_separation=3)))
    )
    server = make(tmp_path, alone, seed=seed)
    noise = torch.stack([made(server, number) for number in range(1, ROUNDS + 1)])

    assert accepts(noise, wanted(BandedNoise(min_separation=3), 6.0))
    if seed is not None:  # and the very draws of rounds in which everybody trains
        (tmp_path / "usual").mkdir()
        usual = make(tmp_path / "usual", replace(PLAN, user=replace(USERS, update=HIDDEN)), seed=1)
        assert all(torch.equal(row, made(usual, n)) for n, row in enumerate(noise, 1))


def test_the_server_pays_once_for_each_turn_and_before_its_first_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, seen = make(tmp_path, seed=1), []
    draw = correlated_noise.SeededCorrelatedNoise.add_noise

    def look(
        self: correlated_noise.SeededCorrelatedNoise, number: int, summed: Tensor, spread: float
    ) -> Tensor:
        seen.append(booked(tmp_path))
        return draw(self, number, summed, spread)

    monkeypatch.setattr(correlated_noise.SeededCorrelatedNoise, "add_noise", look)
    server.release_label_counts(NOTHING)
    server.release_centre(NOTHING)
    for number in range(1, ROUNDS + 1):
        made(server, number)

    assert seen == [[1], [1], [1], [1, 4], [1, 4], [1, 4]]
    releases = Ledger(tmp_path / LEDGER_FILE, owner=LEDGER_OWNER, read_only=True).releases
    assert sorted(map(repr, releases)) == sorted(map(repr, PLAN.all_releases()))


@SEEDS
def test_over_the_budget_no_further_turn_begins(tmp_path: Path, seed: int | None) -> None:
    one = accounting.compute_epsilon([PLAN.gradient_release(1)], DELTA, unit=PrivacyUnit.USER)
    server = make(tmp_path, seed=seed, epsilon=one)
    for number in (1, 2, 3):
        made(server, number)
    with pytest.raises(BudgetSpent):
        made(server, 4)
    assert booked(tmp_path) == [1]


@SEEDS
def test_nobody_outgrows_the_bound(tmp_path: Path, seed: int | None) -> None:
    quiet = replace(HIDDEN, noise_multiplier=1e-9, bands=BANDS)
    server = make(tmp_path, replace(PLAN, user=replace(USERS, update=quiet)), seed=seed)
    parts = [torch.tensor([1e6, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), torch.zeros(3)]
    total = server.release_updates(1, parts, denominator=1.0)
    assert torch.allclose(total, torch.tensor([2.0, 1.0, 0.0]).double(), atol=1e-6)


def test_a_simulated_server_that_begins_again_repeats_every_round(tmp_path: Path) -> None:
    first = make(tmp_path, seed=1)
    whole = [made(first, number) for number in range(1, ROUNDS + 1)]

    assert torch.equal(made(make(tmp_path, seed=1), 5), whole[4])
    again = make(tmp_path, seed=1)
    assert torch.equal(made(again, 4), whole[3])
    assert torch.equal(made(again, 2), whole[1]), "in whatever order"
    assert torch.equal(made(again, 6), whole[5])
    assert booked(tmp_path) == [1, 4]
    assert not (tmp_path / correlated_noise.NOISE_FILE).exists()
    (tmp_path / "other").mkdir()
    assert not torch.equal(made(make(tmp_path / "other", seed=2), 1), whole[0])


# --- a real server's ----------------------------------------------------------------------------


def test_a_real_server_goes_on_with_the_noise_that_it_kept(tmp_path: Path) -> None:
    noise = torch.stack(
        [made(make(tmp_path, seed=None), number) for number in range(1, ROUNDS + 1)]
    )
    assert accepts(noise, wanted(BANDS, HIDDEN.noise_std * BANDS.column_norm))
    assert booked(tmp_path) == [1, 4]


def test_a_round_is_let_out_once_whatever_devices_say_later(tmp_path: Path) -> None:
    first = made(make(tmp_path, seed=None), 1)
    other = [torch.ones(SIZE)] * 5
    again = make(tmp_path, seed=None)

    assert torch.equal(again.release_updates(1, other, denominator=1.0), first)
    known = again.get_released_round(1)
    assert known is not None
    assert torch.equal(known.total, first)
    assert again.get_released_round(2) is None
    assert booked(tmp_path) == [1]


def test_the_noise_on_disk_is_for_nobody_else_and_forgotten_in_the_end(tmp_path: Path) -> None:
    server, path = make(tmp_path, seed=None), tmp_path / correlated_noise.NOISE_FILE
    sizes = []
    for number in range(1, ROUNDS + 1):
        made(server, number)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        sizes.append(len(load_file(path)["past"]))
    assert sizes == [1, 2, 2, 2, 2, 0]


def test_of_two_servers_only_the_first_lets_a_round_out(tmp_path: Path) -> None:
    summed = torch.zeros(SIZE, dtype=torch.float64)
    first, second = (
        correlated_noise.StoredCorrelatedNoise(
            BANDS, tmp_path, plan_digest=PLAN.content_hash(), rounds=ROUNDS
        )
        for _ in range(2)
    )
    first.prepare_round(1)
    assert first.get_released(1, []) is None
    assert second.get_released(1, []) is None
    out = first.add_noise(1, summed, 1.0)
    with pytest.raises(PrivacyError, match="round 1 is due"):
        second.add_noise(1, summed, 1.0)
    known = second.get_released(1, [1])
    assert known is not None
    assert torch.equal(known, out)


def test_preparing_a_round_writes_over_nothing_and_replaces_nothing_lost(tmp_path: Path) -> None:
    store = correlated_noise.StoredCorrelatedNoise(BANDS, tmp_path, plan_digest="p", rounds=ROUNDS)
    store.prepare_round(2)
    assert not list(tmp_path.iterdir()), "a missing file is a lost one"
    store.prepare_round(1)
    out = store.add_noise(1, torch.zeros(3, dtype=torch.float64), 1.0)
    store.prepare_round(1)
    found = store.get_released(1, [1], 1)

    assert found is not None
    assert torch.equal(found, out)


@pytest.mark.parametrize("std", [0.3, 1.0, 7.0])
def test_what_a_real_server_releases_lies_on_its_noises_lattice(tmp_path: Path, std: float) -> None:
    """Low-order bits of a sum betray what was added to the noise."""
    store = correlated_noise.StoredCorrelatedNoise(BANDS, tmp_path, plan_digest="p", rounds=ROUNDS)
    store.prepare_round(1)
    for number in (1, 2):
        summed = torch.rand(500, dtype=torch.float64)
        steps = store.add_noise(number, summed, std) / lattice_step(std)
        assert torch.equal(steps, steps.round())
        assert steps.unique().numel() > 50


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nobody waits")
def test_two_servers_at_once_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or both would add noise of their own to one round: their difference would be in the clear."""
    store = correlated_noise.StoredCorrelatedNoise(BANDS, tmp_path, plan_digest="p", rounds=ROUNDS)
    store.prepare_round(1)
    lock = next(iter({one.with_suffix(".lock") for one in tmp_path.iterdir()}))
    free: list[bool] = []
    rename, draw = Path.replace, SystemGaussianSampler.sample_noise

    def renamed(path: Path, target: Path) -> Path:
        free.append(is_unlocked(lock))
        return rename(path, target)

    def drawn(source: Any, shape: Any, std: float) -> Tensor:
        free.append(is_unlocked(lock))
        return draw(source, shape, std)

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(SystemGaussianSampler, "sample_noise", drawn)
    store.add_noise(1, torch.zeros(3, dtype=torch.float64), 1.0)

    assert free == [False, False]


@pytest.mark.parametrize("lost", ["gone", "cut", "older", "other", "poorer"])
def test_where_the_noise_is_lost_nothing_more_is_let_out(tmp_path: Path, lost: str) -> None:
    server, path = make(tmp_path, seed=None), tmp_path / correlated_noise.NOISE_FILE
    made(server, 1)
    old = path.read_bytes()
    made(server, 2)
    made(server, 3)
    made(server, 4)
    whole = path.read_bytes()
    if lost == "gone":
        path.unlink()
    elif lost == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif lost == "older":
        path.write_bytes(old)
    elif lost == "poorer":
        keeper = correlated_noise.StoredCorrelatedNoise(
            BANDS, tmp_path, plan_digest=PLAN.content_hash(), rounds=ROUNDS
        )
        keeper._write(4, [torch.zeros(SIZE, dtype=torch.float64)], torch.zeros(SIZE).double())
    plan = replace(PLAN, labels=("a", "c")) if lost == "other" else PLAN

    for number in (1, 2, 5):
        with pytest.raises(PrivacyError, match="begin a new run"):
            made(make(tmp_path, plan, seed=None), number)
    assert booked(tmp_path) == [1, 4], "and nothing more is booked"
    path.write_bytes(whole)
    made(make(tmp_path, seed=None), 5)


def test_an_older_file_within_a_block_lets_no_round_out_again(tmp_path: Path) -> None:
    """The ledger books a block of rounds once; the anchor says which of them were released."""
    made(make(tmp_path, seed=None), 1)
    old = (tmp_path / correlated_noise.NOISE_FILE).read_bytes()
    made(make(tmp_path, seed=None), 2)
    (tmp_path / correlated_noise.NOISE_FILE).write_bytes(old)

    with pytest.raises(PrivacyError, match="round 2 was released"):
        made(make(tmp_path, seed=None), 2)


@pytest.mark.parametrize("step", ["begin", "book", "draw", "keep", "hand out"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_killed_between_any_two_steps_a_round_is_let_out_once_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """Released is what ``release_updates`` returns; a kill is an error that nobody catches."""
    out = [made(make(tmp_path, seed=None), before) for before in range(1, number)]
    with monkeypatch.context() as patch:
        _kill(patch, step)
        with pytest.raises(InterruptedError):
            made(make(tmp_path, seed=None), number)

    out += [made(make(tmp_path, seed=None), after) for after in range(number, ROUNDS + 1)]

    assert accepts(torch.stack(out), wanted(BANDS, HIDDEN.noise_std * BANDS.column_norm))
    assert booked(tmp_path) == [1, 4], "all that was released was paid for, once"


def _kill(patch: pytest.MonkeyPatch, step: str) -> None:
    """Let a step raise, before it does anything or, the last one, after all is done."""

    def die(*_: object, **__: object) -> None:
        raise InterruptedError

    if step == "hand out":
        whole = correlated_noise.replace_file

        def late(path: Path, data: bytes, *, secret: bool) -> None:
            is_round = path.exists()  # the first write, before any round, holds no noise
            whole(path, data, secret=secret)
            if is_round:
                raise InterruptedError

        patch.setattr(correlated_noise, "replace_file", late)
        return
    owner, name = {
        "begin": (correlated_noise.StoredCorrelatedNoise, "prepare_round"),
        "book": (private_sums.clipping, "clip_to_norm"),  # the step after it
        "draw": (correlated_noise.SystemGaussianSampler, "sample_noise"),
        "keep": (correlated_noise, "replace_file"),
    }[step]
    patch.setattr(owner, name, die)


# --- and what the server makes of it --------------------------------------------------------------


def test_the_rate_allows_for_the_noise_that_adds_up() -> None:
    """Weights after all rounds hold no more noise than was allowed, and about as much."""
    devices, allowed = 5.0, 0.65
    settings = AggregationSettings(learning_rate=1e9, max_weight_noise_std=allowed)
    rate = compute_learning_rate(settings, PLAN, 1, devices=devices, denominator=1.0)
    source = correlated_noise.SeededCorrelatedNoise(
        BANDS, lambda n: private_sums.SeededGaussianSampler(torch.Generator().manual_seed(n))
    )
    spread = private_sums.noise_std(PLAN, devices=devices, denominator=1.0)
    rounds = [
        source.add_noise(number, torch.zeros(SIZE).double(), spread)
        for number in range(1, ROUNDS + 1)
    ]

    left = torch.stack(rounds).sum(0) * rate / devices

    assert float(left.std()) == pytest.approx(allowed, rel=0.06)
    alone = replace(
        PLAN, user=replace(USERS, update=replace(HIDDEN, bands=BandedNoise(min_separation=3)))
    )
    assert compute_learning_rate(settings, alone, 1, devices=devices, denominator=1.0) < rate
