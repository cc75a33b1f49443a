"""Withdrawal in real runs: the unmodified apps, and an owner who ends it in the middle."""

import contextlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from sottovoce.client.app import app as product
from sottovoce.client.device.consent import Purpose
from sottovoce.client.device.device import Device
from sottovoce.server.consent.consent_registry import REGISTRY_FILE, ConsentRegistry
from sottovoce.server.consent.withdrawal_handler import read_withdrawals
from sottovoce.server.federation.training_job import Job
from sottovoce.server.personalisation.head_store import HeadStore
from sottovoce.shared import crypto
from sottovoce.shared.errors import EngineError
from sottovoce.shared.privacy.release import NoiseSource, SumMechanism
from sottovoce.shared.privacy.user_level import SecureSumConfigs, UserLevelPrivacy
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.shared.protocol.consent import ConsentStatement
from sottovoce.shared.protocol.local_training import NoPrivacy
from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
from sottovoce.shared.speaker.normalisation import EXACT_CENTRE, EXACT_MEAN

ADA, DAN = 0, 3
"""Their nodes' numbers; Ada trains and Dan only receives."""


class Owner(ClientApp):
    """The product's client, and an owner of Ada's device who withdraws around one of its answers.

    Args:
        folder: Ada's device.
        kind: The type of message at which she does.
        when: Before the answer is computed, or after it was computed and before it is sent.
    """

    def __init__(self, folder: Path, kind: str, when: str) -> None:
        super().__init__()
        self.folder, self.kind, self.when = folder, kind, when
        self.said: list[tuple[str, str]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        is_ada = int(context.node_config["partition-id"]) == ADA
        if is_ada and message.metadata.message_type == self.kind and self.when == "before":
            Device.open(self.folder).withdraw()
        reply = product(message, context)
        if is_ada:
            status = str(reply.content.config_records["sottovoce"]["status"])
            self.said.append((message.metadata.message_type, status))
        return reply


def device_folder(federation: Any, number: int = ADA) -> Path:
    """The folder of a device."""
    return Path(federation.folder / "devices" / f"{number:06d}")


def stored(federation: Any) -> list[str]:
    """Whose heads the server holds."""
    return HeadStore(federation.folder / "server" / "heads.sqlite").list_users()


def is_withdrawn(federation: Any, user: str = "ada") -> bool:
    """Whether the server knows that a user has withdrawn."""
    return ConsentRegistry(federation.folder / "server" / REGISTRY_FILE).is_withdrawn(user)


PHASES = {messages.ENROL: 0, messages.TRAIN: 1, messages.FINAL_MODEL: 2}


@pytest.mark.parametrize("kind", PHASES)
def test_an_owner_withdraws_in_any_phase(make_federation: Any, kind: str) -> None:
    federation = make_federation("a", rounds=2, quorum=0.0)
    owner = Owner(device_folder(federation), kind, "before")

    federation.run(client=owner)

    # From the first moment on she answers nothing else, and is asked for proof and confirmed.
    begin = [said[0] for said in owner.said].index(kind)
    assert owner.said[begin:] == [(kind, "withdrawn"), *[(messages.WITHDRAWAL, "withdrawn")] * 2]
    assert "ada" not in stored(federation)
    assert set(stored(federation)) == {"ben", "cleo", "dan"}
    assert is_withdrawn(federation)
    number = min(PHASES[kind], 2)
    assert read_withdrawals(federation.folder / "server") == [{"round": number, "users": 1}]
    [confirmed] = federation.device("ada").confirmed_deletions
    assert (confirmed["run"], confirmed["enrolment"]) == ("tiny", 1)


@pytest.mark.parametrize("moment", ["computing", "computed"])
def test_an_answer_under_way_is_not_sent(
    make_federation: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The owner withdraws from another program, while a round trains or just after."""
    from sottovoce.client.federation import training_round

    federation = make_federation("a", rounds=2, quorum=0.0)
    folder = device_folder(federation)
    whole = training_round.train_round

    def train(device: Device, request: messages.TrainRequest) -> Any:
        if device.profile.user == "ada" and moment == "computing":
            Device.open(folder).withdraw()
        update = whole(device, request)
        if device.profile.user == "ada":
            Device.open(folder).withdraw()
        return update

    monkeypatch.setattr(training_round, "train_round", train)
    owner = Owner(folder, "none", "before")
    federation.run(client=owner)

    assert (messages.TRAIN, "ok") not in owner.said
    assert (messages.TRAIN, "withdrawn") in owner.said
    assert is_withdrawn(federation)


def test_the_next_version_is_trained_without_them(make_federation: Any) -> None:
    federation = make_federation("a", rounds=1)
    federation.run()
    assert "ada" in stored(federation)
    backup = federation.folder / "backup"
    shutil.copytree(device_folder(federation), backup)
    Device.open(device_folder(federation)).withdraw()
    lines = federation.ledgers()["ada"]

    resume(federation)  # the server learns of it

    [confirmed] = federation.device("ada").confirmed_deletions
    assert confirmed["deleted"] == ["calibration heads"]
    assert "ada" not in stored(federation)
    assert federation.ledgers()["ada"] == lines
    # A copy of the device from before is refused: its enrolment has ended.
    shutil.rmtree(device_folder(federation))
    shutil.copytree(backup, device_folder(federation))
    owner = Owner(device_folder(federation), "none", "before")
    resume(federation, client=owner)
    assert [kind for kind, _ in owner.said] == [messages.ENROL]
    assert "ada" not in stored(federation)


def test_consent_anew_brings_the_user_back_with_the_same_ledger(make_federation: Any) -> None:
    federation = make_federation("a", rounds=1)
    Device.open(device_folder(federation)).withdraw()
    federation.run()
    assert "ada" not in stored(federation)
    spent = federation.ledgers()["ada"]

    device = Device.open(device_folder(federation))
    device.enrol_anew()
    device.consent.grant(Purpose.CONTRIBUTE)
    resume(federation)

    assert "ada" in stored(federation)
    assert not is_withdrawn(federation)
    assert federation.ledgers()["ada"].startswith(spent)


def resume(federation: Any, **options: Any) -> None:
    """Train again from the start, with all that the server holds of users."""
    for name in ("state.safetensors", "released.safetensors"):
        (federation.folder / "server" / name).unlink(missing_ok=True)
    federation.run(**options)


class SecureOwner(Owner):
    """As :class:`Owner`, of a secure sum, at one of its steps in the first round."""

    def __call__(self, message: Message, context: Context) -> Message:
        sums = message.content.config_records.get("sum") or {"name": "", "step": ""}
        is_ada = int(context.node_config["partition-id"]) == ADA
        if is_ada and "/round-1" in str(sums["name"]) and sums["step"] == self.when:
            Device.open(self.folder).withdraw()
        return super().__call__(message, context)


@pytest.mark.parametrize("step", messages.SECURE_SUM_STEPS)
def test_an_owner_withdraws_at_any_step_of_a_secure_sum(make_federation: Any, step: str) -> None:
    """Three devices, of which none may drop out: the sum may stay closed, the withdrawal counts."""
    federation = make_federation("a", rounds=2)
    make_secure(federation)
    owner = SecureOwner(device_folder(federation), "none", step)

    with contextlib.suppress(EngineError):
        federation.run(client=owner)

    begin = owner.said.index((messages.SECURE_SUM, "withdrawn"))
    assert {status for _, status in owner.said[begin:]} == {"withdrawn"}
    assert owner.said[-2:] == [(messages.WITHDRAWAL, "withdrawn")] * 2
    assert is_withdrawn(federation)
    [confirmed] = federation.device("ada").confirmed_deletions
    assert confirmed["enrolment"] == 1
    kinds = [release.round for release in federation.device("ada").ledger.releases]
    assert (1 in kinds) == (messages.SECURE_SUM_STEPS.index(step) > 2), "booked where it masked"


def make_secure(federation: Any) -> None:
    """Let a federation's three who train make all of its sums by secure aggregation."""
    folder, arranged = federation.folder / "server", {"dropout": 0.0, "corruption": 0.0}
    job, root = Job.load(folder), math.sqrt(2)
    noise = SumMechanism(
        noise_multiplier=3.0,
        clip_norm=0.5,
        noised_by=NoiseSource.DISTRIBUTED,
        discrete=True,
        near_gaussian=True,
    )
    sizes = (len(job.plan.labels) + job.plan.model.inputs, len(job.weights))
    secure = SecureSumConfigs(
        enrolment=select_parameters(3, sizes[0], root, noise_multiplier=3 / root, **arranged),
        update=select_parameters(3, sizes[1], 0.5, noise_multiplier=3.0, **arranged),
        dishonest=0,
    )
    user = UserLevelPrivacy(
        counts=replace(noise, clip_norm=20.0), centre=noise, update=noise, secure=secure
    )
    training = replace(job.plan.training, steps=1, sample_rate=1.0)
    plan = replace(
        job.plan,
        training=training,
        mechanism=NoPrivacy(),
        centre=EXACT_CENTRE,
        normaliser=EXACT_MEAN,
        count_noise=0.0,
        user=user,
    )
    replace(job, plan=plan, simulated_seed=7).save(folder)
    devices = [federation.device(user) for user in ("ada", "ben", "cleo")]
    roster = {one.profile.user: crypto.identity_public_key(one.identity_key) for one in devices}
    for one in devices:
        one.pin_roster(roster)


def test_a_run_that_fails_for_want_of_devices_settles_withdrawals(make_federation: Any) -> None:
    federation = make_federation("a", rounds=1, quorum=1.0)
    owner = Owner(device_folder(federation), messages.TRAIN, "before")

    with pytest.raises(EngineError, match="below the quorum"):
        federation.run(client=owner)

    assert is_withdrawn(federation)
    assert len(federation.device("ada").confirmed_deletions) == 1


class Impostor(ClientApp):
    """Dan's node says that Ada has withdrawn, and proves it as well as it can."""

    def __init__(self, prove: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self.prove = prove
        self.asked = 0

    def __call__(self, message: Message, context: Context) -> Message:
        if int(context.node_config["partition-id"]) != DAN:
            return product(message, context)
        proof = b""
        if message.metadata.message_type == messages.WITHDRAWAL:
            self.asked += 1
            request = flower_records.decode_withdrawal_request(message.content)
            proof = self.prove(request.challenge)
        reply = messages.Reply(user="ada", status=messages.Status.WITHDRAWN, consent=proof)
        return Message(flower_records.encode_reply(reply), reply_to=message)


def _forge(challenge: bytes) -> bytes:
    """A proof under a key that is not Ada's."""
    return ConsentStatement.sign_withdrawal(
        crypto.new_key(), user="ada", enrolment=1, challenge=challenge
    ).to_bytes()


@pytest.mark.parametrize("kind", ["forged", "replayed"])
def test_nobody_withdraws_for_somebody_else(make_federation: Any, kind: str) -> None:
    federation = make_federation("a", rounds=1)
    # Ada's own proof, as somebody recorded it: for a challenge of another time.
    replayed = ConsentStatement.sign_withdrawal(
        federation.device("ada").vault.derive_consent_key(),
        user="ada",
        enrolment=1,
        challenge=bytes(32),
    ).to_bytes()
    impostor = Impostor(_forge if kind == "forged" else lambda _: replayed)

    federation.run(client=impostor)

    assert impostor.asked >= 1
    assert not is_withdrawn(federation)
    assert "ada" in stored(federation)
    assert read_withdrawals(federation.folder / "server") == []


def test_a_server_that_was_killed_deletes_the_rest_when_it_starts(make_federation: Any) -> None:
    federation = make_federation("a", rounds=1)
    federation.run()
    registry = ConsentRegistry(federation.folder / "server" / REGISTRY_FILE)
    challenge = crypto.new_key()
    key = federation.device("ada").vault.derive_consent_key()
    proof = ConsentStatement.sign_withdrawal(key, user="ada", enrolment=1, challenge=challenge)
    assert registry.record_withdrawal("ada", proof, challenge=challenge)
    assert "ada" in stored(federation), "killed between the record and the deletion"

    # Ada's node is away for good.
    federation.run(is_lost=lambda message: message.metadata.dst_node_id == 100)

    assert "ada" not in stored(federation)


@pytest.mark.parametrize("real", [True, False])
def test_the_deployed_client_answers_every_request_with_the_withdrawal(
    make_federation: Any, real: bool
) -> None:
    """A SuperNode's context names the device's folder; a real device has no seed."""
    federation = make_federation("a", rounds=1, **({"seed": None} if real else {}))
    folder = device_folder(federation)
    Device.open(folder).withdraw()
    context = Context(1, 100, {"device": str(folder)}, RecordDict(), {})
    challenge = crypto.new_key()

    for kind in (messages.ENROL, messages.TRAIN, messages.SECURE_SUM, messages.HEAD_STATISTICS):
        assert ask(context, kind, RecordDict()).status is messages.Status.WITHDRAWN
    assert ask(context, messages.FINAL_MODEL, RecordDict()).head == b""
    request = flower_records.encode_request(messages.WithdrawalRequest(challenge=challenge))
    proof = ConsentStatement.from_bytes(ask(context, messages.WITHDRAWAL, request).consent)
    assert proof.is_withdrawal_of("ada", challenge)

    Device.open(folder).enrol_anew()
    refused = ask(context, messages.WITHDRAWAL, request)
    assert (refused.status, refused.consent) == (messages.Status.REFUSED, b"")


def ask(context: Context, kind: str, content: RecordDict) -> messages.Reply:
    """Ask the product's client."""
    from sottovoce.simulations.engines import local

    local.set_task_identity()
    message = Message(content, 100, kind)
    message.metadata.__dict__["_message_id"] = "1"
    return flower_records.decode_reply(product(message, context).content, size=0)


def test_the_record_of_a_run_names_nobody(make_federation: Any) -> None:
    federation = make_federation("a", rounds=1)
    Device.open(device_folder(federation)).withdraw()
    federation.run()

    record = json.loads((federation.folder / "server" / "withdrawals.json").read_text())
    assert record == {"schema": 1, "withdrawals": [{"round": 0, "users": 1}]}
    assert torch.isfinite(federation.released()).all()
