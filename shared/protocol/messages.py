"""The messages of a run, over Flower's Message API.

========= ================== ======================================= =========================
exchange  Flower type        request                                 reply
========= ================== ======================================= =========================
enrol     ``query.enrol``    plan, public projection and statistics  noised label counts, centre
train     ``train``          round, weights, class weights, centre   noised sum of gradients
sum       ``query.sum``      one step of a secure sum, and the       that step's answer
                             round to train where it is masked
calibrate ``query.calibrate`` final weights, centre, a query         noised statistics of clips
personal  ``evaluate``       final weights, centre, heads' prior,    the user's head, sealed
                             and the user's stored head, sealed
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

from sottovoce.shared import validation
from sottovoce.shared.calibration import HeadPrior, UnverifiedHead, prior_from_dict
from sottovoce.shared.calibration.head_statistics import CalibrationQuery
from sottovoce.shared.errors import MessageError, ModelError
from sottovoce.shared.memo import LastValueCache
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.protocol import flower_records
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

ENROL, TRAIN, FINAL_MODEL, SECURE_SUM = "query.enrol", "train", "evaluate", "query.sum"
HEAD_STATISTICS = "query.calibrate"
SECURE_SUM_STEPS = ("advertise", "share", "mask", "agree", "unmask")
"""Steps of a secure sum, in order."""

_SUM, _BASIS, _MODEL, _NEUTRAL = "sum", "basis", "model", "neutral"
_MAX_USER_LENGTH = 128


class Status(StrEnum):
    """Outcome of a request on a device."""

    OK = "ok"
    # Takes models and contributes nothing: a new user, or one whose budget is spent.
    RECEIVE_ONLY = "receives"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EnrolRequest:
    """The plan and all that was learned from public corpora.

    Attributes:
        plan: The run's public facts.
        projection: The public projection.
        speaker_statistics: Public statistics of speakers.
        report_statistics: Whether label counts and centre are asked for; a run that is under way
            knows them.
    """

    plan: Plan
    projection: PublicProjection
    speaker_statistics: SpeakerStatistics
    report_statistics: bool = True

    def to_record(self) -> RecordDict:
        """As it travels."""
        config: dict[str, flower_records.ConfigValue] = {
            "plan": self.plan.to_json(),
            "length": self.projection.row_norm,
        }
        if not self.report_statistics:  # sent only where it is not the default
            config["tells"] = False
        arrays = {
            "front": {"mean": self.projection.mean, "matrix": self.projection.matrix},
            "population": self.speaker_statistics.to_tensors(),
        }
        return flower_records.build_record(config, arrays)

    @classmethod
    def from_record(cls, content: RecordDict) -> "EnrolRequest":
        """Read it.

        Raises:
            MessageError: It breaks the schema, or the projection is not the plan's.
        """
        return _ENROL_CACHE.get(flower_records.content_key(content), lambda: cls._parse(content))

    @classmethod
    def _parse(cls, content: RecordDict) -> "EnrolRequest":
        """Read it anew."""
        config = flower_records.read_config(content)
        plan = Plan.from_json(flower_records.read_text(config, "plan"))
        names = SpeakerStatistics.__dataclass_fields__
        statistics = {
            name: flower_records.read_tensor(content, "population", name, 1) for name in names
        }
        try:
            projection = PublicProjection(
                mean=flower_records.read_tensor(content, "front", "mean", 1),
                matrix=flower_records.read_tensor(content, "front", "matrix", 2),
                row_norm=flower_records.read_number(config, "length"),
            )
            speaker_statistics = SpeakerStatistics(**statistics)
        except ModelError as error:
            raise MessageError(
                f"the projection or the speaker statistics cannot be used: {error}"
            ) from error
        if projection.content_hash() != plan.projection_hash:
            raise MessageError(
                "the projection is not the one that the plan names; nothing was enrolled"
            )
        widths = {projection.output_size, len(speaker_statistics.between), plan.model.inputs}
        if len(widths) != 1:
            raise MessageError(
                f"projection, speaker statistics and model are {sorted(widths)} inputs wide; all "
                "must be equally wide"
            )
        report_statistics = config.get("tells", True)
        if not isinstance(report_statistics, bool):
            raise MessageError(
                f"the message's tells is {report_statistics!r}; it must be true or false"
            )
        return cls(
            plan=plan,
            projection=projection,
            speaker_statistics=speaker_statistics,
            report_statistics=report_statistics,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainRequest:
    """One round of training.

    Attributes:
        plan_hash: SHA-256 of the plan enrolled for.
        round: From 1.
        weights: The shared model, shape (params,), float32.
        class_weights: Shape (classes,), float32, from public constants or noised counts.
        centre: This population's centre, shape (inputs,), float32.
        denominator: Divides the sum of gradients inside a step; a public figure.
        clip_norm: The round's clip norm on a user's update, where it is learned, from 1e-12 to
            1e12; else 1.
        update_scale: How far one unit of a device's update will move the weights; a public figure.
    """

    plan_hash: str
    round: int
    weights: Tensor
    class_weights: Tensor
    centre: Tensor
    denominator: float
    clip_norm: float = 1.0
    update_scale: float = 0.0

    def to_record(self) -> RecordDict:
        """As it travels."""
        config: dict[str, flower_records.ConfigValue] = {
            "plan": self.plan_hash,
            "round": self.round,
            "denominator": self.denominator,
            "clip": self.clip_norm,
            "share": self.update_scale,
        }
        arrays = {name: getattr(self, name) for name in ("weights", "class_weights", "centre")}
        return flower_records.build_record(config, {"model": arrays})

    @classmethod
    def from_record(cls, content: RecordDict) -> "TrainRequest":
        """Read it, or raise ``MessageError``."""
        return _TRAIN_CACHE.get(flower_records.content_key(content), lambda: cls._parse(content))

    @classmethod
    def _parse(cls, content: RecordDict) -> "TrainRequest":
        """Read it anew."""
        config = flower_records.read_config(content)
        number, denominator = config.get("round"), config.get("denominator")
        clip_norm = config.get("clip")
        if not isinstance(number, int) or number < 1:
            raise MessageError(f"the round is {number!r}; it must be a whole number from 1")
        if not isinstance(denominator, float) or not 0 < denominator < float("inf"):
            raise MessageError(f"the denominator is {denominator!r}; it must be finite and above 0")
        low, high = validation.MIN_NORM, validation.MAX_NORM
        if not isinstance(clip_norm, float) or not low <= clip_norm <= high:
            raise MessageError(
                f"the clip norm is {clip_norm!r}; it must be from {low:g} to {high:g}, or rounding "
                "would break the bound: nothing was trained"
            )
        return cls(
            plan_hash=flower_records.read_text(config, "plan"),
            round=number,
            weights=flower_records.read_tensor(content, "model", "weights", 1),
            class_weights=flower_records.read_tensor(content, "model", "class_weights", 1),
            centre=flower_records.read_tensor(content, "model", "centre", 1),
            denominator=denominator,
            clip_norm=clip_norm,
            update_scale=flower_records.read_number(config, "share"),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SecureSumRequest:
    """One step of a secure sum.

    Attributes:
        plan_hash: SHA-256 of the plan enrolled for.
        name: Which sum, unique over all runs.
        step: One of ``SECURE_SUM_STEPS``.
        body: Bytes of the step's message; see ``shared.secure_aggregation.messages``.
        train_request: The round whose update is summed, where the step is ``mask``; None elsewhere.
        statistics_request: The query whose answers are summed, likewise.
    """

    plan_hash: str
    name: str
    step: str
    body: bytes
    train_request: TrainRequest | None = None
    statistics_request: "HeadStatisticsRequest | None" = None

    def to_record(self) -> RecordDict:
        """As it travels."""
        config: dict[str, flower_records.ConfigValue] = {
            "plan": self.plan_hash,
            "name": self.name,
            "step": self.step,
        }
        summed = self.train_request or self.statistics_request
        record = summed.to_record() if summed else flower_records.build_record({}, {})
        record.config_records[_SUM] = ConfigRecord({**config, "body": self.body})
        return record

    @classmethod
    def from_record(cls, content: RecordDict) -> "SecureSumRequest":
        """Read it, or raise ``MessageError``."""
        flower_records.read_config(content)
        config = content.config_records.get(_SUM)
        if config is None:
            raise MessageError("the message names no secure sum")
        step, body = flower_records.read_text(config, "step"), config.get("body")
        if step not in SECURE_SUM_STEPS or not isinstance(body, bytes):
            raise MessageError(
                f"the step of a secure sum is {step!r}; one of {', '.join(SECURE_SUM_STEPS)}"
            )
        has_query = step == "mask" and "question" in content.array_records
        has_model = step == "mask" and "model" in content.array_records and not has_query
        return cls(
            plan_hash=flower_records.read_text(config, "plan"),
            name=flower_records.read_text(config, "name"),
            step=step,
            body=body,
            train_request=TrainRequest.from_record(content) if has_model else None,
            statistics_request=HeadStatisticsRequest.from_record(content) if has_query else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadStatisticsRequest:
    """A query about the final model on a device's own clips.

    Attributes:
        plan_hash: SHA-256 of the plan enrolled for.
        weights: The final model, shape (params,), float32.
        centre: This population's centre, shape (inputs,), float32.
        query: The query, which every clip answers.
    """

    plan_hash: str
    weights: Tensor
    centre: Tensor
    query: CalibrationQuery

    def to_record(self) -> RecordDict:
        """As it travels."""
        config: dict[str, flower_records.ConfigValue] = {
            "plan": self.plan_hash,
            "log_temperature": self.query.log_temperature,
            "bend": self.query.curvature,
        }
        query = {"edges": self.query.edges, "shares": self.query.shares}
        model = {"weights": self.weights, "centre": self.centre}
        return flower_records.build_record(config, {"model": model, "question": query})

    @classmethod
    def from_record(cls, content: RecordDict) -> "HeadStatisticsRequest":
        """Read it, or raise ``MessageError``."""
        return _STATISTICS_CACHE.get(
            flower_records.content_key(content), lambda: cls._parse(content)
        )

    @classmethod
    def _parse(cls, content: RecordDict) -> "HeadStatisticsRequest":
        """Read it anew."""
        config = flower_records.read_config(content)
        temperature = config.get("log_temperature")
        if not isinstance(temperature, float):
            raise MessageError(f"the log temperature is {temperature!r}; it must be a number")
        query = CalibrationQuery(
            log_temperature=temperature,
            curvature=flower_records.read_number(config, "bend"),
            edges=flower_records.read_tensor(content, "question", "edges", 1),
            shares=flower_records.read_tensor(content, "question", "shares", 1),
        )
        weights, centre = (
            flower_records.read_tensor(content, "model", name, 1) for name in ("weights", "centre")
        )
        return cls(
            plan_hash=flower_records.read_text(config, "plan"),
            weights=weights,
            centre=centre,
            query=query,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FinalModelRequest:
    """The final model and the prior of users' heads; the user's own head, if one is stored.

    Attributes:
        plan_hash: SHA-256 of the plan enrolled for.
        weights: The final model, shape (params,), float32.
        centre: This population's centre, shape (inputs,), float32.
        prior: Prior of users' heads.
        neutral_direction: Unit vector from a speaker's mean towards neutral speech, shape
            (inputs,); None where the model knows none.
        stored_head: The user's newest head.
    """

    plan_hash: str
    weights: Tensor
    centre: Tensor
    prior: HeadPrior
    neutral_direction: Tensor | None = None
    stored_head: UnverifiedHead | None = None

    def named_tensors(self) -> dict[str, Tensor]:
        """What is sent beside the prior, by name."""
        tensors = {"weights": self.weights, "centre": self.centre}
        if self.neutral_direction is not None:
            tensors[_NEUTRAL] = self.neutral_direction
        return tensors

    def to_record(self) -> RecordDict:
        """As it travels."""
        config: dict[str, flower_records.ConfigValue] = {
            "plan": self.plan_hash,
            "prior": json.dumps(self.prior.as_dict()),
        }
        if self.stored_head:
            config |= {
                "kept": self.stored_head.blob,
                "kept_model": self.stored_head.model_hash,
                "kept_version": self.stored_head.version,
            }
        arrays = {_MODEL: self.named_tensors()}
        if self.prior.basis:
            arrays[_BASIS] = self.prior.basis_tensors()
        return flower_records.build_record(config, arrays)

    @classmethod
    def from_record(cls, content: RecordDict) -> "FinalModelRequest":
        """Read it, or raise ``MessageError``."""
        config = flower_records.read_config(content)
        basis = {}
        if _BASIS in content.array_records:
            basis = {
                name: flower_records.read_tensor(content, _BASIS, name, axes)
                for name, axes in (("centre", 1), ("matrix", 2))
            }
        try:
            prior = prior_from_dict(json.loads(flower_records.read_text(config, "prior")), basis)
        except (ModelError, ValueError, TypeError) as error:
            raise MessageError(f"the prior of the heads cannot be used: {error}") from error
        has_direction = _NEUTRAL in content.array_records.get(_MODEL, {})
        return cls(
            plan_hash=flower_records.read_text(config, "plan"),
            weights=flower_records.read_tensor(content, _MODEL, "weights", 1),
            centre=flower_records.read_tensor(content, _MODEL, "centre", 1),
            prior=prior,
            neutral_direction=(
                flower_records.read_tensor(content, _MODEL, _NEUTRAL, 1) if has_direction else None
            ),
            stored_head=_read_stored_head(config) if "kept" in config else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reply:
    """A device's answer.

    Attributes:
        user: The user's pseudonym.
        status: What became of the request.
        reason: Why, where it was refused.
        value: The released vector, where there is one: label counts and share of the centre
            (classes + inputs,), an update (params,), or head statistics, float32.
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

    def to_record(self) -> RecordDict:
        """As it travels."""
        config: dict[str, flower_records.ConfigValue] = {
            "body": self.body,
            "user": self.user,
            "status": self.status.value,
            "reason": self.reason,
            "head": self.head,
            "version": self.version,
        }
        return flower_records.build_record(
            config, {} if self.value is None else {"release": {"value": self.value}}
        )

    @classmethod
    def from_record(cls, content: RecordDict, *, size: int) -> "Reply":
        """Read a reply.

        Args:
            content: What came.
            size: How long the released vector must be, where there is one.

        Raises:
            MessageError: Wrong schema, dtype, length, or a NaN or an infinity.
        """
        config = flower_records.read_config(content)
        user = flower_records.read_text(config, "user")
        head, version, body = config.get("head"), config.get("version"), config.get("body")
        if not 0 < len(user) <= _MAX_USER_LENGTH:
            raise MessageError(f"a user's name has {len(user)} characters; 1 to {_MAX_USER_LENGTH}")
        try:
            status = Status(flower_records.read_text(config, "status"))
        except ValueError as error:
            raise MessageError(f"the status of {user} is unknown: {error}") from error
        if not (isinstance(head, bytes) and isinstance(version, int) and isinstance(body, bytes)):
            raise MessageError(f"the reply of {user} lacks its head, the head's version or a body")
        value = None
        if status is Status.OK and size:
            value = flower_records.read_tensor(content, "release", "value", 1)
            if len(value) != size:
                raise MessageError(f"{user} sent {len(value)} numbers where {size} were asked for")
        reason = str(config.get("reason", ""))[:500]
        return cls(
            user=user,
            status=status,
            reason=reason,
            value=value,
            head=head,
            version=version,
            body=body,
        )


_ENROL_CACHE, _TRAIN_CACHE, _STATISTICS_CACHE = (
    LastValueCache[EnrolRequest](),
    LastValueCache[TrainRequest](),
    LastValueCache[HeadStatisticsRequest](),
)
"""The last requests: where one process answers for many devices, all are sent the same."""


def _read_stored_head(config: ConfigRecord) -> UnverifiedHead:
    """The user's head, as the server claims to have stored it."""
    blob, version = config["kept"], config.get("kept_version")
    if not (isinstance(blob, bytes) and isinstance(version, int)):
        raise MessageError("the message's stored head lacks its ciphertext or its version")
    return UnverifiedHead(
        model_hash=flower_records.read_text(config, "kept_model"), version=version, blob=blob
    )
