"""Every field of every message of a run is a public constant, ciphertext, or a booked release.

A tap sits where a device's replies leave it. At that moment it takes the reply apart as Flower
serialises it and asks, of every field, what it is. A field that nobody can account for is a fault;
so is a release whose record is not in the ledger on disk yet. Planted leaks show that it can fail.

Not looked for: what a value tells although it is a booked release (the noise's size: test_noise of
devices and sums; attacks: the audit), whether masks hide (tests of secure aggregation), and timing.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_plan
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_to_proto
from safetensors.torch import save_file
from torch import Tensor

from sottovoce.client.app import app as product_client
from sottovoce.client.device import withdrawal
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.client.device.user_key import unwrap_key
from sottovoce.client.device.vault import FileVault
from sottovoce.client.federation import final_model
from sottovoce.client.personalisation import head_calibrator
from sottovoce.server.aggregation.private_sums import LEDGER_FILE, LEDGER_OWNER
from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.app import app as product_server
from sottovoce.server.federation.training_job import Job
from sottovoce.server.personalisation.head_store import HeadStore
from sottovoce.shared import crypto, errors
from sottovoce.shared.calibration.head_statistics import (
    SCORE_QUANTILES,
    STATISTICS_SIZE,
    CalibrationQuery,
    CalibrationRelease,
)
from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import count_parameters, flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.bounds import PrivacyBounds, UserLevelSettings
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import NoiseSource, Release, ReleaseKind, SumMechanism
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.shared.privacy.target import BudgetShares, PrivacyTarget
from sottovoce.shared.privacy.user_level import (
    ENROLMENT_SUM,
    HEAD_STATISTICS_SUM,
    AdaptiveClipping,
    SecureSumConfigs,
    UserLevelPrivacy,
    secure_sum_kind,
)
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.secure_aggregation import messages as secagg_messages
from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
from sottovoce.shared.speaker.normalisation import (
    EXACT_MEAN,
    CentreRelease,
    NormaliserRelease,
    default_statistics,
)
from sottovoce.simulations.engines import device_host, local
from sottovoce.simulations.engines.device_host import SimulatedNodes

LABELS = ("angry", "happy", "sad")
FEATURES, INPUTS, CLIPS, ROUNDS, SEALED = 6, 4, 12, 2, 2048
USERS = tuple(f"u{number}" for number in range(6))
"""Names of one length, so that messages can be compared; the last one only receives."""

SECRET = "ada said this in anger"
PROJECTION = PublicProjection(
    mean=torch.zeros(FEATURES),
    matrix=torch.randn(FEATURES, INPUTS, generator=torch.Generator().manual_seed(1)),
    row_norm=1.0,
)
MODEL = ModelSpec(kind="linear", inputs=INPUTS, classes=len(LABELS))
NONE = make_plan(
    run="tiny",
    labels=LABELS,
    extractor="random",
    projection_hash=PROJECTION.content_hash(),
    model=MODEL,
    rounds=ROUNDS,
    normaliser=EXACT_MEAN,
    calibration=CalibrationRelease(noise_multiplier=0.0, subtracted_share=0.4),
)
UTTERANCE = replace(
    NONE,
    mechanism=ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=1.0),
    centre=CentreRelease(clip_norm=1.5, noise_multiplier=4.0),
    normaliser=NormaliserRelease(clip_norm=0.8, count_weight=0.24, noise_multiplier=4.0),
    count_noise=4.0,
    calibration=CalibrationRelease(noise_multiplier=4.0, subtracted_share=0.4),
)


def _user(noised_by: NoiseSource, secure: SecureSumConfigs | None = None) -> UserLevelPrivacy:
    """A promise to users by one kind of noise."""

    def noise(bound: float) -> SumMechanism:
        discrete = noised_by is NoiseSource.DISTRIBUTED
        return SumMechanism(
            noise_multiplier=1.0, clip_norm=bound, noised_by=noised_by, discrete=discrete
        )

    return UserLevelPrivacy(
        counts=noise(5.0),
        centre=noise(1.5),
        update=noise(0.5),
        secure=secure,
        calibration=noise(0.4),
    )


def _secure() -> SecureSumConfigs:
    """Sums over the five who contribute."""
    devices = len(USERS) - 1
    arranged: dict[str, Any] = {"dropout": 0.2, "corruption": 0.0}
    first, root = len(LABELS) + INPUTS, math.sqrt(2)
    return SecureSumConfigs(
        enrolment=select_parameters(devices, first, root, noise_multiplier=1 / root, **arranged),
        update=select_parameters(
            devices,
            count_parameters(build_network(MODEL, 0)),
            0.5,
            noise_multiplier=1.0,
            **arranged,
        ),
        dishonest=0,
        calibration=select_parameters(
            devices, STATISTICS_SIZE, 0.4, noise_multiplier=1.0, **arranged
        ),
    )


def _learning(clip: AdaptiveClipping) -> UserLevelPrivacy:
    """A promise to users whose clip norm is learned: one more number rides along."""
    usual = _user(NoiseSource.SERVER)
    return replace(usual, update=replace(usual.update, clip_norm=clip.norm_bound), adaptive=clip)


def _banded(bands: BandedNoise) -> UserLevelPrivacy:
    """A promise to users in participation groups."""
    usual = _user(NoiseSource.SERVER)
    return replace(usual, update=replace(usual.update, bands=bands))


def _in_secure_sums(unit: str) -> Plan:
    """A plan whose sums hide an utterance, with all the noise that it promises."""
    target = PrivacyTarget(unit=unit, secure=True, shares=BudgetShares(head_statistics=0.04))
    user = UserLevelSettings(
        dropout=0.2, corruption=0.0, update_norm=2.0, centre_norm=40.0, calibration_norm=20.0
    )
    bounds = PrivacyBounds(user=user)
    scheme = scheme_for(unit, secure=True)
    noised = scheme.add_noise(NONE, target, bounds)
    return scheme.add_secure_sums(noised, bounds, devices=len(USERS) - 1)


PLANS = {
    "none": NONE,
    "utterance": UTTERANCE,
    "user": replace(NONE, user=_user(NoiseSource.SERVER)),
    "both": replace(
        UTTERANCE,
        mechanism=ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=1.0, sum_norm=0.5),
        user=_user(NoiseSource.DEVICES),
    ),
    "secure": replace(NONE, user=_user(NoiseSource.DISTRIBUTED, _secure())),
    "secure-utterance": _in_secure_sums("utterance"),
    "secure-both": _in_secure_sums("both"),
    "learned": replace(NONE, user=_learning(AdaptiveClipping(start=0.5))),
    "banded": replace(NONE, user=_banded(BandedNoise.from_square_root(bands=2, min_separation=2))),
}
UNITS = tuple(PLANS)
SECURE_UNITS = ("secure", "secure-utterance", "secure-both")


# --- a federation ----------------------------------------------------------------------------


Change = Callable[[LabelledFeatures], LabelledFeatures]


def _clips(index: int) -> LabelledFeatures:
    """A dozen random vectors; who only receives has one labelled clip for a head."""
    contributes = index < len(USERS) - 1
    generator = torch.Generator().manual_seed(index)
    everyone = torch.ones(CLIPS, dtype=torch.bool)
    examples = Examples(
        features=torch.randn(CLIPS, FEATURES, generator=generator),
        frames=torch.ones(CLIPS, dtype=torch.int64),
        labels=torch.arange(CLIPS) % len(LABELS),
    )
    return LabelledFeatures(
        examples=examples,
        for_enrolment=everyone,
        for_head=(torch.arange(CLIPS) == 0) & (not contributes),
        for_training=everyone & contributes,
    )


def _federation(
    folder: Path,
    plan: Plan,
    *,
    change: Mapping[str, Change] | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Device]:
    """A job and its devices; ``change`` changes what a user has, ``facts`` what they decided."""
    devices = {}
    for index, user in enumerate(USERS):
        clips = (change or {}).get(user, lambda clips: clips)(_clips(index))
        usual = DeviceProfile(
            user=user,
            budgets=(),
            contributes=user != USERS[-1],
            labels=(*LABELS, SECRET),  # what the plan does not know must not show
            simulated_seed=7,
            min_cohort=3,
            min_dishonest_share=0.0,
        )
        known = replace(usual, **(facts or {}).get(user, {}))
        devices[user] = Device.create(folder / "devices" / f"{index:06d}", known, clips)
    identities = {
        user: crypto.identity_public_key(one.identity_key) for user, one in devices.items()
    }
    for one in devices.values():
        one.pin_roster({user: identities[user] for user in USERS[:-1]})
    job = Job(
        plan=plan,
        aggregation=AggregationSettings(),
        weights=flatten_parameters(build_network(MODEL, 0)),
        projection=PROJECTION,
        speaker_statistics=default_statistics(INPUTS),
        devices=len(USERS),
        timeout_s=30.0,
        simulated_seed=7,
        held_out_path=_held_out(folder),
    )
    job.save(folder / "server")
    return devices


def _held_out(folder: Path) -> Path:
    """Public speakers, who say what users are asked."""
    generator = torch.Generator().manual_seed(2)
    public = {
        "features": torch.randn(CLIPS, INPUTS, generator=generator),
        "frames": torch.ones(CLIPS, dtype=torch.int64),
        "labels": torch.arange(CLIPS) % len(LABELS),
        "speakers": torch.arange(CLIPS) // len(LABELS),
    }
    save_file(public, folder / "held_out.safetensors")
    return folder / "held_out.safetensors"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One exchange, as whoever listens sees it.

    Attributes:
        kind: Its type, and the step of a secure sum.
        user: Whose device.
        size: Bytes of the reply's content.
        said: What of it is public and could vary: status, reason, version.
    """

    kind: str
    user: str
    size: int
    said: tuple[Any, ...]


Leak = Callable[[Message], Message]


@dataclass
class TapRecord:
    """The exchanges that a tap saw, and what nobody could account for."""

    exchanges: list[Exchange] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    sent: bytes = b""


class Tap(ClientApp):
    """Listens where messages reach a device and leave it; lets a test plant a leak."""

    def __init__(self, folder: Path, plan: Plan, leak: Leak = lambda reply: reply) -> None:
        super().__init__()
        self.folder, self.plan, self.leak = folder, plan, leak
        self.record = TapRecord()

    def __call__(self, message: Message, context: Context) -> Message:
        request = message_from_proto(message_to_proto(message))
        self.record.faults += _faults(_fields(request), _may_ask(request, self.plan, self.folder))
        reply = self.leak(device_host.call_client(product_client, message, context))
        proto = message_to_proto(reply)
        self.record.sent += proto.SerializeToString()
        index = int(context.node_config["partition-id"])
        device = Device.open(self.folder / "devices" / f"{index:06d}", read_only=True)
        fields = _fields(message_from_proto(proto))
        self.record.faults += _faults(fields, _may_say(request, fields, self.plan, device))
        self.record.exchanges.append(_exchange(request, reply, device.profile.user))
        return reply


def _run(
    folder: Path, plan: Plan, *, leak: Leak = lambda reply: reply, **federation: Any
) -> TapRecord:
    """A whole run, listened to."""
    _federation(folder, plan, **federation)
    tap = Tap(folder, plan, leak)
    config = {"job": str(folder / "server"), "devices": str(folder / "devices")}
    local.run_server_and_client(product_server, tap, devices=len(USERS), config=config)
    return tap.record


def _exchange(request: Message, reply: Message, user: str) -> Exchange:
    """What of an exchange must not depend on anybody's data."""
    kind, step = request.metadata.message_type, request.content.config_records.get("sum")
    size, said = 0, ()
    if reply.has_content():
        size = len(recorddict_to_proto(reply.content).SerializeToString())
        facts = reply.content.config_records["sottovoce"]
        said = tuple(facts.get(name) for name in ("status", "reason", "version"))
    return Exchange(kind=f"{kind} {step['step'] if step else ''}", user=user, size=size, said=said)


# --- what is in a message ---------------------------------------------------------------------


def _fields(message: Message) -> dict[str, Any]:
    """Everything that a message says, by its path; arrays whole, headers included."""
    metadata = message_to_proto(message).metadata
    fields = {f"metadata/{one.name}": value for one, value in metadata.ListFields()}
    if message.has_error():
        return fields | {"error/code": message.error.code, "error/reason": message.error.reason}
    for group, record in message.content.items():
        fields[group] = type(record).__name__
        fields |= {f"{group}/{name}": _plain(value) for name, value in record.items()}
    return fields


def _plain(value: Any) -> Any:
    """A value that can be compared."""
    if isinstance(value, Array):
        return value.dtype, tuple(value.shape), value.stype, value.data
    return value


Rule = Callable[[Any], bool]


def _faults(fields: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[str]:
    """Fields that no rule knows, or whose rule does not hold."""
    return [
        f"{path} is {str(value)[:80]!r}: {'not as booked' if path in rules else 'unaccounted for'}"
        for path, value in fields.items()
        if path not in rules or not rules[path](value)
    ]


def _is(wanted: Any) -> Rule:
    """A public constant."""
    return lambda value: type(value) is type(wanted) and value == wanted


def _array(wanted: Tensor | None) -> Rule:
    """Exactly this array; None stands for a release that is not booked."""
    if wanted is None:
        return lambda _value: False
    return _is(_plain(Array(wanted.contiguous().numpy())))


# --- what may be in a reply -------------------------------------------------------------------


KINDS = {
    name
    for space in (errors, __import__("builtins"))
    for name, one in vars(space).items()
    if isinstance(one, type) and issubclass(one, Exception)
}
"""A refusal names its kind, one of these words, and nothing else."""

UNOPENED = {f"this device cannot answer ({kind}); its own log says why" for kind in KINDS}


def _may_say(
    request: Message, fields: Mapping[str, Any], plan: Plan, device: Device
) -> dict[str, Rule]:
    """What each field of a device's reply must be, now that it leaves."""
    asked, envelope = request.metadata, message_to_proto(request).metadata
    ended = fields["metadata/created_at"] + fields["metadata/ttl"]
    rules: dict[str, Rule] = {
        # Public constants: they follow from the request and from who answers.
        "metadata/run_id": _is(asked.run_id),
        "metadata/src_node_id": _is(asked.dst_node_id),
        "metadata/dst_node_id": _is(asked.src_node_id),
        "metadata/reply_to_message_id": _is(asked.message_id),
        "metadata/group_id": _is(asked.group_id),
        "metadata/message_type": _is(asked.message_type),
        "metadata/src_task_id": _is(envelope.dst_task_id or local.SERVER_NODE_ID),
        "metadata/dst_task_id": _is(envelope.src_task_id),
        # When it was made (timing is not protected), and no more room than that.
        "metadata/created_at": lambda at: 0 <= at - asked.created_at < 60,
        "metadata/ttl": lambda _: abs(ended - asked.created_at - asked.ttl) < 1e-3,
        # What Flower makes of an exception: a number, and a kind.
        "error/code": _is(device_host.APP_ERROR_CODE),
        "error/reason": UNOPENED.__contains__,
    }
    if "error/code" in fields:
        return rules
    status = fields.get("sottovoce/status")
    good = status == messages.Status.OK
    enrols = asked.message_type == messages.ENROL  # who only receives has an identity too
    said = good or (
        enrols and status == messages.Status.RECEIVE_ONLY and not fields["sottovoce/reason"]
    )
    personal = good and asked.message_type == messages.FINAL_MODEL
    return rules | {
        "sottovoce": _is("ConfigRecord"),
        "sottovoce/schema": _is(flower_records.SCHEMA),
        "sottovoce/user": _is(device.profile.user),  # the pseudonym
        # Status and kind of a refusal: not data, as federations that differ in data show below.
        "sottovoce/status": lambda status: status in set(map(str, messages.Status)),
        "sottovoce/reason": _reason(status),
        # Ciphertext of a public length, that only the user's key opens; heads are counted.
        "sottovoce/version": _is(_heads(device) if personal else 0),
        "sottovoce/head": _head(plan, device, request) if personal else _is(b""),
        "sottovoce/body": _body(request, plan, device) if said else _is(b""),
        # Signed under the user's key, over public facts alone.
        **({"sottovoce/consent": _consent(plan, device)} if said and enrols else {}),
        **(_released(request, plan, device) if good else {}),
    }


def _consent(plan: Plan, device: Device) -> Rule:
    """The statement that this enrolment of the user takes part in this plan."""
    return _is(
        withdrawal.sign_consent(device.vault, device.profile, plan.content_hash()).to_bytes()
    )


def _reason(status: object) -> Rule:
    """Why nothing was given."""
    spent = status == messages.Status.RECEIVE_ONLY
    allowed = {"", "its budget is spent"} if spent else {""}
    return (KINDS if status == messages.Status.REFUSED else allowed).__contains__


def _ledger_lines(path: Path) -> dict[str, Release]:
    """A ledger's lines as they lie on disk, by name."""
    lines = map(json.loads, path.read_bytes().splitlines() if path.exists() else ())
    return {line["id"]: Release.from_dict(line["release"]) for line in lines if "id" in line}


def _head(plan: Plan, device: Device, request: Message) -> Rule:
    """The head that is booked, sealed under the user's key."""
    weights = flower_records.decode_final_model_request(request.content).weights
    version = _heads(device)
    binding = head_calibrator._binding(plan.hash_model(weights), version)
    booked = f"{plan.run}/head-{version}" in _ledger_lines(device.ledger.path)

    def opens(blob: Any) -> bool:
        try:
            device.vault.unseal(blob, *binding)
        except PrivacyError:
            return False
        return booked and len(blob) == SEALED

    return opens


def _heads(device: Device) -> int:
    """How many heads are booked, after those that the user's earlier devices let out."""
    lines = _ledger_lines(device.ledger.path)
    heads = [name for name, one in lines.items() if one.kind is ReleaseKind.SEALED_HEAD]
    earlier = min((int(name.rpartition("-")[2]) for name in heads), default=1) - 1
    return earlier + len(heads)


def _released(request: Message, plan: Plan, device: Device) -> dict[str, Rule]:
    """The one released vector of a reply, where it has one: booked, and exactly what was made."""
    parts: list[Tensor | None] = []
    secure = _configs(plan) is not None
    kind = request.metadata.message_type
    if kind == messages.ENROL and secure:
        parts = [torch.zeros(0)]
    elif kind == messages.ENROL:
        parts = [_made(device, plan.counts_release()), _made(device, plan.centre_release())]
    elif kind == messages.TRAIN:
        number = flower_records.decode_train_request(request.content).round
        parts = [_made(device, plan.gradient_release(number))]
        if not _holds(device, plan.normaliser_release()):  # it shapes what is sent
            parts = [None]
    elif kind == messages.HEAD_STATISTICS:
        parts = [_made(device, plan.calibration_release())]
        if not _holds(device, plan.normaliser_release()):
            parts = [None]
    if not parts:
        return {}
    known = [part for part in parts if part is not None]
    value = torch.cat(known) if len(known) == len(parts) else None
    return {"release": _is("ArrayRecord"), "release/value": _array(value)}


def _holds(device: Device, release: Release | None) -> bool:
    """Whether a release is in the ledger on disk."""
    return release is None or release in _ledger_lines(device.ledger.path).values()


def _made(device: Device, release: Release | None) -> Tensor | None:
    """What the device keeps as the value of a booked release; None where none is booked."""
    slot = f"outbox-{release.kind.value}" if release else ""
    if not release or not device.vault.has_blob(slot):
        return None
    stored = device.vault.get_tensors(slot)
    stamp = bytes(stored["stamp"].tolist())
    named = [name for name, one in _ledger_lines(device.ledger.path).items() if one == release]
    found = any(hashlib.sha256(name.encode()).digest() == stamp for name in named)
    return stored["value"] if found else None


def _configs(plan: Plan) -> SecureSumConfigs | None:
    """How a plan's sums are made, where they are secure."""
    return plan.scheme.match_sums(plan, plain=lambda: None, secure=lambda configs: configs)


def _body(request: Message, plan: Plan, device: Device) -> Rule:
    """What a device says in a secure sum, and its identity's public half before."""
    secure = _configs(plan)
    if secure is None or request.metadata.message_type == messages.FINAL_MODEL:
        return _is(b"")
    if request.metadata.message_type == messages.ENROL:
        return _is(crypto.identity_public_key(device.identity_key))
    asked = request.content.config_records["sum"]
    step, name = str(asked["step"]), str(asked["name"])
    settings = secure.config_for(secure_sum_kind(plan.content_hash(), name))
    readers: dict[str, Rule] = {
        "advertise": lambda body: _advertised(body, device.profile.user, name),
        "share": lambda body: _encrypted_shares(body, device.profile.user),
        "mask": lambda body: (
            _exact(
                body,
                lambda data: secagg_messages.MaskedUpdate.from_bytes(
                    data, parameters=settings.parameters, bits=settings.bits
                ),
            )
            and _mask_booked(plan, name, device)
        ),
        "agree": lambda body: _exact(body, secagg_messages.ConsistencySignature.from_bytes),
        "unmask": lambda body: (
            _exact(body, secagg_messages.UnmaskShares.from_bytes)
            and set(secagg_messages.UnmaskShares.from_bytes(body).shares) <= set(USERS[:-1])
        ),
    }
    return readers[step]


def _exact(body: bytes, read: Callable[[bytes], Any]) -> bool:
    """Whether bytes are exactly one message: its fields have public lengths, nothing is left."""
    try:
        again: bytes = read(body).to_bytes()
    except errors.MessageError:
        return False
    return again == body


def _advertised(body: bytes, user: str, name: str) -> bool:
    """Fresh public keys, a commitment and a signature, under public names."""
    if not _exact(body, secagg_messages.KeyAdvertisement.from_bytes):
        return False
    read = secagg_messages.KeyAdvertisement.from_bytes(body)
    return (read.user, read.round_name) == (user, name)


def _encrypted_shares(body: bytes, user: str) -> bool:
    """Sealed shares for the neighbours, and what fixes them."""
    if not _exact(body, secagg_messages.EncryptedSharesBatch.from_bytes):
        return False
    batch = secagg_messages.EncryptedSharesBatch.from_bytes(body).encrypted_shares
    return all(one.sender == user and one.receiver in USERS[:-1] for one in batch)


def _mask_booked(plan: Plan, name: str, device: Device) -> bool:
    """Whether what a masked vector holds is in the ledger."""
    kind = secure_sum_kind(plan.content_hash(), name)
    if kind == ENROLMENT_SUM:
        return all(_holds(device, one) for one in (plan.counts_release(), plan.centre_release()))
    made = plan.calibration_release()
    if kind != HEAD_STATISTICS_SUM:
        made = plan.gradient_release(int(kind.removeprefix("round-")))
    # The normaliser shapes both.
    return all(_holds(device, one) for one in (made, plan.normaliser_release()))


# --- what may be in a request -----------------------------------------------------------------


def _may_ask(request: Message, plan: Plan, folder: Path) -> dict[str, Rule]:
    """What each field of a server's request must be: public, or computed from booked sums."""
    kind = request.metadata.message_type
    rules: dict[str, Rule] = {
        f"metadata/{name}": lambda _value: True  # the server's own affairs
        for name in (
            "run_id",
            "message_id",
            "src_node_id",
            "dst_node_id",
            "created_at",
            "ttl",
            "src_task_id",
        )
    }
    rules |= {
        "metadata/message_type": lambda kind: (
            kind
            in (
                messages.ENROL,
                messages.TRAIN,
                messages.SECURE_SUM,
                messages.HEAD_STATISTICS,
                messages.FINAL_MODEL,
            )
        ),
        "sottovoce": _is("ConfigRecord"),
        "sottovoce/schema": _is(flower_records.SCHEMA),
    }
    if kind == messages.ENROL:
        return rules | _public(plan)
    if kind == messages.SECURE_SUM:
        rules |= _asked_sum(request, plan)
    if kind == messages.FINAL_MODEL:
        rules |= _offered(request, folder) | _directions(request, folder)
    number = int(request.content.config_records["sottovoce"].get("round", ROUNDS + 1))
    learned = _learned(plan, folder, number)
    answered = learned and (kind != messages.FINAL_MODEL or _answered(plan, folder))
    return rules | {
        "sottovoce/plan": _is(plan.content_hash()),
        "sottovoce/round": lambda value: 1 <= value <= ROUNDS,
        # Of public speakers, and of what users answered.
        "sottovoce/prior": lambda prior: answered and set(json.loads(prior)) != set(),
        "model": _is("ArrayRecord"),
        # What is asked comes from public speakers under a model that was paid for.
        "question": _is("ArrayRecord"),
        **dict.fromkeys(
            (
                "sottovoce/denominator",
                "sottovoce/clip",
                "sottovoce/share",
                "sottovoce/log_temperature",
                "sottovoce/bend",
                "question/edges",
                "question/shares",
                "model/weights",
                "model/class_weights",
                "model/centre",
            ),
            lambda _value: learned,
        ),
    }


def _directions(request: Message, folder: Path) -> dict[str, Rule]:
    """In what directions heads may bend: what public speakers say under these very weights."""
    weights = flower_records.decode_final_model_request(request.content).weights
    tensors = _public_directions(folder / "server", tuple(weights.tolist()))
    assert tensors, "these runs have public speakers"
    return {
        "basis": _is("ArrayRecord"),
        **{f"basis/{name}": _array(tensor) for name, tensor in tensors.items()},
    }


@lru_cache(maxsize=1)
def _public_directions(job: Path, weights: tuple[float, ...]) -> dict[str, Tensor]:
    """What a job's public speakers say of these weights; every device is told the same."""
    return dict(Job.load(job).estimate_head_prior(torch.tensor(weights)).basis_tensors())


def _offered(request: Message, folder: Path) -> dict[str, Rule]:
    """The ciphertext that was put for this very user, where there is one, and nothing else."""
    user = USERS[request.metadata.dst_node_id - device_host.FIRST_NODE_ID]
    store = Job.load(folder / "server").head_store_path or folder / "server" / "heads.sqlite"
    stored = HeadStore(store).get(user)
    if stored is None:
        return {}
    return {
        "sottovoce/kept": _is(stored.blob),
        "sottovoce/kept_version": _is(stored.version),
        "sottovoce/kept_model": _is(stored.model_hash),
    }


def _public(plan: Plan) -> dict[str, Rule]:
    """Plan, front and population, which rest on nothing private."""
    population = default_statistics(INPUTS)
    names = type(population).__dataclass_fields__
    return {
        "sottovoce/plan": _is(plan.to_json()),
        "sottovoce/length": _is(PROJECTION.row_norm),
        "front": _is("ArrayRecord"),
        "front/mean": _array(PROJECTION.mean),
        "front/matrix": _array(PROJECTION.matrix),
        "population": _is("ArrayRecord"),
        **{f"population/{name}": _array(getattr(population, name)) for name in names},
    }


def _asked_sum(request: Message, plan: Plan) -> dict[str, Rule]:
    """A secure sum's step: public names, and what other devices said, which was looked at there."""
    readers: dict[str, Callable[[bytes], Any]] = {
        "advertise": secagg_messages.AdvertiseRequest.from_bytes,
        "share": secagg_messages.ShareRequest.from_bytes,
        "mask": secagg_messages.EncryptedSharesBatch.from_bytes,
        "agree": secagg_messages.Survivors.from_bytes,
        "unmask": secagg_messages.UnmaskRequest.from_bytes,
    }
    step = request.content.config_records["sum"]["step"]
    return {
        "sum": _is("ConfigRecord"),
        "sum/plan": _is(plan.content_hash()),
        "sum/name": lambda name: str(name).startswith(plan.content_hash()[:32]),
        "sum/step": readers.__contains__,
        "sum/body": lambda body: _exact(body, readers[str(step)]),
    }


def _learned(plan: Plan, folder: Path, number: int) -> bool:
    """Whether all that a round's request rests on was booked: by the server, or by the devices."""
    bands = plan.user.update.bands if plan.user else None
    first = bands.block_start if bands else int  # a block of rounds is paid for by its first
    wanted = {plan.counts_release(), *(plan.gradient_release(first(n)) for n in range(1, number))}
    return _booked(plan, folder, wanted | {one for one in [plan.centre_release()] if one})


def _answered(plan: Plan, folder: Path) -> bool:
    """Whether the answers that the heads' prior rests on were booked."""
    return _booked(plan, folder, {one for one in [plan.calibration_release()] if one})


def _booked(plan: Plan, folder: Path, wanted: set[Release]) -> bool:
    """Whether releases are in the server's ledger, or in those of all devices that take part."""
    if plan.user:
        sums = Ledger(folder / "server" / LEDGER_FILE, owner=LEDGER_OWNER, read_only=True)
        return wanted <= set(sums.releases)
    folders = [folder / "devices" / f"{index:06d}" for index in range(len(USERS) - 1)]
    ledgers = [set(_ledger_lines(one / "ledger.jsonl").values()) for one in folders]
    enrolled = [lines for lines in ledgers if plan.counts_release() in lines]
    return bool(enrolled) and all(wanted <= lines for lines in enrolled)


# --- the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_every_field_of_a_run_is_public_sealed_or_booked(tmp_path: Path, unit: str) -> None:
    record = _run(tmp_path, PLANS[unit])

    assert record.faults == []
    steps = [f"{messages.SECURE_SUM} {step}" for step in messages.SECURE_SUM_STEPS] * (2 + ROUNDS)
    plain = [*[f"{messages.TRAIN} "] * ROUNDS, f"{messages.HEAD_STATISTICS} "]
    rounds = steps if unit in SECURE_UNITS else plain
    for user in USERS:
        own = [rounds[0], rounds[-1]] if unit == "banded" else rounds  # one round, and calibration
        sent = own if user != USERS[-1] else []
        kinds = [one.kind for one in record.exchanges if one.user == user]
        assert kinds == [f"{messages.ENROL} ", *sent, f"{messages.FINAL_MODEL} "]


def _without(*chosen: int) -> Change:
    """Without some clips."""
    mask = torch.tensor([index not in chosen for index in range(CLIPS)])

    def change(clips: LabelledFeatures) -> LabelledFeatures:
        return LabelledFeatures(
            examples=clips.examples.select(mask),
            for_enrolment=clips.for_enrolment[mask],
            for_head=clips.for_head[mask],
            for_training=clips.for_training[mask],
        )

    return change


def _with_first(value: float) -> Change:
    """The first clip's features are all this number."""

    def change(clips: LabelledFeatures) -> LabelledFeatures:
        features = clips.examples.features.clone()
        features[0] = value
        return replace(clips, examples=replace(clips.examples, features=features))

    return change


def _with_own_label(clips: LabelledFeatures) -> LabelledFeatures:
    """The first clip has a label that the plan does not know."""
    labels = clips.examples.labels.clone()
    labels[0] = len(LABELS)
    return replace(clips, examples=replace(clips.examples, labels=labels))


NEIGHBOURS: dict[str, Change] = {
    "one utterance fewer": _without(0),
    "without one emotion": _without(*range(0, CLIPS, len(LABELS))),
    "nothing at all": _without(*range(CLIPS)),
    "an utterance far off": _with_first(1e30),
    "an utterance of NaN": _with_first(math.nan),
    "an utterance of no sound": _with_first(0.0),
    "a label of the user's own": _with_own_label,
}


def _seen(record: TapRecord, user: str) -> list[tuple[str, int, tuple[Any, ...]]]:
    """What a listener sees of one user without reading values."""
    return [(one.kind, one.size, one.said) for one in record.exchanges if one.user == user]


@pytest.mark.parametrize("unit", UNITS)
def test_neither_sizes_nor_statuses_depend_on_what_a_user_has(tmp_path: Path, unit: str) -> None:
    usual = _run(tmp_path / "usual", PLANS[unit])
    for user in USERS[1:-1]:
        assert _seen(usual, user) == _seen(usual, USERS[0])

    for name, change in NEIGHBOURS.items():
        both = {USERS[0]: change, USERS[-1]: change}  # one who trains, one who only receives
        other = _run(tmp_path / name, PLANS[unit], change=both)
        assert other.faults == [], name
        for user in USERS:
            assert _seen(other, user) == _seen(usual, user), name


def test_no_single_clip_shows_in_secure_sums_that_hide_an_utterance(tmp_path: Path) -> None:
    """Order, status and length of every message stay, and what the ledger books, clip by clip."""
    plan, trained = PLANS["secure-utterance"], USERS[:-1]
    usual = _run(tmp_path / "usual", plan)
    for first in range(0, CLIPS, len(trained)):
        # Another clip of each user in one run: what is compared is each user's own.
        gone = dict(zip(trained, range(first, CLIPS), strict=False))
        changes = {user: _without(index) for user, index in gone.items()}
        other = _run(tmp_path / str(first), plan, change=changes)
        assert other.faults == [], gone
        for user in USERS:
            assert _seen(other, user) == _seen(usual, user), gone
            at = f"devices/{USERS.index(user):06d}/ledger.jsonl"
            kept = [_ledger_lines(tmp_path / name / at) for name in ("usual", str(first))]
            assert list(kept[0].values()) == list(kept[1].values()), gone


@pytest.mark.parametrize("how", ["reinstalled", "another key", "lived on"])
def test_what_comes_back_does_not_tell_who_labelled_clips(tmp_path: Path, how: str) -> None:
    """A second run, to which the server brings the heads of a first."""
    first, plan = tmp_path / "first", replace(UTTERANCE, run="second")
    _run(first, UTTERANCE)
    records = {}
    for name, change in {"usual": lambda clips: clips, **NEIGHBOURS}.items():
        folder = tmp_path / name.replace(" ", "-")
        _federation(folder, plan, change={USERS[0]: change, USERS[-1]: change})
        for index in range(len(USERS)):
            _inherit(first / "devices" / f"{index:06d}", folder / "devices" / f"{index:06d}", how)
        shutil.copy(first / "server" / "heads.sqlite", folder / "server" / "heads.sqlite")
        tap = Tap(folder, plan)
        config = {"job": str(folder / "server"), "devices": str(folder / "devices")}
        local.run_server_and_client(product_server, tap, devices=len(USERS), config=config)
        records[name] = tap.record

    versions = {
        one.said[2] for one in records["usual"].exchanges if one.kind == f"{messages.FINAL_MODEL} "
    }
    assert versions == {1 if how == "another key" else 2}
    for name, here in records.items():
        assert here.faults == [], name
        for user in USERS:
            assert _seen(here, user) == _seen(records["usual"], user), name


PHRASE = "correct horse battery"


def _inherit(old: Path, new: Path, how: str) -> None:
    """Give a new device what the old one leaves it: the key, or the head too, or nothing."""
    if how == "another key":
        return
    fresh, held = Device.open(new), Device.open(new).load_features()
    before, key = Device.open(old), _carried_key(old)
    roster = fresh.pinned_roster
    shutil.rmtree(new)
    again = Device.create(new, fresh.profile, held, key=key)
    again.pin_roster(roster)
    if how == "lived on":
        for name in ("head", "head-scores"):
            again.vault.put(name, before.vault.get(name))


@lru_cache(maxsize=len(USERS))
def _carried_key(device: Path) -> bytes:
    """The key as its user takes it along; a phrase is slow to try, on purpose."""
    vault = FileVault.open(device / "vault")
    return unwrap_key(vault.wrap_key(PHRASE), PHRASE, user=vault.user)


def test_a_size_that_tells_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def labelled(*_: Any, **__: Any) -> None:
        raise LookupError

    usual = _run(tmp_path / "usual", UTTERANCE)
    monkeypatch.setattr(final_model, "finalise_model", labelled)
    other = _run(tmp_path / "other", UTTERANCE)

    assert _seen(other, USERS[0])[:-1] == _seen(usual, USERS[0])[:-1]
    assert _seen(other, USERS[0])[-1] != _seen(usual, USERS[0])[-1]


# --- refusals and errors ----------------------------------------------------------------------


REFUSALS: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "a spent budget": (
        {"budgets": (PrivacyBudget(epsilon=1e-3, delta=1e-5),)},
        ("receives", "its budget is spent"),
    ),
    "a floor that the plan is below": (
        {"min_cohort": 100},
        ("refused", "PrivacyError"),
    ),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("why", REFUSALS)
def test_a_refusal_says_its_kind_and_no_more(tmp_path: Path, unit: str, why: str) -> None:
    facts, words = REFUSALS[why]
    if why == "a floor that the plan is below" and unit not in SECURE_UNITS:
        words = ("ok", "")  # there is no secure sum that it would be for

    record = _run(tmp_path, PLANS[unit], facts={"u0": facts})

    assert record.faults == []
    assert words in {one.said[:2] for one in record.exchanges if one.user == "u0"}
    assert SECRET.encode() not in record.sent


@pytest.mark.parametrize(
    "name",
    [
        "enrolment.enrol_device",
        "training_round.train_round",
        "statistics_round.release_head_statistics",
        "final_model.finalise_model",
        "Device",
    ],
)
@pytest.mark.parametrize("error", [PrivacyError, ValueError, KeyError])
def test_no_error_carries_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error(SECRET)

    monkeypatch.setattr(f"sottovoce.client.app.{name}", fail)
    _federation(tmp_path, UTTERANCE)
    tap = Tap(tmp_path, UTTERANCE)
    config = {"job": str(tmp_path / "server"), "devices": str(tmp_path / "devices")}
    with suppress(errors.EngineError):  # too few devices answer
        local.run_server_and_client(product_server, tap, devices=len(USERS), config=config)

    assert tap.record.faults == []
    assert tap.record.exchanges
    assert SECRET.encode() not in tap.record.sent


def test_a_damaged_device_does_not_tell_what_it_holds(tmp_path: Path) -> None:
    devices = _federation(tmp_path, UTTERANCE)
    devices["u0"].ledger.path.write_text(SECRET + "\n")
    tap = Tap(tmp_path, UTTERANCE)
    message = _first_message(tmp_path)

    with pytest.raises(PrivacyError, match=r"cannot answer \(LedgerError\)") as raised:
        product_client(message, _context(tap, 0))

    assert raised.value.__context__ is None
    assert "u0" not in str(raised.value)


def _first_message(folder: Path) -> Message:
    """An enrolment as the server asks for it."""
    local.set_task_identity()
    job = Job.load(folder / "server")
    request = messages.EnrolRequest(
        plan=job.plan, projection=job.projection, speaker_statistics=job.speaker_statistics
    )
    return Message(flower_records.encode_request(request), 100, messages.ENROL)


def _context(tap: Tap, index: int) -> Context:
    """A node of the federation."""
    nodes = SimulatedNodes(devices=len(USERS), config={"devices": str(tap.folder / "devices")})
    return nodes.node_context(index)


# --- it can fail ------------------------------------------------------------------------------


def _into(group: str, **values: Any) -> Leak:
    """Something more, or something else, among the facts of a group."""

    def leak(reply: Message) -> Message:
        if group in reply.content:
            reply.content[group].update(values)
        return reply

    return leak


def _beside(name: str, group: Any) -> Leak:
    """A record beside the others."""

    def leak(reply: Message) -> Message:
        reply.content[name] = group
        return reply

    return leak


def _value(change: Callable[[Tensor], Tensor]) -> Leak:
    """Another value in place of the release."""

    def leak(reply: Message) -> Message:
        if "release" in reply.content:
            value = torch.from_numpy(reply.content["release"]["value"].numpy().copy())
            reply.content["release"] = ArrayRecord({"value": Array(change(value).numpy())})
        return reply

    return leak


def _header(reply: Message) -> Message:
    """A word in the padding of an array's header."""
    if "release" in reply.content:
        array = reply.content["release"]["value"]
        array.data = array.data.replace(b"}    ", b"}12  ", 1)
    return reply


def _metadata(name: str, value: Any) -> Leak:
    """A word in the envelope."""

    def leak(reply: Message) -> Message:
        reply.metadata.__dict__[f"_{name}"] = value
        return reply

    return leak


def _error(reply: Message) -> Message:
    """An error with its text."""
    message = Message(RecordDict(), 1, "train")
    message.__dict__.update(reply.__dict__ | {"_content": None, "_error": Error(2, SECRET)})
    return message


LEAKS: dict[str, tuple[Leak, str]] = {
    "a metric": (_beside("loss", MetricRecord({"loss": 0.7})), "loss/loss"),
    "an empty group that is called so": (_beside("12 clips", ConfigRecord({})), "12 clips"),
    "another group of arrays": (
        _beside("more", ArrayRecord({"x": Array(torch.ones(2).numpy())})),
        "more/x",
    ),
    "an example count": (_into("sottovoce", examples=12), "sottovoce/examples"),
    "an array beside the release": (
        _into("release", counts=Array(torch.ones(3).numpy())),
        "release/counts",
    ),
    "a word in the reason": (_into("sottovoce", reason="12 clips"), "sottovoce/reason"),
    "a word in the body": (_into("sottovoce", body=b"12"), "sottovoce/body"),
    "a version that counts": (_into("sottovoce", version=12), "sottovoce/version"),
    "another name": (_into("sottovoce", user="u9"), "sottovoce/user"),
    "a new status": (_into("sottovoce", status="tired"), "sottovoce/status"),
    "a schema that counts": (_into("sottovoce", schema=True), "sottovoce/schema"),
    "a head in the clear": (_into("sottovoce", head=bytes(SEALED)), "sottovoce/head"),
    "another value": (_value(lambda value: value + 1), "release/value"),
    "exact zeros": (_value(torch.zeros_like), "release/value"),
    "as many numbers as clips": (_value(lambda value: value[:2]), "release/value"),
    "a word in an array's header": (_header, "release/value"),
    "a word as the group": (_metadata("group_id", "12"), "metadata/group_id"),
    "a type that tells": (_metadata("message_type", "train.c12"), "metadata/message_type"),
    "a life that counts": (_metadata("ttl", 12.0), "metadata/ttl"),
    "a sender that counts": (_metadata("src_node_id", 12), "metadata/src_node_id"),
    "an error's text": (_error, "error/reason"),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_found(tmp_path: Path, name: str) -> None:
    leak, path = LEAKS[name]

    record = _record_of_first_messages(tmp_path, UTTERANCE, leak)

    assert any(fault.startswith(f"{path} is") for fault in record.faults), record.faults


@pytest.mark.parametrize("name", ["another value", "a word in the body", "a metric"])
def test_a_planted_leak_is_found_where_sums_are_secure(tmp_path: Path, name: str) -> None:
    leak, path = LEAKS[name]
    if name == "another value":
        leak = _value(lambda _value: torch.ones(3))
    record = _record_of_first_messages(tmp_path, PLANS["secure"], leak)

    assert any(fault.startswith(f"{path} is") for fault in record.faults), record.faults


def _record_of_first_messages(folder: Path, plan: Plan, leak: Leak) -> TapRecord:
    """Enrolment, a round and the end, asked of one device without a server."""
    _federation(folder, plan)
    tap = Tap(folder, plan, leak)
    digest, weights = plan.content_hash(), flatten_parameters(build_network(MODEL, 0))
    prior = Job.load(folder / "server").estimate_head_prior(weights)
    centre = torch.zeros(INPUTS)
    train = messages.TrainRequest(
        plan_hash=digest,
        round=1,
        weights=weights,
        class_weights=torch.ones(len(LABELS)),
        centre=centre,
        denominator=6.0,
    )
    asked = CalibrationQuery(
        log_temperature=0.0,
        curvature=0.5,
        edges=torch.tensor(SCORE_QUANTILES),
        shares=torch.full((len(SCORE_QUANTILES) + 1,), 1 / (len(SCORE_QUANTILES) + 1)),
    )
    calibrate = messages.HeadStatisticsRequest(
        plan_hash=digest, weights=weights, centre=centre, query=asked
    )
    personal = messages.FinalModelRequest(
        plan_hash=digest, weights=weights, centre=centre, prior=prior
    )
    tap(_first_message(folder), _context(tap, 0))
    tap(Message(flower_records.encode_request(train), 100, messages.TRAIN), _context(tap, 0))
    tap(
        Message(flower_records.encode_request(calibrate), 100, messages.HEAD_STATISTICS),
        _context(tap, 0),
    )
    tap(
        Message(flower_records.encode_request(personal), 100, messages.FINAL_MODEL),
        _context(tap, 0),
    )
    # The server's side is made up here: it has booked nothing.
    tap.record.faults = [one for one in tap.record.faults if not one.startswith(_FROM_SERVER)]
    return tap.record


_FROM_SERVER = (
    "model/",
    "question/",
    *(
        f"sottovoce/{name}"
        for name in ("denominator", "clip", "share", "log_temperature", "bend", "prior")
    ),
)


def test_without_a_leak_the_same_messages_have_no_fault(tmp_path: Path) -> None:
    for name in ("utterance", "user", "both"):
        record = _record_of_first_messages(tmp_path / name, PLANS[name], lambda reply: reply)
        assert record.faults == []


@pytest.mark.parametrize("unit", ["utterance", "user", *SECURE_UNITS])
@pytest.mark.parametrize(
    "kind",
    [
        ReleaseKind.LABEL_COUNTS,
        ReleaseKind.CENTRE,
        ReleaseKind.NORMALISER,
        ReleaseKind.GRADIENT,
        ReleaseKind.HEAD_STATISTICS,
    ],
)
def test_a_release_that_is_not_on_disk_when_it_leaves_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, kind: ReleaseKind
) -> None:
    """The device thinks that it booked, and nothing was written: as if it came after the reply."""
    book, names = Ledger.book_release, Ledger.release_names.fget
    unwritten: list[tuple[Path, str]] = []

    def late(self: Ledger, name: str, release: Release, budgets: Sequence[PrivacyBudget]) -> None:
        if release.kind is kind and self.path.parent.name.isdigit():
            unwritten.append((self.path, name))
        else:
            book(self, name, release, budgets)

    def believed(self: Ledger) -> tuple[str, ...]:
        return *names(self), *(name for path, name in unwritten if path == self.path)

    monkeypatch.setattr(Ledger, "book_release", late)
    monkeypatch.setattr(Ledger, "release_names", property(believed))
    monkeypatch.setattr(Ledger, "is_booked", lambda self, name: name in believed(self))
    plan = PLANS[unit]
    if kind is ReleaseKind.NORMALISER and plan.normaliser_release() is None:
        pytest.skip("no normaliser is released where only users are hidden")

    record = _run(tmp_path, plan)

    assert any(
        fault.startswith(("release/value is", "sottovoce/body is")) for fault in record.faults
    )
