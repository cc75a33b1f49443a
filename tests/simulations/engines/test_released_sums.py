"""A real server that hides users and is killed at any moment: what it released it releases once."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Message
from safetensors.torch import save_file
from torch import Tensor

from sottovoce.server.aggregation.private_sums import LEDGER_FILE, LEDGER_OWNER, PrivateAggregator
from sottovoce.server.federation import checkpoint, coordinator
from sottovoce.server.federation.training_job import Job
from sottovoce.shared import crypto
from sottovoce.shared.calibration.head_statistics import STATISTICS_SIZE, CalibrationRelease
from sottovoce.shared.errors import LedgerError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, SumMechanism
from sottovoce.shared.privacy.user_level import SecureSumConfigs, UserLevelPrivacy
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.shared.protocol.local_training import NoPrivacy
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
from sottovoce.shared.speaker.normalisation import EXACT_CENTRE, EXACT_MEAN

CONTRIBUTORS, DELTA, INPUTS, CLASSES, PARAMS = ("ada", "ben", "cleo"), 1e-3, 4, 3, 15


class Killed(BaseException):
    """The operator pulled the plug."""


def user_level(noised_by: NoiseSource) -> UserLevelPrivacy:
    """Noise on every sum, from the server or in shares."""
    shares = noised_by is NoiseSource.DISTRIBUTED
    noise = SumMechanism(
        noise_multiplier=3.0,
        clip_norm=0.5,
        noised_by=noised_by,
        discrete=shares,
        near_gaussian=shares,
    )
    root, arranged = math.sqrt(2), {"dropout": 0.0, "corruption": 0.0}
    secure = SecureSumConfigs(
        enrolment=select_parameters(
            3, CLASSES + INPUTS, root, noise_multiplier=3 / root, **arranged
        ),
        update=select_parameters(3, PARAMS, 0.5, noise_multiplier=3.0, **arranged),
        dishonest=0,
        calibration=select_parameters(3, STATISTICS_SIZE, 0.5, noise_multiplier=3.0, **arranged),
    )
    return UserLevelPrivacy(
        counts=replace(noise, clip_norm=20.0),
        centre=noise,
        update=noise,
        calibration=noise,
        secure=secure if shares else None,
    )


@pytest.fixture(params=[NoiseSource.SERVER, NoiseSource.DISTRIBUTED])
def federation(make_federation: Any, request: pytest.FixtureRequest) -> Any:
    """A real server's, whose budget holds each of the plan's sums once, and nothing more."""
    made = make_federation("a", epsilon=1e6, unit=PrivacyUnit.USER)
    generator = torch.Generator().manual_seed(3)
    public = {
        "features": torch.randn(60, INPUTS, generator=generator),
        "frames": torch.ones(60, dtype=torch.int64),
        "labels": torch.arange(60) % CLASSES,
        "speakers": torch.arange(60) // 20,
    }
    save_file(public, made.folder / "held_out.safetensors")
    folder = made.folder / "server"
    job = Job.load(folder)
    plan = replace(
        job.plan,
        training=replace(job.plan.training, steps=1, sample_rate=1.0),
        mechanism=NoPrivacy(),
        centre=EXACT_CENTRE,
        normaliser=EXACT_MEAN,
        count_noise=0.0,
        user=user_level(request.param),
        calibration=CalibrationRelease(noise_multiplier=0.0, subtracted_share=0.5),
    )
    epsilon = accounting.compute_epsilon(list(plan.all_releases()), DELTA, unit=PrivacyUnit.USER)
    budgets = (PrivacyBudget(epsilon=epsilon * (1 + 1e-9), delta=DELTA, unit=PrivacyUnit.USER),)
    held_out = made.folder / "held_out.safetensors"
    replace(job, plan=plan, budgets=budgets, held_out_path=held_out).save(folder)
    devices = {user: made.device(user) for user in CONTRIBUTORS}
    roster = {user: crypto.identity_public_key(one.identity_key) for user, one in devices.items()}
    for one in devices.values():
        one.pin_roster(roster)
    return made


def _ledger(federation: Any) -> Ledger:
    """The server's own."""
    return Ledger(federation.folder / "server" / LEDGER_FILE, owner=LEDGER_OWNER, read_only=True)


def _plan(federation: Any) -> Plan:
    """The job's."""
    return Job.load(federation.folder / "server").plan


def test_killed_before_each_message_and_behind_each_sum_a_run_ends_within_its_budget(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process goes on from the last, releases one sum more, and is killed behind it."""
    released: dict[str, list[Tensor]] = {}
    whole = PrivateAggregator.store_released_sum

    def store(self: PrivateAggregator, name: str, *arguments: Any) -> Any:
        value = whole(self, name, *arguments)
        released.setdefault(name, []).append(value.total)
        raise Killed

    for _ in range(10):
        with monkeypatch.context() as patch:
            patch.setattr(PrivateAggregator, "store_released_sum", store)
            try:
                federation.run()
                break
            except Killed:
                continue
    first = ["enrolment"] if _plan(federation).user.secure else ["label-counts", "centre"]  # type: ignore[union-attr]
    assert list(released) == [*first, "round-1", "round-2", "round-3", "head-statistics"]
    assert all(len(each) == 1 for each in released.values())
    assert len(_ledger(federation).releases) == len(list(_plan(federation).all_releases()))
    assert federation.released().isfinite().all()


def test_what_was_released_is_what_a_resumed_run_goes_on_with(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind a round's sum, before its checkpoint; that round is not asked again."""
    writes, write = iter(range(1, 9)), checkpoint.save_state

    def die(*arguments: Any, **how: Any) -> None:
        if next(writes) == 2:
            raise Killed
        write(*arguments, **how)

    enrolled: list[Any] = []
    enrol = coordinator.TrainingCoordinator.enrol_devices

    def note(self: coordinator.TrainingCoordinator) -> Any:
        enrolled.append(enrol(self))
        return enrolled[-1]

    monkeypatch.setattr(coordinator.TrainingCoordinator, "enrol_devices", note)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", die)
        with pytest.raises(Killed):
            federation.run()
    asked: list[int] = []

    def note_round(message: Message) -> bool:
        arrays = message.content.array_records
        if message.metadata.message_type in (
            messages.TRAIN,
            messages.SECURE_SUM,
        ) and "class_weights" in (arrays.get("model") or ()):
            asked.append(flower_records.decode_train_request(message.content).round)
        return False

    federation.run(is_lost=note_round)

    assert set(asked) == {3}
    before, after = enrolled
    assert torch.equal(before.label_counts, after.label_counts)
    assert torch.equal(before.feature_sum, after.feature_sum)
    assert before.devices_aggregated == after.devices_aggregated
    assert before.rows_per_device == after.rows_per_device


def test_a_server_whose_ledger_was_cut_releases_nothing_more(federation: Any) -> None:
    federation.run()
    path = federation.folder / "server" / LEDGER_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])

    with pytest.raises(LedgerError, match="lines were dropped at its end"):
        federation.run()
