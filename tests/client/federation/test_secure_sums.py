"""A device in secure sums: what it adds is booked and bounded, and nothing is asked of it twice."""

import math
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_clips, make_device, make_examples, make_plan
from power_cuts import UnsyncedDisk, everything, nothing

from sottovoce.client.device import profile_seal
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, write_profile
from sottovoce.client.device.vault import FileVault
from sottovoce.client.federation import enrolment, secure_sums, training_round
from sottovoce.server.aggregation.secure_sum import run_secure_sum
from sottovoce.shared import crypto
from sottovoce.shared.errors import (
    AggregationError,
    BudgetSpent,
    MessageError,
    PrivacyError,
    SettingError,
    SottovoceError,
)
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.bounds import UserLevelSettings
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, ReleaseKind, SumMechanism
from sottovoce.shared.privacy.user_level import (
    ENROLMENT_SUM,
    SecureSumConfigs,
    UserLevelPrivacy,
    secure_sum_name,
)
from sottovoce.shared.protocol.local_training import LocalTraining
from sottovoce.shared.protocol.messages import SecureSumRequest, TrainRequest
from sottovoce.shared.secure_aggregation.messages import (
    AdvertiseRequest,
    EncryptedSharesBatch,
    KeyAdvertisement,
    ShareRequest,
)
from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
from sottovoce.shared.speaker.normalisation import EXACT_MEAN, default_statistics

LABELS = ("angry", "happy", "sad")
FEATURES, INPUTS, CLIPS, DEVICES = 6, 4, 12, 5
DELTA = 1e-3
MODEL = ModelSpec(kind="linear", inputs=INPUTS, classes=len(LABELS))
WEIGHTS = flatten_parameters(build_network(MODEL, 0))
FRONT = PublicProjection(
    mean=torch.zeros(FEATURES),
    matrix=torch.randn(FEATURES, INPUTS, generator=torch.Generator().manual_seed(1)),
    row_norm=1.0,
)
NOISE = SumMechanism(
    noise_multiplier=1e-3, clip_norm=0.1, noised_by=NoiseSource.DISTRIBUTED, discrete=True
)
"""So little that a sum can be looked at."""

SECURE = SecureSumConfigs(
    enrolment=select_parameters(
        DEVICES,
        len(LABELS) + INPUTS,
        math.sqrt(2),
        dropout=0.2,
        corruption=0.0,
        noise_multiplier=1e-3 / math.sqrt(2),
    ),
    update=select_parameters(
        DEVICES, len(WEIGHTS), 0.1, dropout=0.2, corruption=0.0, noise_multiplier=1e-3
    ),
    dishonest=0,
)
PLAN = make_plan(
    run="run",
    labels=LABELS,
    extractor="random",
    projection_hash=FRONT.content_hash(),
    model=MODEL,
    training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0),
    normaliser=EXACT_MEAN,
    user=UserLevelPrivacy(
        counts=replace(NOISE, clip_norm=5.0),
        centre=replace(NOISE, clip_norm=0.7),
        update=NOISE,
        secure=SECURE,
    ),
)
ROUND: dict[str, Any] = {
    "plan_hash": PLAN.content_hash(),
    "round": 1,
    "weights": WEIGHTS,
    "class_weights": torch.ones(3),
    "centre": torch.zeros(INPUTS),
    "denominator": 6.0,
}


def make(
    folder: Path, number: int, *, budgets: tuple[PrivacyBudget, ...] = (), **changes: Any
) -> Device:
    """A device with a dozen random vectors."""
    generator = torch.Generator().manual_seed(number)
    examples = make_examples(torch.randn(CLIPS, FEATURES, generator=generator), classes=len(LABELS))
    clips = make_clips(examples)
    return make_device(
        folder / f"u{number}", clips, user=f"u{number}", budgets=budgets, labels=LABELS, **changes
    )


@pytest.fixture
def devices(tmp_path: Path) -> dict[str, Device]:
    """Five devices that know one another and have enrolled."""
    found = {f"u{number}": make(tmp_path, number) for number in range(DEVICES)}
    _introduce(found)
    for device in found.values():
        enrolment.enrol_device(device, PLAN, FRONT, default_statistics(INPUTS))
    return found


@pytest.mark.parametrize(
    ("floor", "name", "found"),
    [
        ({"min_cohort": 5}, "min_cohort", "of 4 devices, and min_cohort is 5"),
        ({"min_dishonest_share": 0.1}, "min_dishonest_share", "5 devices 0 are taken"),
        ({"min_cohort": 10, "min_dishonest_share": 0.1}, "min_cohort", "min_cohort is 10"),
    ],
)
def test_a_plan_below_the_owner_s_floor_is_refused(
    tmp_path: Path, floor: dict[str, Any], name: str, found: str
) -> None:
    device = make(tmp_path, 0, **floor)

    with pytest.raises(PrivacyError, match=found) as raised:
        enrolment.enrol_device(device, PLAN, FRONT, default_statistics(INPUTS))

    assert f"lower {name} in device.json and run `sottovoce device confirm`" in str(raised.value)
    assert not device.vault.has_blob("plan")
    assert not device.ledger.releases


def test_a_floor_raised_after_enrolment_stops_the_next_sum(devices: dict[str, Device]) -> None:
    device = devices["u0"]
    device.profile = replace(device.profile, min_cohort=5)
    name = secure_sum_name(PLAN.content_hash(), ENROLMENT_SUM)

    with pytest.raises(PrivacyError, match="min_cohort is 5"):
        secure_sums.take_step(device, PLAN, name=name, step="advertise", body=b"", prepared=None)


def test_a_device_that_only_receives_takes_any_plan(tmp_path: Path) -> None:
    device = make(tmp_path, 0, min_cohort=100, contributes=False)
    assert enrolment.enrol_device(device, PLAN, FRONT, default_statistics(INPUTS)) is None


@pytest.mark.parametrize("count", [12, 19, 24, 73, 91])
def test_an_owner_s_usual_floor_accepts_the_default_recipe(count: int) -> None:
    owner = DeviceProfile(user="ada", budgets=(), labels=LABELS)
    bounds = UserLevelSettings()
    chosen = select_parameters(
        count, 3, 1.0, dropout=bounds.dropout, corruption=bounds.corruption, noise_multiplier=1.0
    )
    dishonest = math.ceil(count * bounds.corruption - 1e-9)
    configs = SecureSumConfigs(enrolment=chosen, update=chosen, dishonest=dishonest)

    secure_sums.check_floor(owner, configs)
    with pytest.raises(PrivacyError, match="min_dishonest_share"):
        secure_sums.check_floor(owner, replace(configs, dishonest=dishonest - 1))


@pytest.mark.parametrize(
    "floor",
    [{"min_cohort": 2}, {"min_cohort": 4.5}, {"min_dishonest_share": 1.0},
     {"min_dishonest_share": math.nan}],
)  # fmt: skip
def test_a_floor_that_cannot_be_is_refused(floor: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(floor))):
        DeviceProfile(user="ada", budgets=(), labels=LABELS, **floor)
    record = DeviceProfile(user="ada", budgets=(), labels=LABELS).to_dict()
    with pytest.raises(PrivacyError):
        DeviceProfile.from_dict(record | floor, name="device.json")


def _introduce(devices: dict[str, Device]) -> None:
    """Pin everybody's identity everywhere."""
    roster = {user: crypto.identity_public_key(one.identity_key) for user, one in devices.items()}
    for device in devices.values():
        device.pin_roster(roster)


def _sum(devices: dict[str, Device], kind: str, *, lost: tuple[str, str] = ("", "")) -> Any:
    """One secure sum, each step on a device freshly read from disk; ``lost`` is (user, step)."""
    name = secure_sum_name(PLAN.content_hash(), kind)

    def ask(step: str, requests: Any) -> dict[str, bytes]:
        answers = {}
        for user, body in requests.items():
            if (user, step) != lost:
                answers[user] = _step(Device.open(devices[user].folder), name, step, body, kind)
        return answers

    roster = next(iter(devices.values())).pinned_roster
    settings = SECURE.enrolment if kind == ENROLMENT_SUM else SECURE.update
    return run_secure_sum(settings, name, roster, ask)


def _step(device: Device, name: str, step: str, body: bytes, kind: str = ENROLMENT_SUM) -> bytes:
    """One step as the app takes it."""
    trains = step == "mask" and kind != ENROLMENT_SUM
    update = training_round.prepare_round(device, TrainRequest(**ROUND)) if trains else None
    return training_round.secure_sum_step(
        device,
        SecureSumRequest(plan_hash=PLAN.content_hash(), name=name, step=step, body=body),
        update,
    )


@pytest.mark.skipif(os.name != "posix", reason="folders are synced under POSIX alone")
def test_a_step_that_was_taken_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    found = {"u0": make(tmp_path / "disk", 0, simulated_seed=None)}
    found |= {f"u{number}": make(tmp_path, number) for number in range(1, DEVICES)}
    _introduce(found)
    for device in found.values():
        enrolment.enrol_device(device, PLAN, FRONT, default_statistics(INPUTS))
    name = secure_sum_name(PLAN.content_hash(), "round-1")
    disk = UnsyncedDisk(tmp_path / "disk", monkeypatch)

    request = AdvertiseRequest(round_name=name).to_bytes()
    keys = [_step(one, name, "advertise", request, "round-1") for one in found.values()]
    advertisements = tuple(KeyAdvertisement.from_bytes(one) for one in keys)
    request = ShareRequest(advertisements=advertisements).to_bytes()
    _step(found["u0"], name, "share", request, "round-1")

    for reached in (nothing, everything):
        again = Device.open(disk.cut(reached) / "u0")
        with pytest.raises(AggregationError, match="asked to share, but the next step is to mask"):
            _step(again, name, "share", request, "round-1")


def _alone(device: Device) -> torch.Tensor:
    """The update that a device adds."""
    device = Device.open(device.folder)  # as the sum has left it
    pending = training_round.prepare_round(device, TrainRequest(**ROUND))
    return pending.compute(device.book_release("looked-at", "0" * 64, pending.release))


def test_the_sum_is_that_of_the_bounded_updates(devices: dict[str, Device]) -> None:
    opened = _sum(devices, "round-1")
    wanted = sum(_alone(device) for device in devices.values())

    assert set(opened.survivors) == set(devices)
    assert torch.allclose(torch.from_numpy(opened.total).float(), wanted, atol=2e-3)
    assert all(float(_alone(device).norm()) <= 0.1 * (1 + 1e-6) for device in devices.values())


def test_enrolment_sums_counts_and_centres(devices: dict[str, Device]) -> None:
    total = torch.from_numpy(_sum(devices, ENROLMENT_SUM).total)

    counts = total[: len(LABELS)] * 5.0
    assert torch.allclose(counts, torch.full((3,), 5 * 5.0 / math.sqrt(3)).double(), atol=0.05)
    rows = [
        FRONT.project_features(one.load_features().examples.features).mean(0)
        for one in devices.values()
    ]
    bounded = [row * min(1.0, 0.7 / float(row.norm())) for row in rows]
    assert torch.allclose(total[len(LABELS) :].float() * 0.7, sum(bounded), atol=0.02)


def test_what_is_masked_is_booked_and_nothing_else(devices: dict[str, Device]) -> None:
    for device in devices.values():
        assert not device.ledger.releases, "enrolling lets out nothing"
    _sum(devices, ENROLMENT_SUM)
    _sum(devices, "round-1")

    for device in devices.values():
        booked = Device.open(device.folder).ledger
        kinds = [release.kind for release in booked.releases]
        assert kinds == [ReleaseKind.LABEL_COUNTS, ReleaseKind.CENTRE, ReleaseKind.GRADIENT]
        assert accounting.compute_epsilon(booked.releases, DELTA, unit=PrivacyUnit.USER) < math.inf


@pytest.mark.parametrize("step", ["advertise", "share", "mask", "agree", "unmask"])
def test_a_device_may_be_lost_at_any_step(devices: dict[str, Device], step: str) -> None:
    opened = _sum(devices, "round-1", lost=("u2", step))

    summed_up = sum(_alone(devices[user]) for user in opened.survivors)
    assert ("u2" in opened.survivors) == (step in ("agree", "unmask"))
    assert torch.allclose(torch.from_numpy(opened.total).float(), summed_up, atol=2e-3)


@pytest.mark.parametrize("labels", [[0, 1] * 6, [0, 1] * 5 + [0, 2]])
def test_training_that_overflows_counts_as_zeros(tmp_path: Path, labels: list[int]) -> None:
    """The server's rates and weights drive whoever has a sad clip to infinity: it must not show."""
    plan = replace(PLAN, training=replace(PLAN.training, learning_rate=100.0))
    devices = {f"u{number}": make(tmp_path, number) for number in range(DEVICES)}
    _introduce(devices)
    clips = devices["u1"].load_features()
    relabelled = replace(clips, examples=replace(clips.examples, labels=torch.tensor(labels)))
    devices["u1"].vault.put_tensors("clips", relabelled.to_tensors())
    for device in devices.values():
        enrolment.enrol_device(device, plan, FRONT, default_statistics(INPUTS))
    unjust = {"plan_hash": plan.content_hash(), "class_weights": torch.tensor([1.0, 1.0, 3e38])}
    name = secure_sum_name(plan.content_hash(), "round-1")

    def ask(step: str, requests: Any) -> dict[str, bytes]:
        return {user: one(devices[user], step, body) for user, body in requests.items()}

    def one(device: Device, step: str, body: bytes) -> bytes:
        update = (
            training_round.prepare_round(device, TrainRequest(**ROUND | unjust))
            if step == "mask"
            else None
        )
        return training_round.secure_sum_step(
            device,
            SecureSumRequest(plan_hash=plan.content_hash(), name=name, step=step, body=body),
            update,
        )

    opened = run_secure_sum(SECURE.update, name, devices["u0"].pinned_roster, ask)

    assert set(opened.survivors) == set(devices)
    others_are_zeros = 0.1 * (1 if 2 not in labels else 0)
    assert np.linalg.norm(opened.total) == pytest.approx(others_are_zeros, abs=2e-3)


def test_a_sum_takes_no_other_round_s_request(devices: dict[str, Device]) -> None:
    """Or one booked round would be masked, and opened, in as many sums as a server names."""
    with pytest.raises(MessageError, match="round-2 came without its request"):
        _sum(devices, "round-2")

    assert not any(Device.open(one.folder).ledger.releases for one in devices.values())


@pytest.mark.parametrize("numbers", [[1.0], [1.0, -1.0, 1.0], [1.0, 1.0, math.inf]])
def test_class_weights_that_do_not_fit_are_refused_unbooked(
    devices: dict[str, Device], numbers: list[float]
) -> None:
    with pytest.raises(MessageError, match="class weights"):
        training_round.prepare_round(
            devices["u0"], TrainRequest(**ROUND | {"class_weights": torch.tensor(numbers)})
        )


def test_over_the_budget_nothing_is_masked_and_the_others_go_on(tmp_path: Path) -> None:
    small = PrivacyBudget(epsilon=0.1, delta=DELTA, unit=PrivacyUnit.USER)
    devices = {
        f"u{number}": make(tmp_path, number, budgets=(small,) if number == 3 else ())
        for number in range(DEVICES)
    }
    _introduce(devices)
    for device in devices.values():
        enrolment.enrol_device(device, PLAN, FRONT, default_statistics(INPUTS))
    name = secure_sum_name(PLAN.content_hash(), "round-1")

    def ask(step: str, requests: Any) -> dict[str, bytes]:
        answers = {}
        for user, body in requests.items():
            if (user, step) == ("u3", "mask"):
                with pytest.raises(BudgetSpent, match="for one user"):
                    _step(devices[user], name, step, body, "round-1")
            else:
                answers[user] = _step(devices[user], name, step, body, "round-1")
        return answers

    opened = run_secure_sum(SECURE.update, name, devices["u0"].pinned_roster, ask)

    assert set(opened.survivors) == {"u0", "u1", "u2", "u4"}
    assert not Device.open(devices["u3"].folder).ledger.releases


def _real(devices: dict[str, Device]) -> dict[str, Device]:
    """The same devices, which pay for every booking."""
    for device in devices.values():
        profile = replace(device.profile, simulated_seed=None)
        write_profile(device.folder / "device.json", profile)
        profile_seal.seal_profile(device.vault, profile)
    return {user: Device.open(device.folder) for user, device in devices.items()}


def _lines(device: Device) -> int:
    """How many releases a device has paid for."""
    return len(Device.open(device.folder).ledger.releases)


@pytest.mark.parametrize("kind", [ENROLMENT_SUM, "round-1"])
def test_a_repeated_message_costs_nothing(devices: dict[str, Device], kind: str) -> None:
    name = secure_sum_name(PLAN.content_hash(), kind)

    def ask(step: str, requests: Any) -> dict[str, bytes]:
        answers = {}
        for user, body in requests.items():
            device = Device.open(devices[user].folder)
            if (user, step) == ("u1", "share"):  # too early
                with pytest.raises(AggregationError, match="the next step is to share"):
                    _step(
                        device,
                        name,
                        "mask",
                        EncryptedSharesBatch(encrypted_shares=()).to_bytes(),
                        kind,
                    )
            answers[user] = _step(device, name, step, body, kind)
            if (user, step) == ("u1", "mask"):
                with pytest.raises(AggregationError, match="every step is taken once"):
                    _step(device, name, step, body, kind)
        return answers

    devices = _real(devices)
    settings = SECURE.enrolment if kind == ENROLMENT_SUM else SECURE.update
    opened = run_secure_sum(settings, name, devices["u0"].pinned_roster, ask)

    assert set(opened.survivors) == set(devices)
    assert len({_lines(device) for device in devices.values()}) == 1


def test_a_sum_that_never_began_costs_nothing(devices: dict[str, Device]) -> None:
    device = _real(devices)["u0"]
    with pytest.raises(MessageError, match="never began"):
        _step(device, secure_sum_name(PLAN.content_hash(), ENROLMENT_SUM), "mask", b"junk")
    assert not _lines(device)


def test_shares_that_do_not_open_cost_nothing(devices: dict[str, Device]) -> None:
    """One device seals rubbish: its neighbours refuse, the sum stays closed, nobody pays."""
    name, refused = secure_sum_name(PLAN.content_hash(), ENROLMENT_SUM), []

    def ask(step: str, requests: Any) -> dict[str, bytes]:
        answers = {}
        for user, body in requests.items():
            try:
                answers[user] = _step(Device.open(devices[user].folder), name, step, body)
            except AggregationError as error:
                refused.append(str(error))
            if (user, step) == ("u0", "share"):
                parcels = EncryptedSharesBatch.from_bytes(answers[user]).encrypted_shares
                rubbish = tuple(replace(one, ciphertext=b"\x01" + bytes(511)) for one in parcels)
                answers[user] = EncryptedSharesBatch(encrypted_shares=rubbish).to_bytes()
        return answers

    devices = _real(devices)
    with pytest.raises(AggregationError, match="stays closed"):
        run_secure_sum(SECURE.enrolment, name, devices["u0"].pinned_roster, ask)

    assert len(refused) == DEVICES - 1
    assert all("shares of 'u0' for" in each for each in refused)
    assert [_lines(devices[f"u{number}"]) for number in range(1, DEVICES)] == [0] * 4


def test_no_step_is_taken_twice(devices: dict[str, Device]) -> None:
    device, name = devices["u0"], secure_sum_name(PLAN.content_hash(), ENROLMENT_SUM)
    asked = AdvertiseRequest(round_name=name).to_bytes()
    _step(device, name, "advertise", asked)
    with pytest.raises(AggregationError):
        _step(device, name, "share", _share_of_strangers())
    with pytest.raises(AggregationError, match="every step is taken once"):
        _step(Device.open(device.folder), name, "share", _share_of_strangers())


def _share_of_strangers() -> bytes:
    """Advertisements of nobody."""
    return ShareRequest(advertisements=()).to_bytes()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": "0" * 32 + "/enrolment"}, MessageError),
        ({"step": "mask"}, SottovoceError),
        ({"step": "unmask"}, SottovoceError),
        ({"body": b"nonsense"}, MessageError),
    ],
)
def test_a_sum_that_makes_no_sense_is_refused(
    devices: dict[str, Device], change: dict[str, Any], error: type[Exception]
) -> None:
    name = secure_sum_name(PLAN.content_hash(), ENROLMENT_SUM)
    request = {
        "name": name,
        "step": "advertise",
        "body": AdvertiseRequest(round_name=name).to_bytes(),
    }
    with pytest.raises(error):
        _step(devices["u0"], **request | change)


def test_updates_of_secure_sums_never_leave_in_the_clear(devices: dict[str, Device]) -> None:
    with pytest.raises(MessageError, match="only in secure sums"):
        training_round.train_round(devices["u0"], TrainRequest(**ROUND))
    assert not devices["u0"].ledger.releases


def test_a_device_without_a_roster_sums_with_nobody(tmp_path: Path) -> None:
    device = make(tmp_path, 0)
    enrolment.enrol_device(device, PLAN, FRONT, default_statistics(INPUTS))
    name = secure_sum_name(PLAN.content_hash(), ENROLMENT_SUM)
    with pytest.raises(PrivacyError, match="no roster is pinned"):
        _step(device, name, "advertise", AdvertiseRequest(round_name=name).to_bytes())


def test_an_identity_is_kept_and_a_real_one_is_nobody_elses(tmp_path: Path) -> None:
    one = make(tmp_path, 0)
    assert one.identity_key == Device.open(one.folder).identity_key
    facts = replace(one.profile, simulated_seed=None)
    others = {
        Device.create(tmp_path / name, facts, one.load_features()).identity_key
        for name in ("a", "b")
    }
    assert len({one.identity_key, *others}) == 3


def test_what_a_secure_sum_takes_for_granted_is_what_its_plan_says() -> None:
    (claim,) = PLAN.scheme.assumptions(PLAN)
    assert f"at least {SECURE.update.quorum} devices, at most 0 side with the server" in claim


@pytest.mark.parametrize("seed", [7, None])
def test_a_secure_plan_is_told_the_identity_that_signs(tmp_path: Path, seed: int | None) -> None:
    device = make(tmp_path, 0, simulated_seed=seed)
    public = training_round.public_identity_key(device, PLAN)

    assert crypto.verify_signature(public, crypto.sign_message(device.identity_key, b"x"), b"x")
    assert training_round.public_identity_key(device, replace(PLAN, user=None)) == b""


def test_two_programs_never_take_one_step(
    devices: dict[str, Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is about to keep what it masked when the other asks; each in a thread of its own.

    Were the state not held, both would mask under the same masks: their difference would be that
    of two vectors in the clear.
    """
    name, put = secure_sum_name(PLAN.content_hash(), ENROLMENT_SUM), FileVault.put
    answers: list[bytes] = []

    def second(body: bytes) -> None:
        with suppress(AggregationError):
            answers.append(_step(Device.open(devices["u1"].folder), name, "mask", body))

    def ask(step: str, requests: Any) -> dict[str, bytes]:
        return {user: one(user, step, body) for user, body in requests.items()}

    def one(user: str, step: str, body: bytes) -> bytes:
        device = Device.open(devices[user].folder)
        if (user, step) != ("u1", "mask"):
            return _step(device, name, step, body)
        other = Thread(target=second, args=(body,))

        def slowly(vault: FileVault, blob: str, data: bytes, **how: Any) -> None:
            if vault is device.vault and blob == "secure-sum":
                other.start()
                other.join(0.5)  # long enough to mask, if nothing held it up
            put(vault, blob, data, **how)

        monkeypatch.setattr(FileVault, "put", slowly)
        answer = _step(device, name, step, body)
        monkeypatch.undo()
        other.join()
        return answer

    opened = run_secure_sum(SECURE.enrolment, name, devices["u0"].pinned_roster, ask)

    assert set(opened.survivors) == set(devices)
    assert not answers
