"""What somebody was told of survives a power cut; what was under way is old or new, never half.

A power cut is no kill: it takes what was written and not synced with it, or leaves half of it. See
``power_cuts``. ``tests/client/device/test_killed_devices.py`` kills a device at each of its calls.
"""

import os
import sqlite3
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from builders import make_clips, make_device, make_examples, make_plan, make_release
from power_cuts import Reached, UnsyncedDisk, everything, nothing

from sottovoce.client.device.device import Device, PreparedRelease
from sottovoce.client.device.profile import write_profile
from sottovoce.client.device.vault import FileVault
from sottovoce.client.federation import own_contribution
from sottovoce.server.aggregation.correlated_noise import StoredCorrelatedNoise
from sottovoce.server.aggregation.released_sums import ReleasedSum, ReleasedSumStore
from sottovoce.server.aggregation.server_anchor import ServerAnchor
from sottovoce.server.aggregation.server_optimizer import initial_state
from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.membership import MembershipStore
from sottovoce.server.federation.participation_groups import assign_groups
from sottovoce.server.personalisation.head_store import HeadStore
from sottovoce.shared.atomic_files import (
    append_to_file,
    overwrite_start,
    replace_file,
    sync_folder,
)
from sottovoce.shared.calibration.head_statistics import CalibrationRelease
from sottovoce.shared.errors import BudgetSpent, LedgerError, PrivacyError
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.hash_chain import Anchor
from sottovoce.shared.protocol.messages import TrainRequest
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.devices.database import DeviceDatabase
from sottovoce.simulations.evaluation import fold_result

pytestmark = pytest.mark.skipif(os.name != "posix", reason="folders are synced under POSIX alone")

LEAST_AND_MOST = [nothing, everything]
"""What reached the disk of that which nobody waited for."""

CLIPS = make_clips(make_examples(torch.eye(2), classes=2))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UnsyncedDisk:
    """An empty disk."""
    (tmp_path / "disk").mkdir()
    return UnsyncedDisk(tmp_path / "disk", monkeypatch)


def _make_real_device(disk: UnsyncedDisk) -> Device:
    """A device that is on the disk for good."""
    return make_device(disk.folder / "ada", CLIPS, simulated_seed=None)


def _prepare(number: int, digest: str) -> PreparedRelease:
    release = make_release(3.0, number=number)
    return PreparedRelease(
        name=f"round-{number}",
        request_digest=digest * 64,
        release=release,
        compute=lambda _: torch.ones(2),
    )


def _train_request(plan: Plan, number: int) -> TrainRequest:
    return TrainRequest(
        plan_hash=plan.content_hash(),
        round=number,
        weights=torch.zeros(6),
        class_weights=torch.ones(2),
        centre=torch.zeros(2),
        denominator=1.0,
        update_scale=1.0,
    )


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reached", LEAST_AND_MOST)
def test_a_durable_file_is_old_or_new_and_in_the_end_new(
    disk: UnsyncedDisk, reached: Reached
) -> None:
    path = disk.folder / "new" / "folders" / "state"
    replace_file(path, b"old" * 1_000)

    cuts = disk.cut_at_each_sync(lambda: replace_file(path, b"new" * 900), reached)

    found = [(one / "new" / "folders" / "state").read_bytes() for one in cuts]
    assert set(found[:-1]) <= {b"old" * 1_000, b"new" * 900}
    assert found[-1] == b"new" * 900


@pytest.mark.parametrize("reached", LEAST_AND_MOST)
def test_appended_bytes_are_there_behind_the_old_ones(disk: UnsyncedDisk, reached: Reached) -> None:
    path = disk.folder / "ledger"
    append_to_file(path, b"first\n")
    append_to_file(path, b"second\n")

    assert (disk.cut(reached) / "ledger").read_bytes() == b"first\nsecond\n"


def test_bytes_that_nobody_waited_for_may_be_lost_or_torn(disk: UnsyncedDisk) -> None:
    """This disk loses what it may lose: the tests here can fail."""
    replace_file(disk.folder / "kept", b"old")
    replace_file(disk.folder / "sector", b"a" * 512)
    replace_file(disk.folder / "kept", b"newer", durable=False)
    replace_file(disk.folder / "fresh", b"fresh!", durable=False)
    overwrite_start(disk.folder / "sector", b"b" * 512)
    (disk.folder / "folder").mkdir()

    least, most = disk.cut(nothing), disk.cut(everything)

    assert {one.name: one.read_bytes() for one in least.iterdir()} == {
        "kept": b"old",
        "sector": b"a" * 512,
    }
    assert {one.name for one in most.iterdir()} == {"kept", "fresh", "sector", "folder"}
    assert (most / "kept").read_bytes() == b"ne"
    assert (most / "fresh").read_bytes() == b"fre"
    assert (most / "sector").read_bytes() == b"b" * 512, "a disk writes a sector whole"


# --- a device -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reached", LEAST_AND_MOST)
def test_a_new_device_is_there_whole_or_not_at_all(disk: UnsyncedDisk, reached: Reached) -> None:
    cuts = disk.cut_at_each_sync(lambda: _make_real_device(disk), reached)

    for cut in cuts[:-1]:
        if Device.exists(cut / "ada"):
            assert Device.open(cut / "ada").ledger.has_opening
    device = Device.open(cuts[-1] / "ada")
    assert device.ledger.has_opening
    assert torch.equal(device.load_features().examples.features, torch.eye(2))


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_nobody_else_may_enter_a_vault_whose_folder_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "ada").mkdir(mode=0o755)
    (tmp_path / "ada").chmod(0o755)
    for name in ("ada", "bob"):
        assert FileVault.create(tmp_path / name, user=name).folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("reached", LEAST_AND_MOST)
def test_a_blob_is_old_or_new_and_in_the_end_new(disk: UnsyncedDisk, reached: Reached) -> None:
    vault = FileVault.create(disk.folder / "vault", user="ada")
    vault.put("head", b"old")

    cuts = disk.cut_at_each_sync(lambda: vault.put("head", b"new"), reached)

    found = [FileVault.open(cut / "vault").get("head") for cut in cuts]
    assert set(found[:-1]) <= {b"old", b"new"}
    assert found[-1] == b"new"


def test_what_was_deleted_does_not_come_back(disk: UnsyncedDisk) -> None:
    vault = FileVault.create(disk.folder / "vault", user="ada")
    vault.put("head", b"mine")
    vault.put("kept", b"mine")

    vault.delete("head")

    assert FileVault.open(disk.cut() / "vault").list_names() == ["kept"]


def test_an_erased_vault_loses_its_key_before_anything_else(disk: UnsyncedDisk) -> None:
    vault = FileVault.create(disk.folder / "vault", user="ada")
    vault.put("head", b"mine")

    # Names go in any order until a folder is synced: here the blobs' removal is always quicker.
    cuts = disk.cut_at_each_sync(vault.erase, lambda name: name.endswith(".sealed"))

    for cut in cuts:
        left = {path.name for path in (cut / "vault").iterdir()}
        assert "head.sealed" in left or not left & {"key", "vault.json"}
    assert list((disk.cut() / "vault").iterdir()) == []


def test_what_was_booked_stays_booked(disk: UnsyncedDisk) -> None:
    device = _make_real_device(disk)
    pending = _prepare(1, "a")

    device.book_release(pending.name, pending.request_digest, pending.release)

    assert Device.open(disk.cut() / "ada").has_booked(pending)
    assert Device.open(disk.cut(everything) / "ada").has_booked(pending)


def test_a_round_that_was_answered_takes_no_other_request(disk: UnsyncedDisk) -> None:
    device = _make_real_device(disk)

    given = device.answer_once(_prepare(1, "a"))

    for reached in LEAST_AND_MOST:
        found = Device.open(disk.cut(reached) / "ada")
        with pytest.raises(PrivacyError, match="answered already"):
            found.answer_once(_prepare(1, "b"))
        assert torch.equal(found.answer_once(_prepare(1, "a")), given)


def test_a_device_never_answers_before_it_has_noted_so(disk: UnsyncedDisk) -> None:
    device = _make_real_device(disk)
    seen: list[Path] = []
    pending = _prepare(1, "a")

    def compute(_: object) -> torch.Tensor:
        seen.append(disk.cut())
        return torch.ones(2)

    device.answer_once(replace(pending, compute=compute))

    with pytest.raises(PrivacyError, match="answered already"):
        Device.open(seen[0] / "ada").answer_once(_prepare(1, "b"))


def test_a_device_that_was_retired_stays_so(disk: UnsyncedDisk) -> None:
    device = _make_real_device(disk)
    device.ledger.path.unlink()
    sync_folder(device.folder)

    cuts = disk.cut_at_each_sync(lambda: Device.retire(device.folder), nothing)

    for cut in cuts:
        with suppress(LedgerError, PrivacyError):
            found = Device.open(cut / "ada")
            with pytest.raises(BudgetSpent):
                found.book_in_advance("all", "a" * 64, make_release(3.0))
    assert not Device.open(cuts[-1] / "ada").profile.contributes


def test_what_an_owner_confirmed_stays_confirmed(disk: UnsyncedDisk) -> None:
    device = _make_real_device(disk)
    write_profile(device.folder / "device.json", replace(device.profile, min_cohort=30))

    Device.confirm_profile(device.folder)

    for reached in LEAST_AND_MOST:
        assert Device.open(disk.cut(reached) / "ada").profile.min_cohort == 30


def test_a_contribution_that_was_cut_off_counts_as_none(disk: UnsyncedDisk) -> None:
    """It costs accuracy of the statistics; a device that refused all rounds would cost the user."""
    device = _make_real_device(disk)
    plan = make_plan(calibration=CalibrationRelease(noise_multiplier=0.0, subtracted_share=0.5))
    update = torch.ones(6)
    own_contribution.record_update(device, plan, _train_request(plan, 1), update)
    assert not torch.equal(own_contribution.subtract_contribution(device, plan, update), update)

    found = Device.open(disk.cut(everything) / "ada")

    assert torch.equal(own_contribution.subtract_contribution(found, plan, update), update)
    own_contribution.record_update(found, plan, _train_request(plan, 2), update)
    assert not torch.equal(own_contribution.subtract_contribution(found, plan, update), update)


# --- a server -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reached", LEAST_AND_MOST)
def test_a_sum_that_was_released_is_there_still_and_known_to_be(
    disk: UnsyncedDisk, reached: Reached
) -> None:
    folder = disk.folder / "job"
    anchor = ServerAnchor(folder, ledger="ledger.jsonl")
    anchor.write(Anchor(releases=0, head="0" * 64))
    released = ReleasedSum(total=torch.ones(2, dtype=torch.float64), devices=3)
    store = ReleasedSumStore(folder, plan_digest="p", anchor=anchor)

    cuts = disk.cut_at_each_sync(lambda: store.put("round-1", ["run/round-1"], released), reached)

    for cut in cuts:
        anchor = ServerAnchor(cut / "job", ledger="ledger.jsonl")
        store = ReleasedSumStore(cut / "job", plan_digest="p", anchor=anchor)
        found = store.get("round-1")
        # Noted before it is there, users would be charged for it again.
        assert found is not None or not store.was_released("run/round-1")
    assert found is not None
    assert torch.equal(found.total, released.total)
    assert store.was_released("run/round-1")


@pytest.mark.parametrize("reached", LEAST_AND_MOST)
def test_correlated_noise_and_its_sum_last_together(disk: UnsyncedDisk, reached: Reached) -> None:
    bands = BandedNoise.from_square_root(bands=3, min_separation=3)

    def open_store(folder: Path) -> StoredCorrelatedNoise:
        return StoredCorrelatedNoise(bands, folder, plan_digest="p", rounds=6)

    store = open_store(disk.folder / "job")
    store.prepare_round(1)
    sums: list[torch.Tensor] = []
    cuts = disk.cut_at_each_sync(
        lambda: sums.append(store.add_noise(1, torch.zeros(3, dtype=torch.float64), 1.0)), reached
    )

    for cut in cuts[:-1]:
        found = open_store(cut / "job").get_released(1, [1])
        # Either it was not made, and may be; or it is the one that was about to be released.
        assert found is None or torch.equal(found, sums[0])
    found = open_store(cuts[-1] / "job").get_released(1, [1], 1)
    assert found is not None
    assert torch.equal(found, sums[0])


@pytest.mark.parametrize("reached", LEAST_AND_MOST)
def test_a_round_s_state_is_old_or_new_and_in_the_end_new(
    disk: UnsyncedDisk, reached: Reached
) -> None:
    states = [initial_state(torch.full((3,), float(number)), 1.0) for number in (1, 2)]
    states = [replace(one, round=number) for number, one in enumerate(states, 1)]
    checkpoint.save_state(disk.folder, states[0], "p")

    cuts = disk.cut_at_each_sync(
        lambda: checkpoint.save_state(disk.folder, states[1], "p"), reached
    )

    found = [checkpoint.load_state(cut, "p") for cut in cuts]
    assert {one.round for one in found[:-1] if one} == {1} or reached is everything
    assert None not in found
    assert [one.round for one in found if one][-1] == 2
    for cut in cuts:  # a round of the past may be cut off; it is left out, and nothing else is
        assert all(number in (1, 2) for number, _ in checkpoint.iter_round_weights(cut))


def test_users_stay_in_their_groups(disk: UnsyncedDisk) -> None:
    rule = {"salt": "run", "min_separation": 3}
    groups = assign_groups(disk.folder, ["ada", "bob"], **rule, training_started=False)

    found = assign_groups(disk.cut(), ["ada", "bob", "eve"], **rule, training_started=True)

    assert {user: found[user] for user in groups} == groups


@pytest.mark.parametrize("reached", LEAST_AND_MOST)
def test_a_fold_has_its_whole_result_or_none(disk: UnsyncedDisk, reached: Reached) -> None:
    scores = {
        "before": torch.ones(1, 2),
        "after": torch.ones(1, 2),
        "labels": torch.tensor([1]),
        "labelled": torch.tensor([False]),
    }
    facts = {"clips": ["one"], "curve": [[1, 0.5]], "ledgers": {}}
    folder = disk.folder / "run" / "checkpoints" / "fold"

    cuts = disk.cut_at_each_sync(lambda: fold_result.write_result(folder, facts, scores), reached)

    for cut in cuts:
        found = cut / "run" / "checkpoints" / "fold"
        if fold_result.has_result(found):
            assert fold_result.read_result(found)[0]["clips"] == ["one"]
    assert fold_result.has_result(found)


# --- databases ----------------------------------------------------------------------------------

FULL, EXTRA = 2, 3
"""SQLite's levels of syncing at which a commit lasts; without a journal that lasts, EXTRA alone."""


def test_databases_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []

    class Watched(sqlite3.Connection):
        def close(self) -> None:
            levels.append(self.execute("PRAGMA synchronous").fetchone()[0])
            super().close()

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=Watched))
    HeadStore(tmp_path / "heads.sqlite")
    assert levels == [EXTRA]
    MembershipStore(tmp_path / "members.sqlite")
    DeviceDatabase(tmp_path / "devices.sqlite").close()
    assert all(level >= FULL for level in levels)
    assert len(levels) >= 3
