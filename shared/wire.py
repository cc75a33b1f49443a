"""The messages of a run, over Flower's Message API.

========= ================== ======================================= =========================
exchange  Flower type        request                                 reply
========= ================== ======================================= =========================
enrol     ``query.enrol``    plan, public front, public population   noised label counts, centre
train     ``train``          round, weights, class weights, centre   noised sum of gradients
sum       ``query.sum``      one step of a secure sum, and the       that step's answer
                             round to train where it is masked
calibrate ``query.calibrate`` final weights, centre, a question      noised answers of all clips
personal  ``evaluate``       final weights, centre, heads' prior,    the user's head, sealed
                             and the user's kept head, sealed
========= ================== ======================================= =========================

Where sums are secure, enrolment brings the device's public identity, and both values go through
secure sums. Every reply carries the user's pseudonym and a status. Nothing else travels: no loss,
no accuracy, no example count. Whoever reads a message checks schema, names, shapes, dtypes and
finiteness, so that a bad peer is a ``MessageError`` and never a crash.
"""

import json
from dataclasses import dataclass
from enum import StrEnum

from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from sottovoce.shared import check, records
from sottovoce.shared.calibration import Question
from sottovoce.shared.errors import MessageError, ModelError
from sottovoce.shared.front import Front
from sottovoce.shared.heads import HeadPrior, KeptHead, prior_from_dict
from sottovoce.shared.newest import Newest
from sottovoce.shared.normaliser import Population
from sottovoce.shared.plan import Plan

ENROL, TRAIN, PERSONAL, SUM = "query.enrol", "train", "evaluate", "query.sum"
CALIBRATE = "query.calibrate"
STEPS = ("advertise", "share", "mask", "agree", "unmask")
"""Of a secure sum, in order."""

_SUM, _BASIS, _MODEL, _NEUTRAL = "sum", "basis", "model", "neutral"
_LONGEST_USER = 128


class Status(StrEnum):
    """What a device made of a request."""

    OK = "ok"
    RECEIVES = (
        "receives"  # takes models and gives nothing: a new user, or one whose budget is spent
    )
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EnrolRequest:
    """The plan and all that was learned from public corpora.

    Attributes:
        plan: The run's public facts.
        front: The public front.
        population: Public statistics of speakers.
        tells: Whether label counts and centre are asked for; a run that is under way knows them.
    """

    plan: Plan
    front: Front
    population: Population
    tells: bool = True

    def record(self) -> RecordDict:
        """As it travels."""
        facts: dict[str, records.Fact] = {
            "plan": self.plan.to_json(),
            "length": self.front.length,
        }
        if not self.tells:  # said only where it is not the usual
            facts["tells"] = False
        population = {
            name: getattr(self.population, name) for name in Population.__dataclass_fields__
        }
        arrays = {"front": {"mean": self.front.mean, "matrix": self.front.matrix}}
        return records.record(facts, arrays | {"population": population})

    @classmethod
    def read(cls, content: RecordDict) -> "EnrolRequest":
        """Read it.

        Raises:
            MessageError: It breaks the schema, or the front is not the plan's.
        """
        return _ENROLS.of(records.content_of(content), lambda: cls._read(content))

    @classmethod
    def _read(cls, content: RecordDict) -> "EnrolRequest":
        """Read it anew."""
        facts = records.facts_of(content)
        plan = Plan.from_json(records.text(facts, "plan"))
        names = Population.__dataclass_fields__
        statistics = {name: records.tensor(content, "population", name, 1) for name in names}
        try:
            front = Front(
                mean=records.tensor(content, "front", "mean", 1),
                matrix=records.tensor(content, "front", "matrix", 2),
                length=records.number(facts, "length"),
            )
            population = Population(**statistics)
        except ModelError as error:
            raise MessageError(f"the front or the population cannot be used: {error}") from error
        if front.digest() != plan.front:
            raise MessageError("the front is not the one that the plan names; nothing was enrolled")
        widths = {front.inputs, len(population.between), plan.model.inputs}
        if len(widths) != 1:
            raise MessageError(
                f"front, population and model are {sorted(widths)} inputs wide; all must be alike"
            )
        tells = facts.get("tells", True)
        if not isinstance(tells, bool):
            raise MessageError(f"the message's tells is {tells!r}; it must be true or false")
        return cls(plan=plan, front=front, population=population, tells=tells)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainRequest:
    """One round of training.

    Attributes:
        plan: SHA-256 of the plan enrolled for.
        round: From 1.
        weights: The shared model, shape (params,), float32.
        class_weights: Shape (classes,), float32, from public constants or noised counts.
        centre: Where this population's voices lie, shape (inputs,), float32.
        denominator: What an update's sum is divided by inside a step; a public figure.
        clip: The round's clip norm on a user's update, where it is learned, from 1e-12 to 1e12;
            else 1.
        share: What one unit of a device's update will move the weights by; a public figure.
    """

    plan: str
    round: int
    weights: Tensor
    class_weights: Tensor
    centre: Tensor
    denominator: float
    clip: float = 1.0
    share: float = 0.0

    def record(self) -> RecordDict:
        """As it travels."""
        facts: dict[str, records.Fact] = {
            "plan": self.plan,
            "round": self.round,
            "denominator": self.denominator,
            "clip": self.clip,
            "share": self.share,
        }
        arrays = {name: getattr(self, name) for name in ("weights", "class_weights", "centre")}
        return records.record(facts, {"model": arrays})

    @classmethod
    def read(cls, content: RecordDict) -> "TrainRequest":
        """Read it, or raise ``MessageError``."""
        return _TRAINS.of(records.content_of(content), lambda: cls._read(content))

    @classmethod
    def _read(cls, content: RecordDict) -> "TrainRequest":
        """Read it anew."""
        facts = records.facts_of(content)
        number, denominator = facts.get("round"), facts.get("denominator")
        clip = facts.get("clip")
        if not isinstance(number, int) or number < 1:
            raise MessageError(f"the round is {number!r}; it must be a whole number from 1")
        if not isinstance(denominator, float) or not 0 < denominator < float("inf"):
            raise MessageError(f"the denominator is {denominator!r}; it must be finite and above 0")
        if not isinstance(clip, float) or not check.LEAST_NORM <= clip <= check.MOST_NORM:
            raise MessageError(
                f"the clip is {clip!r}; it must be from {check.LEAST_NORM:g} to "
                f"{check.MOST_NORM:g}, or rounding would break the bound: nothing was trained"
            )
        return cls(
            plan=records.text(facts, "plan"),
            round=number,
            weights=records.tensor(content, "model", "weights", 1),
            class_weights=records.tensor(content, "model", "class_weights", 1),
            centre=records.tensor(content, "model", "centre", 1),
            denominator=denominator,
            clip=clip,
            share=records.number(facts, "share"),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SumRequest:
    """One step of a secure sum.

    Attributes:
        plan: SHA-256 of the plan enrolled for.
        name: Which sum, unique over all runs.
        step: One of ``STEPS``.
        body: What the step's message holds; see ``shared.secagg.messages``.
        train: The round whose update is summed, where the step is ``mask``; None elsewhere.
        calibrate: The question whose answers are summed, likewise.
    """

    plan: str
    name: str
    step: str
    body: bytes
    train: TrainRequest | None = None
    calibrate: "CalibrateRequest | None" = None

    def record(self) -> RecordDict:
        """As it travels."""
        facts: dict[str, records.Fact] = {"plan": self.plan, "name": self.name, "step": self.step}
        summed = self.train or self.calibrate
        record = summed.record() if summed else records.record({}, {})
        record.config_records[_SUM] = ConfigRecord({**facts, "body": self.body})
        return record

    @classmethod
    def read(cls, content: RecordDict) -> "SumRequest":
        """Read it, or raise ``MessageError``."""
        records.facts_of(content)
        facts = content.config_records.get(_SUM)
        if facts is None:
            raise MessageError("the message names no secure sum")
        step, body = records.text(facts, "step"), facts.get("body")
        if step not in STEPS or not isinstance(body, bytes):
            raise MessageError(f"the step of a secure sum is {step!r}; one of {', '.join(STEPS)}")
        asks = step == "mask" and "question" in content.array_records
        trains = step == "mask" and "model" in content.array_records and not asks
        return cls(
            plan=records.text(facts, "plan"),
            name=records.text(facts, "name"),
            step=step,
            body=body,
            train=TrainRequest.read(content) if trains else None,
            calibrate=CalibrateRequest.read(content) if asks else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CalibrateRequest:
    """How right is the final model on a device's own clips?

    Attributes:
        plan: SHA-256 of the plan enrolled for.
        weights: The final model, shape (params,), float32.
        centre: Where this population's voices lie, shape (inputs,), float32.
        question: What is asked of every clip.
    """

    plan: str
    weights: Tensor
    centre: Tensor
    question: Question

    def record(self) -> RecordDict:
        """As it travels."""
        facts: dict[str, records.Fact] = {
            "plan": self.plan,
            "log_temperature": self.question.log_temperature,
            "bend": self.question.bend,
        }
        question = {"edges": self.question.edges, "shares": self.question.shares}
        model = {"weights": self.weights, "centre": self.centre}
        return records.record(facts, {"model": model, "question": question})

    @classmethod
    def read(cls, content: RecordDict) -> "CalibrateRequest":
        """Read it, or raise ``MessageError``."""
        return _CALIBRATES.of(records.content_of(content), lambda: cls._read(content))

    @classmethod
    def _read(cls, content: RecordDict) -> "CalibrateRequest":
        """Read it anew."""
        facts = records.facts_of(content)
        temperature = facts.get("log_temperature")
        if not isinstance(temperature, float):
            raise MessageError(f"the log temperature is {temperature!r}; it must be a number")
        question = Question(
            log_temperature=temperature,
            bend=records.number(facts, "bend"),
            edges=records.tensor(content, "question", "edges", 1),
            shares=records.tensor(content, "question", "shares", 1),
        )
        weights, centre = (
            records.tensor(content, "model", name, 1) for name in ("weights", "centre")
        )
        return cls(
            plan=records.text(facts, "plan"), weights=weights, centre=centre, question=question
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PersonalRequest:
    """The final model and where every user's head starts from; the user's own, if one is kept.

    Attributes:
        plan: SHA-256 of the plan enrolled for.
        weights: The final model, shape (params,), float32.
        centre: Where this population's voices lie, shape (inputs,), float32.
        prior: Where heads start from.
        neutral: Where the model hears neutral speech, a unit vector, shape (inputs,); None where it
            cannot say.
        kept: The user's newest head.
    """

    plan: str
    weights: Tensor
    centre: Tensor
    prior: HeadPrior
    neutral: Tensor | None = None
    kept: KeptHead | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What is handed out beside the prior, by name."""
        found = {"weights": self.weights, "centre": self.centre, "neutral": self.neutral}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def record(self) -> RecordDict:
        """As it travels."""
        facts: dict[str, records.Fact] = {
            "plan": self.plan,
            "prior": json.dumps(self.prior.as_dict()),
        }
        if self.kept:
            facts |= {
                "kept": self.kept.blob,
                "kept_model": self.kept.model_hash,
                "kept_version": self.kept.version,
            }
        arrays = {_MODEL: self.tensors()}
        if self.prior.basis:
            arrays[_BASIS] = self.prior.tensors()
        return records.record(facts, arrays)

    @classmethod
    def read(cls, content: RecordDict) -> "PersonalRequest":
        """Read it, or raise ``MessageError``."""
        facts = records.facts_of(content)
        basis = {}
        if _BASIS in content.array_records:
            basis = {
                name: records.tensor(content, _BASIS, name, axes)
                for name, axes in (("centre", 1), ("matrix", 2))
            }
        try:
            prior = prior_from_dict(json.loads(records.text(facts, "prior")), basis)
        except (ModelError, ValueError, TypeError) as error:
            raise MessageError(f"the prior of the heads cannot be used: {error}") from error
        names = ["weights", "centre"]
        if _NEUTRAL in content.array_records.get(_MODEL, {}):
            names.append(_NEUTRAL)
        return cls(
            plan=records.text(facts, "plan"),
            **{name: records.tensor(content, _MODEL, name, 1) for name in names},
            prior=prior,
            kept=_kept(facts) if "kept" in facts else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reply:
    """What a device answers.

    Attributes:
        user: The user's pseudonym.
        status: What became of the request.
        reason: Why, where it was refused.
        value: The released vector, where there is one: label counts and share of the centre
            (classes + inputs,), an update (params,), or answers of clips, float32.
        head: The user's sealed head, or nothing.
        version: Version of that head, from 1.
        body: The answer to a step of a secure sum; at enrolment for such sums, the public half of
            the user's identity.
    """

    user: str
    status: Status
    reason: str = ""
    value: Tensor | None = None
    head: bytes = b""
    version: int = 0
    body: bytes = b""

    def record(self) -> RecordDict:
        """As it travels."""
        facts: dict[str, records.Fact] = {
            "body": self.body,
            "user": self.user,
            "status": self.status.value,
            "reason": self.reason,
            "head": self.head,
            "version": self.version,
        }
        return records.record(
            facts, {} if self.value is None else {"release": {"value": self.value}}
        )

    @classmethod
    def read(cls, content: RecordDict, *, size: int) -> "Reply":
        """Read a reply.

        Args:
            content: What came.
            size: How long the released vector must be, where there is one.

        Raises:
            MessageError: Wrong schema, dtype, length, or a NaN or an infinity.
        """
        facts = records.facts_of(content)
        user, head, version = records.text(facts, "user"), facts.get("head"), facts.get("version")
        body = facts.get("body")
        if not 0 < len(user) <= _LONGEST_USER:
            raise MessageError(f"a user's name has {len(user)} characters; 1 to {_LONGEST_USER}")
        try:
            status = Status(records.text(facts, "status"))
        except ValueError as error:
            raise MessageError(f"the status of {user} is unknown: {error}") from error
        if not (isinstance(head, bytes) and isinstance(version, int) and isinstance(body, bytes)):
            raise MessageError(f"the reply of {user} lacks its head, the head's version or a body")
        value = None
        if status is Status.OK and size:
            value = records.tensor(content, "release", "value", 1)
            if len(value) != size:
                raise MessageError(f"{user} sent {len(value)} numbers where {size} were asked for")
        reason = str(facts.get("reason", ""))[:500]
        return cls(
            user=user,
            status=status,
            reason=reason,
            value=value,
            head=head,
            version=version,
            body=body,
        )


_ENROLS, _TRAINS, _CALIBRATES = (
    Newest[EnrolRequest](),
    Newest[TrainRequest](),
    Newest[CalibrateRequest](),
)
"""The newest requests: where one process answers for many devices, all are sent the same."""


def _kept(facts: ConfigRecord) -> KeptHead:
    """The user's head as the server says it keeps it."""
    blob, version = facts["kept"], facts.get("kept_version")
    if not (isinstance(blob, bytes) and isinstance(version, int)):
        raise MessageError("the message's kept head lacks its ciphertext or its version")
    return KeptHead(model_hash=records.text(facts, "kept_model"), version=version, blob=blob)
