"""One clip more, less or other changes no reply of a device but in the numbers that noise hides.

A device of thirty clips answers every message of a short run through the product's own ClientApp.
Then each clip in turn is removed, relabelled (also to a label that the plan does not know), left
unlabelled, silenced or broken, and the same messages come again. Order, status, kind of refusal,
length and every field must be the same; what may differ are the released numbers, and they only
where a promise is made for them, and the ciphertext of the head.

Noise is seeded, so that nothing but the clip can make a difference. Against hidden numbers: the
tests of noise, and the audit. Secure sums: ``tests/simulations/engines/test_wire_of_a_run.py``.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from builders import make_noised_plan, make_plan
from flwr.app import Array, Message, RecordDict
from flwr.common.serde import recorddict_to_proto

from sottovoce.client.app import DeviceContext
from sottovoce.client.app import app as client_app
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import UNKNOWN_LABEL, DeviceProfile, LabelledFeatures
from sottovoce.client.device.user_key import UserKey
from sottovoce.client.federation import enrolment
from sottovoce.server.federation.reply_validation import ReplyValidator
from sottovoce.shared.calibration import HeadPrior, identity_head
from sottovoce.shared.calibration.head_statistics import (
    SCORE_QUANTILES,
    CalibrationQuery,
    CalibrationRelease,
)
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, SumMechanism
from sottovoce.shared.privacy.user_level import AdaptiveClipping, UserLevelPrivacy
from sottovoce.shared.protocol import flower_records, messages
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import (
    EXACT_MEAN,
    default_statistics,
)
from sottovoce.simulations.devices.in_memory import InMemoryLedger, InMemoryVault
from sottovoce.simulations.engines.local import set_task_identity

LABELS, INPUTS, CLIPS, ROUNDS = ("angry", "happy", "sad"), 4, 30, 2
OWN_LABELS = ("sad", "angry", "happy", "bored")
"""What the user says; the plan does not know the last one, and has another order."""

BORED = OWN_LABELS.index("bored")
DELTA = 1e-5
FRONT = PublicProjection(mean=torch.zeros(INPUTS), matrix=torch.eye(INPUTS), row_norm=1.0)
MODEL = ModelSpec(kind="linear", inputs=INPUTS, classes=len(LABELS))
WEIGHTS = flatten_parameters(build_network(MODEL, 0))
TINY: dict[str, Any] = {
    "run": "tiny",
    "labels": LABELS,
    "extractor": "random",
    "projection_hash": FRONT.content_hash(),
    "model": MODEL,
    "rounds": ROUNDS,
    "training": LocalTraining(steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0),
}
NONE = make_plan(
    **TINY,
    normaliser=EXACT_MEAN,
    calibration=CalibrationRelease(noise_multiplier=0.0, subtracted_share=0.5),
)
UTTERANCE = make_noised_plan(
    **TINY,
    calibration=CalibrationRelease(noise_multiplier=4.0, subtracted_share=0.5),
)


def _user(noised_by: NoiseSource) -> UserLevelPrivacy:
    """A promise to users."""
    noise = SumMechanism(noise_multiplier=1.0, clip_norm=0.5, noised_by=noised_by)
    return UserLevelPrivacy(counts=noise, centre=noise, update=noise, calibration=noise)


_ADAPTIVE = AdaptiveClipping(start=0.5)
_LEARNED = _user(NoiseSource.SERVER)
PLANS = {
    "none": NONE,
    "utterance": UTTERANCE,
    "votes": replace(UTTERANCE, training=replace(UTTERANCE.training, targets="soft")),
    "user": replace(NONE, user=_LEARNED),
    "learned": replace(
        NONE,
        user=replace(
            _LEARNED,
            update=replace(_LEARNED.update, clip_norm=_ADAPTIVE.norm_bound),
            adaptive=_ADAPTIVE,
        ),
    ),
    "both": replace(
        UTTERANCE,
        mechanism=ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=1.0, sum_norm=0.5),
        user=_user(NoiseSource.DEVICES),
    ),
}
PRIOR = HeadPrior(mean=identity_head(len(LABELS)))
QUERY = CalibrationQuery(
    edges=torch.linspace(0.2, 0.9, len(SCORE_QUANTILES)),
    shares=torch.full((len(SCORE_QUANTILES) + 1,), 1 / (len(SCORE_QUANTILES) + 1)),
    log_temperature=0.0,
    curvature=0.1,
)


# --- a device, clip by clip -------------------------------------------------------------------


def _clips() -> LabelledFeatures:
    """Thirty random clips: two of three train, the others are for the head."""
    generator = torch.Generator().manual_seed(5)
    for_head = torch.arange(CLIPS) % 3 == 2
    return LabelledFeatures(
        examples=Examples(
            features=torch.randn(CLIPS, INPUTS, generator=generator),
            frames=torch.ones(CLIPS, dtype=torch.int64),
            labels=torch.arange(CLIPS) // 3 % len(LABELS),
        ),
        for_enrolment=~for_head,
        for_head=for_head,
        for_training=~for_head,
    )


Change = Callable[[LabelledFeatures, int], LabelledFeatures]


def _removed(clips: LabelledFeatures, index: int) -> LabelledFeatures:
    """Without one clip."""
    stays = torch.arange(CLIPS) != index
    return LabelledFeatures(
        examples=clips.examples.select(stays),
        for_enrolment=clips.for_enrolment[stays],
        for_head=clips.for_head[stays],
        for_training=clips.for_training[stays],
    )


def _relabelled(label: int) -> Change:
    """One clip with another label."""

    def change(clips: LabelledFeatures, index: int) -> LabelledFeatures:
        labels = clips.examples.labels.clone()
        labels[index] = label if labels[index] != label else 1
        return replace(clips, examples=replace(clips.examples, labels=labels))

    return change


def _filled(value: float) -> Change:
    """One clip whose features are all this number."""

    def change(clips: LabelledFeatures, index: int) -> LabelledFeatures:
        features = clips.examples.features.clone()
        features[index] = value
        return replace(clips, examples=replace(clips.examples, features=features))

    return change


def _voted(share: float) -> Change:
    """One clip that several raters heard, each of whose labels got this share of the votes."""

    def change(clips: LabelledFeatures, index: int) -> LabelledFeatures:
        votes = torch.eye(len(OWN_LABELS))[clips.examples.labels.clamp(min=0)]
        votes[index] = share
        return replace(clips, examples=replace(clips.examples, votes=votes))

    return change


CHANGES: dict[str, Change] = {
    "removed": _removed,
    "relabelled": _relabelled(0),
    "a label that the plan does not know": _relabelled(BORED),
    "unlabelled": _relabelled(UNKNOWN_LABEL),
    "silent": _filled(0.0),
    "not a number": _filled(math.nan),
    "infinite": _filled(math.inf),
    "far off": _filled(1e30),
    "raters who do not agree": _voted(0.25),
    "votes that are no numbers": _voted(math.nan),
}


def _device(clips: LabelledFeatures, budgets: tuple[PrivacyBudget, ...]) -> Device:
    """A simulated device in memory."""
    profile = DeviceProfile(user="ada", budgets=budgets, labels=OWN_LABELS, simulated_seed=7)
    vault = InMemoryVault(UserKey(bytes(32), user="ada"), lambda: clips)
    return Device(profile, vault, InMemoryLedger("ada"))


class _Node(DeviceContext):
    """The node of a device."""

    def __init__(self, device: Device) -> None:
        super().__init__(run_id=1, node_id=100, node_config={}, state=RecordDict(), run_config={})
        self._device = device

    def open_device(self) -> Device:
        return self._device


# --- a run, as whoever listens sees it --------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One reply.

    Attributes:
        kind: What was asked.
        size: Bytes of its content, as Flower serialises it.
        fields: Everything in it but numbers and ciphertext, of which the length is here.
        booked: What the ledger had booked by then, in order.
        numbers: The released numbers.
        content: The reply itself.
    """

    kind: str
    size: int
    fields: dict[str, Any]
    booked: tuple[Any, ...]
    numbers: tuple[Any, ...]
    content: RecordDict

    @property
    def open_part(self) -> tuple[Any, ...]:
        """What must not depend on a clip."""
        return self.kind, self.size, self.fields, self.booked


def _requests(plan: Plan, asked: dict[str, Any]) -> Iterator[Any]:
    """Every message of a run, the same whatever the device says."""
    digest, centre = plan.content_hash(), torch.zeros(INPUTS)
    yield messages.EnrolRequest(
        plan=plan, projection=FRONT, speaker_statistics=default_statistics(INPUTS)
    )
    for number in range(1, ROUNDS + 1):
        usual = {
            "plan_hash": digest,
            "round": number,
            "weights": WEIGHTS,
            "class_weights": torch.ones(len(LABELS)),
            "centre": centre,
            "denominator": 20.0,
            "clip_norm": 0.5,
        }
        yield messages.TrainRequest(**usual | asked)
    yield messages.HeadStatisticsRequest(
        plan_hash=digest, weights=WEIGHTS, centre=centre, query=QUERY
    )
    yield messages.FinalModelRequest(plan_hash=digest, weights=WEIGHTS, centre=centre, prior=PRIOR)


def _life(
    plan: Plan,
    clips: LabelledFeatures,
    *,
    budgets: tuple[PrivacyBudget, ...] = (),
    **asked: Any,
) -> list[Exchange]:
    """A whole run of one device."""
    set_task_identity()
    device = _device(clips, budgets)
    exchanges = []
    for request in _requests(plan, asked):
        message = Message(flower_records.encode_request(request), 100, request.message_type)
        reply = client_app(message, _Node(device))
        fields: dict[str, Any] = {}
        numbers = []
        for group, record in reply.content.items():
            for name, value in record.items():
                if isinstance(value, Array):
                    fields[f"{group}/{name}"] = (value.dtype, tuple(value.shape), len(value.data))
                    numbers.append(value.numpy().tolist())
                else:
                    fields[f"{group}/{name}"] = len(value) if name == "head" else value
        exchanges.append(
            Exchange(
                kind=request.message_type,
                size=len(recorddict_to_proto(reply.content).SerializeToString()),
                fields=fields,
                booked=(device.ledger.release_names, device.ledger.releases),
                numbers=tuple(numbers),
                content=reply.content,
            )
        )
    return exchanges


def _open_parts(life: list[Exchange]) -> list[tuple[Any, ...]]:
    """What must not depend on a clip, message by message."""
    return [one.open_part for one in life]


# --- the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize("unit", PLANS)
def test_no_clip_changes_what_is_answered_when_or_how_long_it_is(unit: str) -> None:
    clips = _clips()
    usual = _life(PLANS[unit], clips)
    assert {one.fields["sottovoce/status"] for one in usual} == {messages.Status.OK}

    # Every clip where a promise is made to it; elsewhere one that trains and one for the head.
    chosen = range(CLIPS) if unit == "utterance" else (0, 2)
    for name, change in CHANGES.items():
        for index in chosen:
            other = _life(PLANS[unit], change(clips, index))
            assert _open_parts(other) == _open_parts(usual), (name, index)


@pytest.mark.parametrize("unit", PLANS)
def test_nor_do_all_of_a_user_s_clips(unit: str) -> None:
    usual = _life(PLANS[unit], _clips())
    for name, change in CHANGES.items():
        clips = _clips()
        for index in range(CLIPS) if change is not _removed else ():
            clips = change(clips, index)
        if change is _removed:
            clips = LabelledFeatures.without_recordings(width=INPUTS)
        assert _open_parts(_life(PLANS[unit], clips)) == _open_parts(usual), name


@pytest.mark.parametrize("releases", [0, 1, 3, 4])
def test_a_spent_budget_refuses_at_the_same_message(releases: int) -> None:
    """What a budget bears follows from the plan, never from a clip."""
    plan, clips = PLANS["utterance"], _clips()
    booked = _life(plan, clips)[-1].booked[1]
    spent = InMemoryLedger("ada")
    for number, one in enumerate(booked[:releases]):
        spent.book_release(f"run/{number}", one, ())
    epsilon = spent.epsilon_spent(DELTA, PrivacyUnit.UTTERANCE) + 1e-3
    budgets = (PrivacyBudget(epsilon=epsilon, delta=DELTA),)
    usual = _life(plan, clips, budgets=budgets)
    assert "its budget is spent" in {one.fields["sottovoce/reason"] for one in usual}

    for change in CHANGES.values():
        for index in (0, 2):
            other = _life(plan, change(clips, index), budgets=budgets)
            assert _open_parts(other) == _open_parts(usual)


@pytest.mark.parametrize("unit", PLANS)
def test_training_that_overflows_does_not_show(unit: str) -> None:
    """A server's rates and weights can drive whoever has such a clip to infinity."""
    plan = replace(PLANS[unit], training=replace(PLANS[unit].training, learning_rate=100.0))
    unjust = {"class_weights": torch.tensor([1.0, 1.0, 3e38])}
    clips = _clips()
    everything_else = replace(
        clips, examples=replace(clips.examples, labels=clips.examples.labels.clamp(min=1))
    )
    usual = _life(plan, everything_else, **unjust)  # "sad" is the user's label 0, the plan's 2

    for index in range(3):
        one = _relabelled(0)(everything_else, index)
        life = _life(plan, one, **unjust)
        assert _open_parts(life) == _open_parts(usual), index
        assert {one.fields["sottovoce/status"] for one in life} == {messages.Status.OK}


@pytest.mark.parametrize("unit", ["utterance", "user", "learned", "both"])
def test_what_the_server_divides_by_is_public(unit: str) -> None:
    """A mean is the noised sum over those who came: who that is does not depend on any clips."""
    plan, parts = PLANS[unit], 0
    plan = replace(plan, training=replace(plan.training, learning_rate=100.0))
    unjust = {"class_weights": torch.tensor([1.0, 1.0, 3e38])}  # training overflows
    request = next(one for one in _requests(plan, unjust) if isinstance(one, messages.TrainRequest))
    validator = ReplyValidator(plan, max_update_norm=math.inf)
    users = [_clips(), LabelledFeatures.without_recordings(width=INPUTS)]
    users += [change(_clips(), 0) for change in CHANGES.values()]
    for clips in users:
        content = _life(plan, clips, **unjust)[1].content
        reply = flower_records.decode_reply(
            content, size=len(WEIGHTS) + plan.scheme.extra_coordinates(plan)
        )
        parts += validator.update_norm(reply, request) is not None

    assert parts == len(users)
    assert plan.participation.round_divisor(parts, len(users)) == len(users)


def test_a_clip_of_an_unknown_label_is_one_clip_less_everywhere_but_for_the_voice() -> None:
    """Its numbers are those of a device without it, where the user's mean takes no part."""
    plan, clips = replace(UTTERANCE, normaliser=None, centre=None), _clips()
    for index in (0, 2):
        without = _life(plan, _removed(clips, index))
        unknown = _life(plan, _relabelled(BORED)(clips, index))
        assert [one.numbers for one in unknown] == [one.numbers for one in without]


# --- it can fail ------------------------------------------------------------------------------


def test_what_noise_hides_does_change() -> None:
    usual, other = _life(UTTERANCE, _clips()), _life(UTTERANCE, _removed(_clips(), 0))
    assert usual[0].numbers != other[0].numbers
    assert usual[1].numbers != other[1].numbers


def test_a_refusal_of_one_label_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = _life(UTTERANCE, _clips())
    load = enrolment.load_training_set

    def refuse(device: Device, plan: Plan, width: int) -> LabelledFeatures:
        if BORED in device.load_features().examples.labels:
            raise ValueError
        return load(device, plan, width)

    monkeypatch.setattr(enrolment, "load_training_set", refuse)
    other = _life(UTTERANCE, _relabelled(BORED)(_clips(), 0))
    assert _open_parts(other) != _open_parts(usual)
