"""Sums that hide users: bounded, booked before they are noised, and noised enough."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import is_unlocked, make_plan
from torch import Tensor

from sottovoce.server.aggregation import private_sums, released_sums, server_anchor
from sottovoce.server.aggregation.private_sums import LEDGER_FILE, LEDGER_OWNER, PrivateAggregator
from sottovoce.server.aggregation.server_anchor import ServerAnchor
from sottovoce.server.aggregation.server_optimizer import initial_state
from sottovoce.server.federation import checkpoint
from sottovoce.shared.calibration.head_statistics import STATISTICS_SIZE, CalibrationRelease
from sottovoce.shared.errors import BudgetSpent, LedgerError, ModelError, PrivacyError
from sottovoce.shared.privacy import accounting, clipping
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, SumMechanism
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.privacy.user_level import SecureSumConfigs, UserLevelPrivacy
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.secure_aggregation import discrete_gaussian
from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
from sottovoce.shared.speaker.normalisation import CentreRelease

SIZE, DEVICES = 4_000, 5
DELTA = 1e-3
OPEN = make_plan()
HIDDEN = SumMechanism(noise_multiplier=3.0, clip_norm=2.0, noised_by=NoiseSource.SERVER)
USERS = UserLevelPrivacy(
    counts=replace(HIDDEN, clip_norm=30.0), centre=replace(HIDDEN, clip_norm=1.5), update=HIDDEN
)
USER = replace(OPEN, user=USERS)
BOTH = replace(
    USER,
    mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=1.5, sum_norm=2.0),
    centre=CentreRelease(clip_norm=1.5, noise_multiplier=4.0),
    count_noise=10.0,
)
NOTHING = [torch.zeros(SIZE)] * DEVICES


def make(
    folder: Path, plan: Plan = USER, *, seed: int | None = 1, epsilon: float | None = None
) -> PrivateAggregator:
    """A server's aggregator, by default without a budget."""
    budgets = (
        []
        if epsilon is None
        else [PrivacyBudget(epsilon=epsilon, delta=DELTA, unit=PrivacyUnit.USER)]
    )
    return PrivateAggregator(plan, folder, budgets=budgets, seed=seed)


def booked(folder: Path) -> Ledger:
    """The server's ledger as it lies on disk."""
    return Ledger(folder / LEDGER_FILE, owner=LEDGER_OWNER, read_only=True)


def test_where_no_user_is_hidden_sums_go_as_they_are(tmp_path: Path) -> None:
    parts = [torch.randn(6, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    plain = make(tmp_path, OPEN)
    for total in (
        plain.release_label_counts(parts),
        plain.release_centre(parts),
        plain.release_updates(1, parts, denominator=3.0),
    ):
        assert torch.allclose(total, torch.stack(parts).double().sum(0))
    assert not (tmp_path / LEDGER_FILE).exists()


def test_a_sum_of_small_and_large_keeps_the_small() -> None:
    parts = [torch.full((1,), 1e8), torch.full((1,), 1.0), torch.full((1,), -1e8)]
    assert float(private_sums.sum_parts(parts)) == pytest.approx(1.0)


def test_a_round_without_updates_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="without a single usable update"):
        make(tmp_path, OPEN).release_updates(1, [], denominator=1.0)


def test_lengths_of_fewer_updates_than_came_are_refused(tmp_path: Path) -> None:
    """Updates beyond them would be left out of the sum unseen."""
    parts = [torch.ones(3)] * 3
    with pytest.raises(ValueError, match="shorter"):
        make(tmp_path).release_updates(1, parts, denominator=1.0, norms=[1.0, 1.0])


@pytest.mark.parametrize("seed", [1, None])
def test_each_sum_gets_the_noise_that_was_promised(tmp_path: Path, seed: int | None) -> None:
    server = make(tmp_path, seed=seed)
    for total, promised in (
        (server.release_label_counts(NOTHING), USERS.counts),
        (server.release_centre(NOTHING), USERS.centre),
        (server.release_updates(1, NOTHING, denominator=7.0), USERS.update),
    ):
        assert promised is not None
        wanted = promised.noise_multiplier * promised.clip_norm
        assert float(total.std()) == pytest.approx(wanted, rel=0.06)  # 5 standard errors
    for kind, promised in ((SumKind.LABEL_COUNTS, USERS.counts), (SumKind.CENTRE, USERS.centre)):
        assert promised is not None
        said = USER.scheme.sum_noise_std(USER, kind, devices=DEVICES)
        assert said == promised.noise_multiplier * promised.clip_norm


def test_nobody_outgrows_the_bound_whatever_a_device_sends(tmp_path: Path) -> None:
    quiet = replace(USER, user=replace(USERS, update=replace(HIDDEN, noise_multiplier=1e-9)))
    parts = [torch.zeros(3), torch.tensor([1e6, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])]

    total = make(tmp_path, quiet).release_updates(1, parts, denominator=1.0)

    assert torch.allclose(total, torch.tensor([2.0, 1.0, 0.0]).double(), atol=1e-6)
    lengths = [clipping.l2_norm(part) for part in parts]
    again = make(tmp_path, quiet).release_updates(1, parts, denominator=1.0, norms=lengths)
    assert torch.equal(again, total)


@pytest.mark.parametrize(("promised", "own"), [(3.0, False), (0.5, True)])
def test_devices_own_noise_counts_and_only_the_rest_is_added(
    tmp_path: Path, promised: float, own: bool
) -> None:
    plan = replace(BOTH, user=replace(USERS, update=replace(HIDDEN, noise_multiplier=promised)))
    denominator = 4.0
    unit = plan.training.learning_rate / denominator
    one = 0.5 * 1.5 * unit
    wanted = promised * 2.0 * unit
    parts = [
        one * torch.randn(SIZE, generator=torch.Generator().manual_seed(n)) for n in range(DEVICES)
    ]

    total = make(tmp_path, plan).release_updates(1, parts, denominator=denominator)

    assert (wanted < one * math.sqrt(DEVICES)) == own
    # One of the devices knows its own noise, which does not count; all of it is in the sum.
    added = math.sqrt(max(0.0, wanted**2 - one**2 * (DEVICES - 1)))
    reached = math.hypot(one * math.sqrt(DEVICES), added)
    assert float(total.std()) == pytest.approx(reached, rel=0.06)
    assert private_sums.noise_std(plan, devices=DEVICES, denominator=denominator) == pytest.approx(
        reached
    )


def test_the_noise_in_how_many_clips_there_are_is_that_of_all_label_counts() -> None:
    utterance = replace(BOTH, user=None)

    def noise(plan: Plan, devices: int) -> float:
        return plan.scheme.weight_noise_std(plan, devices=devices)

    classes = math.sqrt(len(BOTH.labels))
    assert noise(OPEN, 9) == 0
    assert noise(USER, 9) == 0, "users are counted, not clips"
    assert noise(utterance, 9) == pytest.approx(10 * 3 * classes)
    added = math.sqrt((3 * 30) ** 2 - 3 * 10**2)  # one of the four knows its own noise
    assert noise(BOTH, 4) == pytest.approx(math.hypot(10 * 2, added) * classes), "hides users too"
    assert noise(BOTH, 100) == pytest.approx(10 * 10 * classes)


def test_the_noise_of_shares_is_that_of_all_devices() -> None:
    shares = replace(HIDDEN, noised_by=NoiseSource.DISTRIBUTED, discrete=True)
    settings = partial(select_parameters, 10, dropout=0.1, corruption=0.1)
    secure = SecureSumConfigs(
        enrolment=settings(4, math.sqrt(2), noise_multiplier=3.0 / math.sqrt(2)),
        update=settings(6, 2.0, noise_multiplier=3.0),
        dishonest=1,
    )
    users = UserLevelPrivacy(counts=shares, centre=shares, update=shares, secure=secure)
    spread = private_sums.noise_std(replace(OPEN, user=users), devices=10, denominator=7.0)

    drawn = discrete_gaussian.sample_discrete_gaussian(
        200_000, secure.update.noise, discrete_gaussian.SystemRandomWords()
    )
    one = float(np.std(drawn)) * secure.update.granularity
    assert spread == pytest.approx(one * math.sqrt(10), rel=0.02)
    assert 3.0 * 2.0 < spread < 3.0 * 2.0 * 1.3, "enough for those who can be counted on"


def test_a_sum_is_booked_before_its_noise_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, seen = make(tmp_path), []

    def draw(*_: object) -> None:
        seen.append([release.round for release in booked(tmp_path).releases])
        raise InterruptedError

    monkeypatch.setattr(private_sums.SeededGaussianSampler, "add_noise", draw)
    for number in (1, 2):
        with pytest.raises(InterruptedError):
            server.release_updates(number, NOTHING, denominator=1.0)

    assert seen == [[1], [1, 2]]


def test_a_whole_run_books_exactly_the_plans_sums(tmp_path: Path) -> None:
    statistics = CalibrationRelease(noise_multiplier=0.0, subtracted_share=0.5)
    plan = replace(USER, calibration=statistics, user=replace(USERS, calibration=HIDDEN))
    server = make(tmp_path, plan)
    server.release_label_counts(NOTHING)
    server.release_centre(NOTHING)
    for number in (1, 2, 3):
        server.release_updates(number, NOTHING, denominator=1.0)
    server.release_head_statistics([torch.zeros(STATISTICS_SIZE)] * DEVICES)

    releases = booked(tmp_path).releases

    assert sorted(map(repr, releases)) == sorted(map(repr, plan.all_releases()))
    # Noise of a simulation is drawn by these names: others would be other results.
    assert [name.split("/")[1] for name in booked(tmp_path).release_names] == [
        "label-counts",
        "centre",
        *(f"round-{number}" for number in (1, 2, 3)),
        "head-statistics",
    ]
    assert accounting.compute_epsilon(releases, DELTA, unit=PrivacyUnit.USER) < math.inf


def test_over_the_budget_nothing_is_noised_or_let_out(tmp_path: Path) -> None:
    two = [USER.gradient_release(1)] * 2
    server = make(tmp_path, epsilon=accounting.compute_epsilon(two, DELTA, unit=PrivacyUnit.USER))
    server.release_updates(1, NOTHING, denominator=1.0)
    server.release_updates(2, NOTHING, denominator=1.0)
    with pytest.raises(BudgetSpent, match="for one user"):
        server.release_updates(3, NOTHING, denominator=1.0)
    assert len(booked(tmp_path).releases) == 2


@pytest.mark.parametrize("seed", [3, None])
def test_asked_again_a_server_gives_the_same_and_pays_once(
    tmp_path: Path, seed: int | None
) -> None:
    other = [torch.ones(SIZE)] * DEVICES
    first, second = (
        make(tmp_path, seed=seed).release_updates(1, parts, denominator=1.0)
        for parts in (NOTHING, NOTHING if seed else other)
    )

    assert torch.equal(first, second)
    assert len(booked(tmp_path).releases) == 1


def test_another_round_or_seed_has_other_noise(tmp_path: Path) -> None:
    server = make(tmp_path)
    one, other = (server.release_updates(number, NOTHING, denominator=1.0) for number in (1, 2))
    (tmp_path / "b").mkdir()
    seeded = make(tmp_path / "b", seed=2).release_updates(1, NOTHING, denominator=1.0)
    for first, second in ((one, other), (one, seeded)):
        joint = torch.stack([first, second])
        assert abs(float(torch.corrcoef(joint)[0, 1])) < 5 / math.sqrt(SIZE)


# --- a real server that begins again --------------------------------------------------------------


def life(folder: Path, rounds: Sequence[int], *, epsilon: float) -> list[Tensor]:
    """What a server releases from its start to its end."""
    server = make(folder, seed=None, epsilon=epsilon)
    out = [server.release_label_counts(NOTHING), server.release_centre(NOTHING)]
    return out + [server.release_updates(number, NOTHING, denominator=1.0) for number in rounds]


def test_a_resumed_run_lets_out_the_same_sums_and_ends_within_its_budget(tmp_path: Path) -> None:
    epsilon = accounting.compute_epsilon(list(USER.all_releases()), DELTA, unit=PrivacyUnit.USER)

    before = life(tmp_path, [1, 2], epsilon=epsilon)
    after = life(tmp_path, [2, 3], epsilon=epsilon)

    for one, again in zip(before[:2] + before[3:], after[:3], strict=True):
        assert torch.equal(one, again)
    assert len(booked(tmp_path).releases) == len(list(USER.all_releases()))


@pytest.mark.parametrize("step", ["draw", "keep", "note"])
def test_a_sum_that_was_never_let_out_is_paid_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*_: object, **__: object) -> None:
        raise InterruptedError

    owner, name = {
        "draw": (private_sums.SystemGaussianSampler, "add_noise"),
        "keep": (released_sums, "replace_file"),
        "note": (ServerAnchor, "record_release"),
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die)
        with pytest.raises(InterruptedError):
            make(tmp_path, seed=None).release_label_counts(NOTHING)

    total = make(tmp_path, seed=None).release_label_counts(NOTHING)

    assert torch.equal(make(tmp_path, seed=None).release_label_counts(NOTHING), total)
    assert len(booked(tmp_path).releases) == 1


@pytest.mark.parametrize("lost", ["gone", "cut", "another plan's"])
def test_a_sum_that_was_let_out_and_lost_is_paid_for_again(tmp_path: Path, lost: str) -> None:
    first = make(tmp_path, seed=None).release_label_counts(NOTHING)
    path = tmp_path / "label-counts.safetensors"
    data = path.read_bytes()
    if lost == "gone":
        path.unlink()
    elif lost == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        digest = USER.content_hash().encode()
        path.write_bytes(data.replace(digest, digest[::-1]))

    again = make(tmp_path, seed=None).release_label_counts(NOTHING)

    assert not torch.equal(first, again)
    assert len(booked(tmp_path).releases) == 2


def test_of_two_servers_only_the_first_lets_a_sum_out(tmp_path: Path) -> None:
    first, second = (
        released_sums.ReleasedSumStore(
            tmp_path, plan_digest="p", anchor=ServerAnchor(tmp_path, ledger=LEDGER_FILE)
        )
        for _ in range(2)
    )
    make(tmp_path, seed=None)  # and with it the anchor
    value = released_sums.ReleasedSum(
        total=torch.ones(2).double(), devices=3, users=("ada", "b,en")
    )
    first.put("round-1", ["r/round-1"], value)

    with pytest.raises(PrivacyError, match="another server"):
        second.put("round-1", ["r/round-1"], value)
    found = second.get("round-1")
    assert found is not None
    assert (found.devices, found.users) == (3, ("ada", "b,en"))
    second.put("round-2", ["r/round-2"], value)
    assert second.get("round-1") is None, "of rounds the newest"


def test_a_name_is_taken_out_of_stored_sums_which_stay(tmp_path: Path) -> None:
    make(tmp_path, seed=None)
    store = released_sums.ReleasedSumStore(
        tmp_path, plan_digest="p", anchor=ServerAnchor(tmp_path, ledger=LEDGER_FILE)
    )
    for name, users in (("enrolment", ("ada", "ben")), ("round-1", ("ada",))):
        value = released_sums.ReleasedSum(
            total=torch.ones(2).double(), devices=len(users), users=users
        )
        store.put(name, [f"r/{name}"], value)
    assert released_sums.list_named_users(tmp_path) == {"ada", "ben"}

    assert released_sums.forget_user(tmp_path, "ada")

    assert released_sums.list_named_users(tmp_path) == {"ben"}
    assert not released_sums.forget_user(tmp_path, "ada")
    left = [store.get(name) for name in ("enrolment", "round-1")]
    assert [(one.devices, one.users) for one in left if one] == [(2, ("ben",)), (1, ())]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nobody waits")
def test_two_servers_at_once_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or both could find that nothing was released, and release their own."""
    make(tmp_path, seed=None)
    store = released_sums.ReleasedSumStore(
        tmp_path, plan_digest="p", anchor=ServerAnchor(tmp_path, ledger=LEDGER_FILE)
    )
    free: list[bool] = []
    look, rename = released_sums.ReleasedSumStore.get, Path.replace

    def looked(store: Any, name: str) -> Any:
        free.append(is_unlocked(tmp_path / "sums.lock"))
        return look(store, name)

    def renamed(path: Path, target: Path) -> Path:
        free.append(is_unlocked(tmp_path / "sums.lock"))
        return rename(path, target)

    monkeypatch.setattr(released_sums.ReleasedSumStore, "get", looked)
    monkeypatch.setattr(Path, "replace", renamed)
    value = released_sums.ReleasedSum(total=torch.ones(2).double(), devices=3)
    store.put("round-1", ["r/round-1"], value)

    assert free == [False] * 3, "from the look to the sum and the note of it"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_stored_sum_that_is_no_number_is_not_released_again(tmp_path: Path, value: float) -> None:
    make(tmp_path, seed=None)
    store = released_sums.ReleasedSumStore(
        tmp_path, plan_digest="p", anchor=ServerAnchor(tmp_path, ledger=LEDGER_FILE)
    )
    total = torch.tensor([1.0, value], dtype=torch.float64)
    store.put("centre", [], released_sums.ReleasedSum(total=total, devices=3))

    assert store.get("centre") is None


@pytest.mark.parametrize("lost", ["cut", "gone", "all gone", "older", "no anchor", "bad anchor"])
def test_a_servers_ledger_that_lost_lines_is_refused(tmp_path: Path, lost: str) -> None:
    server = make(tmp_path, seed=None)
    server.release_label_counts(NOTHING)
    old = (tmp_path / LEDGER_FILE).read_bytes()
    server.release_centre(NOTHING)
    checkpoint.save_state(tmp_path, initial_state(torch.zeros(3)), USER.content_hash())
    if lost == "cut":
        lines = (tmp_path / LEDGER_FILE).read_bytes().splitlines(keepends=True)
        (tmp_path / LEDGER_FILE).write_bytes(lines[0])
    elif lost == "older":
        (tmp_path / LEDGER_FILE).write_bytes(old)
    elif lost == "bad anchor":
        (tmp_path / server_anchor.ANCHOR_FILE).write_text("{}")
    for name in {
        "gone": [LEDGER_FILE],
        "no anchor": [server_anchor.ANCHOR_FILE],
        "all gone": [LEDGER_FILE, server_anchor.ANCHOR_FILE],
    }.get(lost, []):
        (tmp_path / name).unlink()

    with pytest.raises(LedgerError, match="begin a new run"):
        make(tmp_path, seed=None)


def test_a_server_that_hides_nobody_or_is_simulated_keeps_no_anchor(tmp_path: Path) -> None:
    make(tmp_path, seed=1).release_label_counts(NOTHING)
    make(tmp_path, OPEN, seed=None).release_label_counts(NOTHING)

    assert sorted(path.name for path in tmp_path.iterdir()) == [LEDGER_FILE]
