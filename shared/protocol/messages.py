"""The messages of a run, as plain records; ``flower_records`` carries them over Flower.

======================= =================== ============================== ========================
request                 message type        what is asked                  what a reply releases
======================= =================== ============================== ========================
EnrolRequest            ``query.enrol``     to join: plan, public          noised label counts, and
                                            projection, statistics         share of the centre
TrainRequest            ``train``           a round of local training      noised update
SecureSumRequest        ``query.sum``       a step of a secure sum, and    that step's answer
                                            what is summed at ``mask``
HeadStatisticsRequest   ``query.calibrate`` a query of the final model     noised head statistics
FinalModelRequest       ``evaluate``        to take the final model, and   the user's head, sealed
                                            the stored head
WithdrawalRequest       ``query.withdraw``  to prove a withdrawal, or to   the proof, signed
                                            keep its confirmation
======================= =================== ============================== ========================

Where sums are secure, enrolment brings the device's public identity, and both values go through
secure sums. Every reply carries the user's pseudonym and a status; that to an enrolment also a
signed statement of consent. A device whose owner has withdrawn consent answers every request with
that status alone. Nothing else travels: no loss, no accuracy, no example count.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.calibration import HeadPrior, UnverifiedHead
from sottovoce.shared.calibration.head_statistics import CalibrationQuery
from sottovoce.shared.errors import MessageError
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.protocol.consent import CHALLENGE_BYTES
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

ENROL, TRAIN, FINAL_MODEL, SECURE_SUM = "query.enrol", "train", "evaluate", "query.sum"
HEAD_STATISTICS, WITHDRAWAL = "query.calibrate", "query.withdraw"
SECURE_SUM_STEPS = ("advertise", "share", "mask", "agree", "unmask")
"""Steps of a secure sum, in order."""


class Status(StrEnum):
    """Outcome of a request on a device."""

    OK = "ok"
    # Takes models and contributes nothing: a new user, or one whose budget is spent.
    RECEIVE_ONLY = "receives"
    REFUSED = "refused"
    # The owner has withdrawn consent: nothing is trained or sent any more.
    WITHDRAWN = "withdrawn"


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

    message_type: ClassVar[str] = ENROL

    plan: Plan
    projection: PublicProjection
    speaker_statistics: SpeakerStatistics
    report_statistics: bool = True


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainRequest:
    """One round of training.

    Attributes:
        plan_hash: SHA-256 of the plan enrolled for.
        round: From 1.
        weights: The shared model, shape (params,), float32.
        class_weights: Shape (classes,), float32, from public constants or noised counts.
        centre: This population's centre, shape (inputs,), float32.
        denominator: Divides the sum of gradients inside a step; a public figure, above 0.
        clip_norm: The round's clip norm on a user's update, where it is learned, from 1e-12 to
            1e12; else 1.
        update_scale: How far one unit of a device's update will move the weights; a public figure,
            0 or above.

    Raises:
        MessageError: A number out of its range.

    Example:
        >>> import torch
        >>> request = TrainRequest(
        ...     plan_hash="0" * 64,
        ...     round=1,
        ...     weights=torch.zeros(6),
        ...     class_weights=torch.ones(2),
        ...     centre=torch.zeros(2),
        ...     denominator=4.0,
        ... )
        >>> request.message_type, request.clip_norm
        ('train', 1.0)
    """

    message_type: ClassVar[str] = TRAIN

    plan_hash: str
    round: int
    weights: Tensor
    class_weights: Tensor
    centre: Tensor
    denominator: float
    clip_norm: float = 1.0
    update_scale: float = 0.0

    def __post_init__(self) -> None:
        if self.round < 1:
            raise MessageError(f"the round is {self.round!r}; it must be a whole number from 1")
        if not 0 < self.denominator < math.inf:
            raise MessageError(
                f"the denominator is {self.denominator!r}; it must be finite and above 0"
            )
        low, high = validation.MIN_NORM, validation.MAX_NORM
        if not low <= self.clip_norm <= high:
            raise MessageError(
                f"the clip norm is {self.clip_norm!r}; it must be from {low:g} to {high:g}, or "
                "rounding would break the bound: nothing was trained"
            )
        if not 0 <= self.update_scale < math.inf:
            raise MessageError(
                f"the update scale is {self.update_scale!r}; it must be finite, 0 or above"
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

    message_type: ClassVar[str] = HEAD_STATISTICS

    plan_hash: str
    weights: Tensor
    centre: Tensor
    query: CalibrationQuery


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

    Raises:
        MessageError: A step that there is not.
    """

    message_type: ClassVar[str] = SECURE_SUM

    plan_hash: str
    name: str
    step: str
    body: bytes
    train_request: TrainRequest | None = None
    statistics_request: HeadStatisticsRequest | None = None

    def __post_init__(self) -> None:
        if self.step not in SECURE_SUM_STEPS:
            raise MessageError(
                f"the step of a secure sum is {self.step!r}; one of {', '.join(SECURE_SUM_STEPS)}"
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
        stored_head: The user's newest head, as the server claims; a device trusts nothing in it.
    """

    message_type: ClassVar[str] = FINAL_MODEL

    plan_hash: str
    weights: Tensor
    centre: Tensor
    prior: HeadPrior
    neutral_direction: Tensor | None = None
    stored_head: UnverifiedHead | None = None

    def named_tensors(self) -> dict[str, Tensor]:
        """Tensors beside the prior, by name: weights, centre and the neutral direction."""
        tensors = {"weights": self.weights, "centre": self.centre}
        if self.neutral_direction is not None:
            tensors["neutral"] = self.neutral_direction
        return tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class WithdrawalConfirmation:
    """A server's word on what it deleted of a user who has withdrawn consent.

    Attributes:
        run: The plan's name of the run in which it was asked.
        enrolment: Number of the user's enrolment that has ended.
        deleted: What there was and is no more, each in a few words; empty where nothing was.
    """

    run: str
    enrolment: int
    deleted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WithdrawalRequest:
    """One of the two steps of a withdrawal that a device said to a server.

    Attributes:
        challenge: Bytes that the proof must be signed over, ``consent.CHALLENGE_BYTES``; empty
            where the withdrawal is confirmed.
        confirmation: What the server deleted; None where the proof is asked for.
    """

    message_type: ClassVar[str] = WITHDRAWAL

    challenge: bytes = b""
    confirmation: WithdrawalConfirmation | None = None

    def __post_init__(self) -> None:
        wanted = CHALLENGE_BYTES if self.confirmation is None else 0
        if len(self.challenge) != wanted:
            raise MessageError(
                f"the challenge of a withdrawal has {len(self.challenge)} bytes; it must have "
                f"{wanted}"
            )


Request = (
    EnrolRequest
    | TrainRequest
    | SecureSumRequest
    | HeadStatisticsRequest
    | FinalModelRequest
    | WithdrawalRequest
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reply:
    """Answer of a device to one request.

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
        consent: At enrolment, or as proof of a withdrawal, the user's signed statement; see
            ``consent.ConsentStatement``.
    """

    user: str
    status: Status
    reason: str = ""
    value: Tensor | None = None
    head: bytes = b""
    version: int = 0
    body: bytes = b""
    consent: bytes = b""
