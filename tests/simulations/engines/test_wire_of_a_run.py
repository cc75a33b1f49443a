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
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
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

from sottovoce.client import calibrator, receiver
from sottovoce.client.app import app as product_client
from sottovoce.client.device import Device
from sottovoce.client.owner import Clips, Facts
from sottovoce.server.app import app as product_server
from sottovoce.server.heads import HeadStore
from sottovoce.server.job import Job
from sottovoce.server.round import Aggregation
from sottovoce.server.sums import LEDGER, OWNER
from sottovoce.shared import crypto, errors, records, wire
from sottovoce.shared.calibration import LEVELS, WIDTH, CalibrationRelease, Question
from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import Front
from sottovoce.shared.models.flat import count, flatten
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.shared.normaliser import (
    EXACT_CENTRE,
    EXACT_MEAN,
    CentreRelease,
    NormaliserRelease,
    unknown,
)
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.bands import Bands
from sottovoce.shared.privacy.ledger import Budget, Ledger
from sottovoce.shared.privacy.release import Kind, NoisedBy, Release, UserNoise
from sottovoce.shared.privacy.users import (
    CALIBRATION,
    ENROLMENT,
    AdaptiveClip,
    SecureSums,
    UserPromise,
    sum_kind,
)
from sottovoce.shared.secagg import messages
from sottovoce.shared.secagg.arrangement import settings_for
from sottovoce.shared.training import LocalTraining, NoPrivacy, UtteranceNoise
from sottovoce.simulations.engines import hosts, local
from sottovoce.simulations.engines.hosts import Nodes

LABELS = ("angry", "happy", "sad")
FEATURES, INPUTS, CLIPS, ROUNDS, SEALED = 6, 4, 12, 2, 2048
USERS = tuple(f"u{number}" for number in range(6))
"""Names of one length, so that messages can be compared; the last one only receives."""

SECRET = "ada said this in anger"
FRONT = Front(
    mean=torch.zeros(FEATURES),
    matrix=torch.randn(FEATURES, INPUTS, generator=torch.Generator().manual_seed(1)),
    length=1.0,
)
MODEL = ModelSpec(kind="linear", inputs=INPUTS, classes=len(LABELS))
NONE = Plan(
    run="tiny",
    labels=LABELS,
    extractor="random",
    front=FRONT.digest(),
    model=MODEL,
    rounds=ROUNDS,
    training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=0.5, denominator=1.0),
    mechanism=NoPrivacy(),
    centre=EXACT_CENTRE,
    normaliser=EXACT_MEAN,
    count_noise=0.0,
    calibration=CalibrationRelease(noise_multiplier=0.0, taken_back=0.4),
)
UTTERANCE = replace(
    NONE,
    mechanism=UtteranceNoise(clip_norm=1.0, noise_multiplier=1.0),
    centre=CentreRelease(radius=1.5, noise_multiplier=4.0),
    normaliser=NormaliserRelease(radius=0.8, count_weight=0.24, noise_multiplier=4.0),
    count_noise=4.0,
    calibration=CalibrationRelease(noise_multiplier=4.0, taken_back=0.4),
)


def _user(noised_by: NoisedBy, secure: SecureSums | None = None) -> UserPromise:
    """A promise to users by one kind of noise."""

    def noise(bound: float) -> UserNoise:
        discrete = noised_by is NoisedBy.SHARES
        return UserNoise(
            noise_multiplier=1.0, clip_norm=bound, noised_by=noised_by, discrete=discrete
        )

    return UserPromise(
        counts=noise(5.0),
        centre=noise(1.5),
        update=noise(0.5),
        secure=secure,
        calibration=noise(0.4),
    )


def _secure() -> SecureSums:
    """Sums over the five who contribute."""
    devices = len(USERS) - 1
    arranged: dict[str, Any] = {"dropout": 0.2, "corruption": 0.0}
    first, root = len(LABELS) + INPUTS, math.sqrt(2)
    return SecureSums(
        enrolment=settings_for(devices, first, root, noise_multiplier=1 / root, **arranged),
        update=settings_for(devices, count(build(MODEL, 0)), 0.5, noise_multiplier=1.0, **arranged),
        dishonest=0,
        calibration=settings_for(devices, WIDTH, 0.4, noise_multiplier=1.0, **arranged),
    )


def _learning(clip: AdaptiveClip) -> UserPromise:
    """A promise to users whose clip norm is learned: one more number rides along."""
    usual = _user(NoisedBy.SERVER)
    return replace(usual, update=replace(usual.update, clip_norm=clip.bound), adaptive=clip)


def _turns(bands: Bands) -> UserPromise:
    """A promise to users who take turns."""
    usual = _user(NoisedBy.SERVER)
    return replace(usual, update=replace(usual.update, bands=bands))


PLANS = {
    "none": NONE,
    "utterance": UTTERANCE,
    "user": replace(NONE, user=_user(NoisedBy.SERVER)),
    "both": replace(
        UTTERANCE,
        mechanism=UtteranceNoise(clip_norm=1.0, noise_multiplier=1.0, sum_norm=0.5),
        user=_user(NoisedBy.DEVICES),
    ),
    "secure": replace(NONE, user=_user(NoisedBy.SHARES, _secure())),
    "learned": replace(NONE, user=_learning(AdaptiveClip(start=0.5))),
    "turns": replace(NONE, user=_turns(Bands.square_root(bands=2, spacing=2))),
}
UNITS = tuple(PLANS)


# --- a world ----------------------------------------------------------------------------------


Change = Callable[[Clips], Clips]


def _clips(place: int) -> Clips:
    """A dozen random vectors; who only receives has one labelled clip for a head."""
    contributes = place < len(USERS) - 1
    generator = torch.Generator().manual_seed(place)
    everyone = torch.ones(CLIPS, dtype=torch.bool)
    examples = Examples(
        features=torch.randn(CLIPS, FEATURES, generator=generator),
        frames=torch.ones(CLIPS, dtype=torch.int64),
        labels=torch.arange(CLIPS) % len(LABELS),
    )
    return Clips(
        examples=examples,
        enrols=everyone,
        calibrates=(torch.arange(CLIPS) == 0) & (not contributes),
        trains=everyone & contributes,
    )


def _world(
    folder: Path,
    plan: Plan,
    *,
    change: Mapping[str, Change] | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Device]:
    """A job and its devices; ``change`` changes what a user has, ``facts`` what they decided."""
    devices = {}
    for place, user in enumerate(USERS):
        clips = (change or {}).get(user, lambda clips: clips)(_clips(place))
        usual = Facts(
            user=user, budgets=(), contributes=user != USERS[-1], labels=LABELS, simulated_seed=7
        )
        known = replace(usual, **(facts or {}).get(user, {}))
        devices[user] = Device.create(folder / "devices" / f"{place:06d}", known, clips)
    identities = {user: crypto.identity_public(one.identity) for user, one in devices.items()}
    for one in devices.values():
        one.pin({user: identities[user] for user in USERS[:-1]})
    job = Job(
        plan=plan,
        aggregation=Aggregation(),
        weights=flatten(build(MODEL, 0)),
        front=FRONT,
        population=unknown(INPUTS),
        devices=len(USERS),
        timeout_s=30.0,
        simulated_seed=7,
        held_out=_held_out(folder),
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
class Heard:
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
class Tapped:
    """What a tap has heard, and what nobody could account for."""

    heard: list[Heard] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    sent: bytes = b""


class Tap(ClientApp):
    """Listens where messages reach a device and leave it; lets a test plant a leak."""

    def __init__(self, folder: Path, plan: Plan, leak: Leak = lambda reply: reply) -> None:
        super().__init__()
        self.folder, self.plan, self.leak = folder, plan, leak
        self.told = Tapped()

    def __call__(self, message: Message, context: Context) -> Message:
        request = message_from_proto(message_to_proto(message))
        self.told.faults += _faults(_told(request), _may_ask(request, self.plan, self.folder))
        reply = self.leak(hosts.call(product_client, message, context))
        proto = message_to_proto(reply)
        self.told.sent += proto.SerializeToString()
        place = int(context.node_config["partition-id"])
        device = Device(self.folder / "devices" / f"{place:06d}", read_only=True)
        told = _told(message_from_proto(proto))
        self.told.faults += _faults(told, _may_say(request, told, self.plan, device))
        self.told.heard.append(_heard(request, reply, device.facts.user))
        return reply


def _run(folder: Path, plan: Plan, *, leak: Leak = lambda reply: reply, **world: Any) -> Tapped:
    """A whole run, listened to."""
    _world(folder, plan, **world)
    tap = Tap(folder, plan, leak)
    config = {"job": str(folder / "server"), "devices": str(folder / "devices")}
    local.run(product_server, tap, devices=len(USERS), config=config)
    return tap.told


def _heard(request: Message, reply: Message, user: str) -> Heard:
    """What of an exchange must not depend on anybody's data."""
    kind, step = request.metadata.message_type, request.content.config_records.get("sum")
    size, said = 0, ()
    if reply.has_content():
        size = len(recorddict_to_proto(reply.content).SerializeToString())
        facts = reply.content.config_records["sottovoce"]
        said = tuple(facts.get(name) for name in ("status", "reason", "version"))
    return Heard(kind=f"{kind} {step['step'] if step else ''}", user=user, size=size, said=said)


# --- what is in a message ---------------------------------------------------------------------


def _told(message: Message) -> dict[str, Any]:
    """Everything that a message says, by its path; arrays whole, headers included."""
    metadata = message_to_proto(message).metadata
    told = {f"metadata/{one.name}": value for one, value in metadata.ListFields()}
    if message.has_error():
        return told | {"error/code": message.error.code, "error/reason": message.error.reason}
    for group, record in message.content.items():
        told[group] = type(record).__name__
        told |= {f"{group}/{name}": _plain(value) for name, value in record.items()}
    return told


def _plain(value: Any) -> Any:
    """A value that can be compared."""
    if isinstance(value, Array):
        return value.dtype, tuple(value.shape), value.stype, value.data
    return value


Rule = Callable[[Any], bool]


def _faults(told: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[str]:
    """Fields that no rule knows, or whose rule does not hold."""
    return [
        f"{path} is {str(value)[:80]!r}: {'not as booked' if path in rules else 'unaccounted for'}"
        for path, value in told.items()
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
    request: Message, told: Mapping[str, Any], plan: Plan, device: Device
) -> dict[str, Rule]:
    """What each field of a device's reply must be, now that it leaves."""
    asked, envelope = request.metadata, message_to_proto(request).metadata
    ended = told["metadata/created_at"] + told["metadata/ttl"]
    rules: dict[str, Rule] = {
        # Public constants: they follow from the request and from who answers.
        "metadata/run_id": _is(asked.run_id),
        "metadata/src_node_id": _is(asked.dst_node_id),
        "metadata/dst_node_id": _is(asked.src_node_id),
        "metadata/reply_to_message_id": _is(asked.message_id),
        "metadata/group_id": _is(asked.group_id),
        "metadata/message_type": _is(asked.message_type),
        "metadata/src_task_id": _is(envelope.dst_task_id or local.SERVER),
        "metadata/dst_task_id": _is(envelope.src_task_id),
        # When it was made (timing is not protected), and no more room than that.
        "metadata/created_at": lambda at: 0 <= at - asked.created_at < 60,
        "metadata/ttl": lambda _: abs(ended - asked.created_at - asked.ttl) < 1e-3,
        # What Flower makes of an exception: a number, and a kind.
        "error/code": _is(hosts.APP_FAILED),
        "error/reason": UNOPENED.__contains__,
    }
    if "error/code" in told:
        return rules
    status = told.get("sottovoce/status")
    good = status == wire.Status.OK
    enrols = asked.message_type == wire.ENROL  # who only receives has an identity too
    said = good or (enrols and status == wire.Status.RECEIVES and not told["sottovoce/reason"])
    personal = good and asked.message_type == wire.PERSONAL
    return rules | {
        "sottovoce": _is("ConfigRecord"),
        "sottovoce/schema": _is(records.SCHEMA),
        "sottovoce/user": _is(device.facts.user),  # the pseudonym
        # Status and kind of a refusal: not data, as worlds that differ in data show below.
        "sottovoce/status": lambda status: status in set(map(str, wire.Status)),
        "sottovoce/reason": _reason(status),
        # Ciphertext of a public length, that only the user's key opens; heads are counted.
        "sottovoce/version": _is(_heads(device) if personal else 0),
        "sottovoce/head": _head(plan, device, request) if personal else _is(b""),
        "sottovoce/body": _body(request, plan, device) if said else _is(b""),
        **(_released(request, plan, device) if good else {}),
    }


def _reason(status: object) -> Rule:
    """Why nothing was given."""
    spent = status == wire.Status.RECEIVES
    allowed = {"", "its budget is spent"} if spent else {""}
    return (KINDS if status == wire.Status.REFUSED else allowed).__contains__


def _book(path: Path) -> dict[str, Release]:
    """A ledger's lines as they lie on disk, by name."""
    lines = map(json.loads, path.read_bytes().splitlines() if path.exists() else ())
    return {line["id"]: Release.from_dict(line["release"]) for line in lines if "id" in line}


def _head(plan: Plan, device: Device, request: Message) -> Rule:
    """The head that is booked, sealed under the user's key."""
    weights = wire.PersonalRequest.read(request.content).weights
    version = _heads(device)
    binding = calibrator._binding(plan.model_hash(weights), version)
    booked = f"{plan.run}/head-{version}" in _book(device.ledger.path)

    def opens(blob: Any) -> bool:
        try:
            device.vault.unseal(blob, *binding)
        except PrivacyError:
            return False
        return booked and len(blob) == SEALED

    return opens


def _heads(device: Device) -> int:
    """How many heads are booked, after those that the user's earlier devices let out."""
    book = _book(device.ledger.path)
    heads = [name for name, one in book.items() if one.kind is Kind.SEALED_HEAD]
    earlier = min((int(name.rpartition("-")[2]) for name in heads), default=1) - 1
    return earlier + len(heads)


def _released(request: Message, plan: Plan, device: Device) -> dict[str, Rule]:
    """The one released vector of a reply, where it has one: booked, and exactly what was made."""
    parts: list[Tensor | None] = []
    secure = plan.user is not None and plan.user.secure is not None
    kind = request.metadata.message_type
    if kind == wire.ENROL and secure:
        parts = [torch.zeros(0)]
    elif kind == wire.ENROL:
        parts = [_made(device, plan.counts_release()), _made(device, plan.centre_release())]
    elif kind == wire.TRAIN:
        number = wire.TrainRequest.read(request.content).round
        parts = [_made(device, plan.gradient_release(number))]
        if not _holds(device, plan.normaliser_release()):  # it shapes what is sent
            parts = [None]
    elif kind == wire.CALIBRATE:
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
    return release is None or release in _book(device.ledger.path).values()


def _made(device: Device, release: Release | None) -> Tensor | None:
    """What the device keeps as the value of a booked release; None where none is booked."""
    slot = f"outbox-{release.kind.value}" if release else ""
    if not release or not device.vault.has(slot):
        return None
    kept = device.vault.get_tensors(slot)
    stamp = bytes(kept["stamp"].tolist())
    named = [name for name, one in _book(device.ledger.path).items() if one == release]
    found = any(hashlib.sha256(name.encode()).digest() == stamp for name in named)
    return kept["value"] if found else None


def _body(request: Message, plan: Plan, device: Device) -> Rule:
    """What a device says in a secure sum, and its identity's public half before."""
    secure = plan.user.secure if plan.user else None
    if secure is None or request.metadata.message_type == wire.PERSONAL:
        return _is(b"")
    if request.metadata.message_type == wire.ENROL:
        return _is(crypto.identity_public(device.identity))
    asked = request.content.config_records["sum"]
    step, name = str(asked["step"]), str(asked["name"])
    settings = secure.of(sum_kind(plan.digest(), name))
    readers: dict[str, Rule] = {
        "advertise": lambda body: _advertised(body, device.facts.user, name),
        "share": lambda body: _parcels(body, device.facts.user),
        "mask": lambda body: (
            _exact(
                body,
                lambda data: messages.Masked.from_bytes(
                    data, parameters=settings.parameters, bits=settings.bits
                ),
            )
            and _mask_booked(plan, name, device)
        ),
        "agree": lambda body: _exact(body, messages.Agreement.from_bytes),
        "unmask": lambda body: (
            _exact(body, messages.Unmasking.from_bytes)
            and set(messages.Unmasking.from_bytes(body).shares) <= set(USERS[:-1])
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
    if not _exact(body, messages.Advertisement.from_bytes):
        return False
    read = messages.Advertisement.from_bytes(body)
    return (read.user, read.round) == (user, name)


def _parcels(body: bytes, user: str) -> bool:
    """Sealed shares for the neighbours, and what fixes them."""
    if not _exact(body, messages.Parcels.from_bytes):
        return False
    parcels = messages.Parcels.from_bytes(body).parcels
    return all(one.sender == user and one.receiver in USERS[:-1] for one in parcels)


def _mask_booked(plan: Plan, name: str, device: Device) -> bool:
    """Whether what a masked vector holds is in the ledger."""
    kind = sum_kind(plan.digest(), name)
    if kind == ENROLMENT:
        return all(_holds(device, one) for one in (plan.counts_release(), plan.centre_release()))
    if kind == CALIBRATION:
        return _holds(device, plan.calibration_release())
    return _holds(device, plan.gradient_release(int(kind.removeprefix("round-"))))


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
            kind in (wire.ENROL, wire.TRAIN, wire.SUM, wire.CALIBRATE, wire.PERSONAL)
        ),
        "sottovoce": _is("ConfigRecord"),
        "sottovoce/schema": _is(records.SCHEMA),
    }
    if kind == wire.ENROL:
        return rules | _public(plan)
    if kind == wire.SUM:
        rules |= _asked_sum(request, plan)
    if kind == wire.PERSONAL:
        rules |= _offered(request, folder) | _directions(request, folder)
    number = int(request.content.config_records["sottovoce"].get("round", ROUNDS + 1))
    learned = _learned(plan, folder, number)
    answered = learned and (kind != wire.PERSONAL or _answered(plan, folder))
    return rules | {
        "sottovoce/plan": _is(plan.digest()),
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
    weights = wire.PersonalRequest.read(request.content).weights
    tensors = Job.load(folder / "server").prior_of(weights).tensors()
    assert tensors, "these runs have public speakers"
    return {
        "basis": _is("ArrayRecord"),
        **{f"basis/{name}": _array(tensor) for name, tensor in tensors.items()},
    }


def _offered(request: Message, folder: Path) -> dict[str, Rule]:
    """The ciphertext that was put for this very user, where there is one, and nothing else."""
    user = USERS[request.metadata.dst_node_id - hosts.FIRST_NODE]
    store = Job.load(folder / "server").heads or folder / "server" / "heads.sqlite"
    kept = HeadStore(store).get(user)
    if kept is None:
        return {}
    return {
        "sottovoce/kept": _is(kept.blob),
        "sottovoce/kept_version": _is(kept.version),
        "sottovoce/kept_model": _is(kept.model_hash),
    }


def _public(plan: Plan) -> dict[str, Rule]:
    """Plan, front and population, which rest on nothing private."""
    population = unknown(INPUTS)
    names = type(population).__dataclass_fields__
    return {
        "sottovoce/plan": _is(plan.to_json()),
        "sottovoce/length": _is(FRONT.length),
        "front": _is("ArrayRecord"),
        "front/mean": _array(FRONT.mean),
        "front/matrix": _array(FRONT.matrix),
        "population": _is("ArrayRecord"),
        **{f"population/{name}": _array(getattr(population, name)) for name in names},
    }


def _asked_sum(request: Message, plan: Plan) -> dict[str, Rule]:
    """A secure sum's step: public names, and what other devices said, which was looked at there."""
    readers: dict[str, Callable[[bytes], Any]] = {
        "advertise": messages.AdvertiseRequest.from_bytes,
        "share": messages.ShareRequest.from_bytes,
        "mask": messages.Parcels.from_bytes,
        "agree": messages.Survivors.from_bytes,
        "unmask": messages.UnmaskRequest.from_bytes,
    }
    step = request.content.config_records["sum"]["step"]
    return {
        "sum": _is("ConfigRecord"),
        "sum/plan": _is(plan.digest()),
        "sum/name": lambda name: str(name).startswith(plan.digest()[:32]),
        "sum/step": readers.__contains__,
        "sum/body": lambda body: _exact(body, readers[str(step)]),
    }


def _learned(plan: Plan, folder: Path, number: int) -> bool:
    """Whether all that a round's request rests on was booked: by the server, or by the devices."""
    first = plan.bands.block if plan.bands else int  # turns are paid for by their first round
    wanted = {plan.counts_release(), *(plan.gradient_release(first(n)) for n in range(1, number))}
    return _booked(plan, folder, wanted | {one for one in [plan.centre_release()] if one})


def _answered(plan: Plan, folder: Path) -> bool:
    """Whether the answers that the heads' prior rests on were booked."""
    return _booked(plan, folder, {one for one in [plan.calibration_release()] if one})


def _booked(plan: Plan, folder: Path, wanted: set[Release]) -> bool:
    """Whether releases are in the server's ledger, or in those of all devices that take part."""
    if plan.user:
        sums = Ledger(folder / "server" / LEDGER, owner=OWNER, read_only=True)
        return wanted <= set(sums.releases)
    places = [folder / "devices" / f"{place:06d}" for place in range(len(USERS) - 1)]
    books = [set(_book(place / "ledger.jsonl").values()) for place in places]
    joined = [book for book in books if plan.counts_release() in book]
    return bool(joined) and all(wanted <= book for book in joined)


# --- the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_every_field_of_a_run_is_public_sealed_or_booked(tmp_path: Path, unit: str) -> None:
    told = _run(tmp_path, PLANS[unit])

    assert told.faults == []
    steps = [f"{wire.SUM} {step}" for step in wire.STEPS] * (2 + ROUNDS)
    plain = [*[f"{wire.TRAIN} "] * ROUNDS, f"{wire.CALIBRATE} "]
    rounds = steps if unit == "secure" else plain
    for user in USERS:
        given = [rounds[0], rounds[-1]] if unit == "turns" else rounds  # one turn, and calibration
        gives = given if user != USERS[-1] else []
        kinds = [one.kind for one in told.heard if one.user == user]
        assert kinds == [f"{wire.ENROL} ", *gives, f"{wire.PERSONAL} "]


def _without(*chosen: int) -> Change:
    """Without some clips."""
    keep = torch.tensor([place not in chosen for place in range(CLIPS)])

    def change(clips: Clips) -> Clips:
        return Clips(
            examples=clips.examples.take(keep),
            enrols=clips.enrols[keep],
            calibrates=clips.calibrates[keep],
            trains=clips.trains[keep],
        )

    return change


def _with_first(value: float) -> Change:
    """The first clip's features are all this number."""

    def change(clips: Clips) -> Clips:
        features = clips.examples.features.clone()
        features[0] = value
        return replace(clips, examples=replace(clips.examples, features=features))

    return change


NEIGHBOURS: dict[str, Change] = {
    "one utterance fewer": _without(0),
    "without one emotion": _without(*range(0, CLIPS, len(LABELS))),
    "nothing at all": _without(*range(CLIPS)),
    "an utterance far off": _with_first(1e30),
    "an utterance of NaN": _with_first(math.nan),
}


def _seen(told: Tapped, user: str) -> list[tuple[str, int, tuple[Any, ...]]]:
    """What a listener sees of one user without reading values."""
    return [(one.kind, one.size, one.said) for one in told.heard if one.user == user]


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


@pytest.mark.parametrize("how", ["reinstalled", "another key", "lived on"])
def test_what_comes_back_does_not_tell_who_labelled_clips(tmp_path: Path, how: str) -> None:
    """A second run, to which the server brings the heads of a first."""
    first, plan = tmp_path / "first", replace(UTTERANCE, run="second")
    _run(first, UTTERANCE)
    told = {}
    for name, change in {"usual": lambda clips: clips, **NEIGHBOURS}.items():
        folder = tmp_path / name.replace(" ", "-")
        _world(folder, plan, change={USERS[0]: change, USERS[-1]: change})
        for place in range(len(USERS)):
            _inherit(first / "devices" / f"{place:06d}", folder / "devices" / f"{place:06d}", how)
        shutil.copy(first / "server" / "heads.sqlite", folder / "server" / "heads.sqlite")
        tap = Tap(folder, plan)
        config = {"job": str(folder / "server"), "devices": str(folder / "devices")}
        local.run(product_server, tap, devices=len(USERS), config=config)
        told[name] = tap.told

    versions = {one.said[2] for one in told["usual"].heard if one.kind == f"{wire.PERSONAL} "}
    assert versions == {1 if how == "another key" else 2}
    for name, here in told.items():
        assert here.faults == [], name
        for user in USERS:
            assert _seen(here, user) == _seen(told["usual"], user), name


def _inherit(old: Path, new: Path, how: str) -> None:
    """Give a new device what the old one leaves it: the key, or the head too, or nothing."""
    if how == "another key":
        return
    fresh, held = Device(new), Device(new).clips()
    before = Device(old)
    roster = fresh.roster
    shutil.rmtree(new)
    again = Device.create(new, fresh.facts, held, key=before.vault._key)
    again.pin(roster)
    if how == "lived on":
        for name in ("head", "head-scores"):
            again.vault.put(name, before.vault.get(name))


def test_a_size_that_tells_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def labelled(*_: Any, **__: Any) -> None:
        raise LookupError

    usual = _run(tmp_path / "usual", UTTERANCE)
    monkeypatch.setattr(receiver, "personalise", labelled)
    other = _run(tmp_path / "other", UTTERANCE)

    assert _seen(other, USERS[0])[:-1] == _seen(usual, USERS[0])[:-1]
    assert _seen(other, USERS[0])[-1] != _seen(usual, USERS[0])[-1]


# --- refusals and errors ----------------------------------------------------------------------


REFUSALS: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "a spent budget": (
        {"budgets": (Budget(epsilon=1e-3, delta=1e-5),)},
        ("receives", "its budget is spent"),
    ),
    "a label of the user's own": (
        {"labels": ("angry", "happy", SECRET)},
        ("refused", "MessageError"),
    ),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("why", REFUSALS)
def test_a_refusal_says_its_kind_and_no_more(tmp_path: Path, unit: str, why: str) -> None:
    facts, words = REFUSALS[why]

    told = _run(tmp_path, PLANS[unit], facts={"u0": facts})

    assert told.faults == []
    assert words in {one.said[:2] for one in told.heard if one.user == "u0"}
    assert SECRET.encode() not in told.sent


@pytest.mark.parametrize(
    "place",
    [
        "enrolment.enrol",
        "participant.train",
        "calibration.calibrate",
        "receiver.personalise",
        "Device",
    ],
)
@pytest.mark.parametrize("error", [PrivacyError, ValueError, KeyError])
def test_no_error_carries_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error(SECRET)

    monkeypatch.setattr(f"sottovoce.client.app.{place}", fail)
    _world(tmp_path, UTTERANCE)
    tap = Tap(tmp_path, UTTERANCE)
    config = {"job": str(tmp_path / "server"), "devices": str(tmp_path / "devices")}
    with suppress(errors.EngineError):  # too few devices answer
        local.run(product_server, tap, devices=len(USERS), config=config)

    assert tap.told.faults == []
    assert tap.told.heard
    assert SECRET.encode() not in tap.told.sent


def test_a_damaged_device_does_not_tell_what_it_holds(tmp_path: Path) -> None:
    devices = _world(tmp_path, UTTERANCE)
    devices["u0"].ledger.path.write_text(SECRET + "\n")
    tap = Tap(tmp_path, UTTERANCE)
    message = _first_message(tmp_path)

    with pytest.raises(PrivacyError, match=r"cannot answer \(LedgerError\)") as raised:
        product_client(message, _context(tap, 0))

    assert raised.value.__context__ is None
    assert "u0" not in str(raised.value)


def _first_message(folder: Path) -> Message:
    """An enrolment as the server asks for it."""
    local._identify()
    job = Job.load(folder / "server")
    request = wire.EnrolRequest(plan=job.plan, front=job.front, population=job.population)
    return Message(request.record(), 100, wire.ENROL)


def _context(tap: Tap, place: int) -> Context:
    """A node of the world."""
    nodes = Nodes(devices=len(USERS), config={"devices": str(tap.folder / "devices")})
    return nodes.context(place)


# --- it can fail ------------------------------------------------------------------------------


def _into(group: str, **told: Any) -> Leak:
    """Something more, or something else, among the facts of a group."""

    def leak(reply: Message) -> Message:
        if group in reply.content:
            reply.content[group].update(told)
        return reply

    return leak


def _beside(name: str, record: Any) -> Leak:
    """A record beside the others."""

    def leak(reply: Message) -> Message:
        reply.content[name] = record
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
    told = Message(RecordDict(), 1, "train")
    told.__dict__.update(reply.__dict__ | {"_content": None, "_error": Error(2, SECRET)})
    return told


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

    told = _told_of_first_messages(tmp_path, UTTERANCE, leak)

    assert any(fault.startswith(f"{path} is") for fault in told.faults), told.faults


@pytest.mark.parametrize("name", ["another value", "a word in the body", "a metric"])
def test_a_planted_leak_is_found_where_sums_are_secure(tmp_path: Path, name: str) -> None:
    leak, path = LEAKS[name]
    if name == "another value":
        leak = _value(lambda _value: torch.ones(3))
    told = _told_of_first_messages(tmp_path, PLANS["secure"], leak)

    assert any(fault.startswith(f"{path} is") for fault in told.faults), told.faults


def _told_of_first_messages(folder: Path, plan: Plan, leak: Leak) -> Tapped:
    """Enrolment, a round and the end, asked of one device without a server."""
    _world(folder, plan)
    tap = Tap(folder, plan, leak)
    digest, weights = plan.digest(), flatten(build(MODEL, 0))
    prior = Job.load(folder / "server").prior_of(weights)
    centre = torch.zeros(INPUTS)
    train = wire.TrainRequest(
        plan=digest,
        round=1,
        weights=weights,
        class_weights=torch.ones(len(LABELS)),
        centre=centre,
        denominator=6.0,
    )
    asked = Question(
        log_temperature=0.0,
        bend=0.5,
        edges=torch.tensor(LEVELS),
        shares=torch.full((len(LEVELS) + 1,), 1 / (len(LEVELS) + 1)),
    )
    calibrate = wire.CalibrateRequest(plan=digest, weights=weights, centre=centre, question=asked)
    personal = wire.PersonalRequest(plan=digest, weights=weights, centre=centre, prior=prior)
    tap(_first_message(folder), _context(tap, 0))
    tap(Message(train.record(), 100, wire.TRAIN), _context(tap, 0))
    tap(Message(calibrate.record(), 100, wire.CALIBRATE), _context(tap, 0))
    tap(Message(personal.record(), 100, wire.PERSONAL), _context(tap, 0))
    # The server's side is made up here: it has booked nothing.
    tap.told.faults = [one for one in tap.told.faults if not one.startswith(_FROM_SERVER)]
    return tap.told


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
        told = _told_of_first_messages(tmp_path / name, PLANS[name], lambda reply: reply)
        assert told.faults == []


@pytest.mark.parametrize("unit", ["utterance", "user", "secure"])
@pytest.mark.parametrize(
    "kind",
    [Kind.LABEL_COUNTS, Kind.CENTRE, Kind.NORMALISER, Kind.GRADIENT, Kind.HEAD_STATISTICS],
)
def test_a_release_that_is_not_on_disk_when_it_leaves_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, kind: Kind
) -> None:
    """The device thinks that it booked, and nothing was written: as if it came after the reply."""
    append = Ledger._append

    def late(self: Ledger, name: str, release: Release) -> None:
        if release.kind is kind and self.path.parent.name.isdigit():
            self._ids.add(name)
        else:
            append(self, name, release)

    monkeypatch.setattr(Ledger, "_append", late)
    plan = PLANS[unit]
    if kind is Kind.NORMALISER and plan.normaliser_release() is None:
        pytest.skip("no normaliser is released where only users are hidden")

    told = _run(tmp_path, plan)

    assert any(fault.startswith(("release/value is", "sottovoce/body is")) for fault in told.faults)
