"""A device under attack: the product's own code on a device that lives in memory.

An audit needs thousands of lives. What they run is ``client.participant`` and the trainer, with
their real clip and noise; only disk, encryption and ledger are left out, which change no byte of
what is sent. A test holds a subject to a device on disk, byte by byte.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from sottovoce.client import calibration, enrolment, participant
from sottovoce.client.device import Device, Pending, Randomness
from sottovoce.client.owner import Clips, Facts
from sottovoce.shared.calibration import CalibrationRelease, Question
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import Front
from sottovoce.shared.normaliser import CentreRelease, NormaliserRelease, Population
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.release import Release
from sottovoce.shared.training import UtteranceNoise
from sottovoce.shared.wire import CalibrateRequest

_Noised = TypeVar("_Noised", UtteranceNoise, NormaliserRelease, CentreRelease, CalibrationRelease)

_HUSH = 1e-9
"""Share of the noise that is left where an attacker computes what would be sent without it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Asked:
    """What a server asks of a device's clips after the last round.

    Attributes:
        weights: The model that they are judged by, shape (params,), float32. No round said that
            the device's own updates moved it (``share`` is 0), so none of it is taken back.
        question: What each of them answers.
    """

    weights: Tensor
    question: Question


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Course:
    """What a server asks of a device in its life.

    Attributes:
        plan: The plan.
        front: The public front.
        population: How public speakers differ.
        centre: Where the population's voices lie, shape (inputs,), float32.
        class_weights: Shape (classes,), float32.
        weights: The shared model before every round, each shape (params,), float32.
        denominator: Public number of utterances of a step.
        devices: How many devices a sum runs over.
        asked: What is asked after the last round; None asks nothing.
    """

    plan: Plan
    front: Front
    population: Population
    centre: Tensor
    class_weights: Tensor
    weights: Sequence[Tensor]
    denominator: float
    devices: int = 1
    asked: Asked | None = None

    def constant(self, rounds: int | None = None) -> "Course":
        """The course of a server that sends the first model in every round, which it may."""
        first = self.weights[0]
        return replace(
            self,
            weights=[first] * (rounds or len(self.weights)),
            asked=self.asked and replace(self.asked, weights=first),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seen:
    """What the server saw of one device.

    Attributes:
        enrolment: Label counts and share of the centre, shape (classes + inputs,).
        updates: One a round, shape (rounds, params).
        answer: Its head statistics, shape (WIDTH,); none where nothing was asked.
    """

    enrolment: Tensor
    updates: Tensor
    answer: Tensor


class _Vault:
    """A device's vault without the disk."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}

    def has(self, name: str) -> bool:
        """Whether it is kept."""
        return name in self._kept or name in self._tensors

    def put(self, name: str, value: bytes) -> None:
        """Keep bytes."""
        self._kept[name] = value

    def get(self, name: str) -> bytes:
        """What was kept."""
        return self._kept[name]

    def put_tensors(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        *,
        durable: bool = True,  # noqa: ARG002  (there is no disk)
    ) -> None:
        """Keep tensors."""
        self._tensors[name] = dict(tensors)

    def get_tensors(self, name: str) -> dict[str, Tensor]:
        """What was kept."""
        return dict(self._tensors[name])


class Subject:
    """A device in memory; its noise comes from a seed, as on every simulated device.

    Args:
        examples: Its utterances as raw features.
        labels: Names of the classes.
        seed: Decides its noise.
    """

    def __init__(self, examples: Examples, labels: tuple[str, ...], seed: int) -> None:
        self.facts = Facts(user="subject", budgets=(), labels=labels, simulated_seed=seed)
        self.vault = _Vault()
        self._examples = examples
        self._sent: dict[str, Tensor] = {}

    @property
    def apart(self) -> bool:
        """As on every simulated device."""
        return False

    def clips(self) -> Clips:
        """All of its utterances enrol and train."""
        everyone = torch.ones(len(self._examples), dtype=torch.bool)
        return Clips(
            examples=self._examples, enrols=everyone, calibrates=~everyone, trains=everyone
        )

    def release(
        self, name: str, content: str, release: Release, make: Callable[[Randomness], Tensor]
    ) -> Tensor:
        """As ``Device.release``, but for the booking."""
        booked = f"{release.run}/{name}/{content[:32]}"
        if booked not in self._sent:
            self._sent[booked] = make(Randomness(self.facts, name))
        return self._sent[booked]

    def enrol(self, course: Course) -> Tensor:
        """Its first message, shape (classes + inputs,)."""
        value = enrolment.enrol(self._device, course.plan, course.front, course.population)
        return cast(Tensor, value)

    def train(self, course: Course, number: int) -> Tensor:
        """Its message of one round, from 1, shape (params,)."""
        return participant.train(
            self._device,
            plan=course.plan.digest(),
            number=number,
            weights=course.weights[number - 1],
            class_weights=course.class_weights,
            centre=course.centre,
            denominator=course.denominator,
        )

    def answer(self, course: Course) -> Tensor:
        """Its message after the last round, shape (WIDTH,); nothing where nothing is asked."""
        request = _request(course)
        return torch.zeros(0) if request is None else calibration.calibrate(self._device, request)

    def answers(self, course: Course, seeds: Sequence[int]) -> Iterator[Tensor]:
        """The same, as if its noise came from each of these seeds; it has enrolled."""
        request = _request(course)
        if request is None:
            return
        pending: Pending = calibration.answer(self._device, request)
        for seed in seeds:
            yield pending.make(Randomness(replace(self.facts, simulated_seed=seed), pending.name))

    @property
    def _device(self) -> Device:
        """What the participant takes it for: it asks for nothing that is not here."""
        return cast(Device, self)


def live(course: Course, examples: Examples, seed: int) -> Seen:
    """A device's life, as the server sees it.

    Args:
        course: What is asked; as many rounds as it has weights.
        examples: The device's utterances as raw features.
        seed: Decides all of its noise.
    """
    subject = Subject(examples, course.plan.labels, seed)
    enrolment = subject.enrol(course)
    rounds = range(1, len(course.weights) + 1)
    updates = [subject.train(course, number) for number in rounds]
    return Seen(enrolment=enrolment, updates=torch.stack(updates), answer=subject.answer(course))


def _request(course: Course) -> CalibrateRequest | None:
    """What is asked after the last round, as it travels."""
    if course.asked is None or course.plan.calibration is None:
        return None
    return CalibrateRequest(
        plan=course.plan.digest(),
        weights=course.asked.weights,
        centre=course.centre,
        question=course.asked.question,
    )


def hushed(course: Course) -> Course:
    """The same course with next to no noise: what an attacker computes for itself."""
    plan = course.plan
    if not isinstance(plan.mechanism, UtteranceNoise):
        return course
    changes: dict[str, object] = {
        "mechanism": _softer(plan.mechanism),
        "count_noise": plan.count_noise * _HUSH,
    }
    for name in ("centre", "normaliser", "calibration"):
        part = getattr(plan, name)
        changes[name] = part and _softer(part)
    return replace(course, plan=replace(plan, **changes))  # type: ignore[arg-type]


def _softer(part: _Noised) -> _Noised:
    """The same settings with less noise."""
    return replace(part, noise_multiplier=part.noise_multiplier * _HUSH)


def exactly(course: Course) -> Course:
    """The trap: training behind the user's exact mean, of which nothing is clipped, noised, booked.

    Everything else keeps its noise. Such a plan would have to be priced as if the mean cost
    nothing, which is what the audit shows to be false.
    """
    settings = course.plan.normaliser
    if settings is None or not course.plan.private:
        return course
    mean = replace(settings, radius=1e6, noise_multiplier=1e-12)
    return replace(course, plan=replace(course.plan, normaliser=mean))
