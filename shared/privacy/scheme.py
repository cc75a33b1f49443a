"""The privacy unit of a run, as one object: bounds, noise, records, limits and sentences.

A scheme is chosen once: by :func:`schemes.scheme_for` from what a run is to promise, or by
:func:`schemes.scheme_of` from the public facts of a plan. Whatever depends on the unit is asked of
it, so that "no privacy" has the shape of privacy and a further unit is one more file in
``schemes``. Schemes have no state; what a plan says is passed to them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, Final, Protocol, TypeVar

from torch import Tensor

from sottovoce.shared.calibration.head_statistics import SENSITIVITY, CalibrationRelease
from sottovoce.shared.errors import MessageError, SettingError
from sottovoce.shared.models.losses import Loss
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.guarantees.adversaries import AdversaryBound
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.participation import EveryRound, Participation, RoundBooking
from sottovoce.shared.privacy.release import (
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.privacy.user_level import SecureSumConfigs, UserLevelPrivacy
from sottovoce.shared.protocol.local_training import GradientMechanism, LocalTraining
from sottovoce.shared.speaker.normalisation import CentreRelease, NormaliserRelease

T = TypeVar("T")

MAX_UTTERANCES: Final = 10_000
"""Most utterances that a device is taken to hold: some nine hours of speech, a hundred times what
users of the corpora have. What a device with more sends may be refused."""


STREAMING_HINT: Final = (
    "over a sampled population a run hides users by noise that the server adds, within a fixed "
    "bound, or nothing: unit user without secure and without adaptive, or unit none"
)
"""Why sums over a sampled population do not keep a plan."""


class PlanFacts(Protocol):
    """Public facts of a plan that a scheme reads; ``Plan`` implements the protocol."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def run(self) -> str: ...  # noqa: D102
    @property
    def labels(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def model(self) -> ModelSpec: ...  # noqa: D102
    @property
    def rounds(self) -> int: ...  # noqa: D102
    @property
    def training(self) -> LocalTraining: ...  # noqa: D102
    @property
    def mechanism(self) -> GradientMechanism: ...  # noqa: D102
    @property
    def centre(self) -> CentreRelease | None: ...  # noqa: D102
    @property
    def normaliser(self) -> NormaliserRelease | None: ...  # noqa: D102
    @property
    def count_noise(self) -> float: ...  # noqa: D102
    @property
    def user(self) -> UserLevelPrivacy | None: ...  # noqa: D102
    @property
    def calibration(self) -> CalibrationRelease | None: ...  # noqa: D102
    @property
    def secure_sums(self) -> SecureSumConfigs | None: ...  # noqa: D102
    @property
    def unit(self) -> str: ...  # noqa: D102
    def all_releases(self) -> Iterator[Release]: ...  # noqa: D102


PlanT = TypeVar("PlanT", bound=PlanFacts)


class SumKind(StrEnum):
    """A sum over users that the server computes on."""

    LABEL_COUNTS = "label-counts"
    CENTRE = "centre"
    HEAD_STATISTICS = "head-statistics"
    UPDATE = "update"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitWording:
    """A unit in the words of pages.

    Attributes:
        name: In a sentence of terms: "utterance and user".
        short: In a legend: "one utterance".
        protects: For people who are recorded: "for one utterance".
        limits: A sentence for them on what a promise leaves open; empty where there is none.
    """

    name: str
    short: str
    protects: str
    limits: str = ""


class PrivacyScheme(ABC):
    """One privacy unit: everything about a run that depends on what is protected.

    Nothing that protects has a default here: a scheme that leaves a method out cannot be made.

    Attributes:
        unit: Name of the unit, in scenarios and records.
        secure: Whether sums are made by secure aggregation; part of the choice by target.
        promised: The units that are promised an epsilon, that of the heading first.
        has_private_messages: Whether whatever a device sends hides an utterance.
        sends_gradients: Whether a device adds its clipped gradients as they are to a sum that
            noises them, in place of an update that it noised.
        has_private_sums: Whether the sums over users are noised so that they hide a user: they are
            releases of the server, which its own ledger pays for.
        allows_population: Whether cohorts may be sampled from a population and summed as they
            come.
        rows_per_device: How many rows a device adds to the centre; 0 for all of its utterances.
        accountant_name: Who computes the epsilons, in words.
        noise_source: Who adds the noise that hides a user; None where no user is hidden.
        wording: The unit in words.
    """

    unit: ClassVar[str]
    secure: ClassVar[bool] = False
    promised: ClassVar[tuple[PrivacyUnit, ...]]
    has_private_messages: ClassVar[bool]
    sends_gradients: ClassVar[bool] = False
    has_private_sums: ClassVar[bool]
    allows_population: ClassVar[bool] = False
    rows_per_device: ClassVar[int]
    accountant_name: ClassVar[str] = accounting.ACCOUNTANT_NAME
    noise_source: ClassVar[NoiseSource | None]
    wording: ClassVar[UnitWording]

    @property
    def hides_in_sums(self) -> bool:
        """Whether noise in sums over devices hides a unit: each such sum is released once."""
        return self.has_private_sums or self.secure

    # --- choosing and planning ----------------------------------------------------------------

    @abstractmethod
    def describes(self, plan: PlanFacts) -> bool:
        """Whether the public facts of a plan are those of this unit; exactly one scheme's are."""

    def check_bounds(self, bounds: PrivacyBounds) -> None:
        """Refuse bounds that this unit cannot keep: here, participation groups.

        Raises:
            SettingError: There are such, with the way out.
        """
        if bounds.user.min_separation > 1:
            raise SettingError(
                f"min_separation is {bounds.user.min_separation}, unit {self.unit!r}, secure "
                f"{self.secure}; participation groups need unit 'user' without secure sums: leave "
                "min_separation at 1"
            )

    def check_loss(self, loss: Loss) -> None:
        """Refuse a loss under which one utterance moves the gradients of others.

        Raises:
            SettingError: It is such a loss.
        """
        loss.require_uncoupled()

    @abstractmethod
    def check_plan(self, plan: PlanFacts) -> None:
        """Refuse a plan whose settings would not keep what it promises.

        Raises:
            SettingError: They would not.
        """

    @abstractmethod
    def add_noise(self, plan: PlanT, target: PrivacyTarget, bounds: PrivacyBounds) -> PlanT:
        """Add noise to a plan without any, such that each promised unit stays within epsilon.

        Args:
            plan: A plan without noise.
            target: What is to be promised.
            bounds: What one unit adds.

        Guarantees:
            - What all of the plan's releases cost each promised unit is at most ``target.epsilon``,
              by ``accounting.compute_epsilon``; noise is rounded up.

        Raises:
            SettingError: The budget is too small for these releases.
        """

    def add_secure_sums(
        self,
        plan: PlanT,
        bounds: PrivacyBounds,
        *,
        devices: int,
    ) -> PlanT:
        """Make a plan's sums secure by shares of the noise; here there are none.

        Args:
            plan: As :meth:`add_noise` gives it.
            bounds: What a sum must bear.
            devices: How many take part in a sum.

        Raises:
            SettingError: Too few devices for the dropout and corruption that sums must bear.
        """
        return plan

    def budgets(
        self, target: PrivacyTarget, releases: Iterable[Release] = ()
    ) -> tuple[PrivacyBudget, ...]:
        """Budgets of a device, one for each promised unit; none at all allows anything.

        Args:
            target: What is promised.
            releases: All that the first plan of the device's life may release, which is public:
                they choose each budget's privacy filter. Without any it is the Gaussian filter.
        """
        planned = tuple(releases)
        return tuple(
            PrivacyBudget(
                epsilon=target.epsilon,
                delta=target.delta_for(unit),
                unit=unit,
                renyi_order=accounting.choose_renyi_order(
                    planned, target.delta_for(unit), unit=unit
                ),
            )
            for unit in self.promised
        )

    def sum_budgets(self, target: PrivacyTarget) -> tuple[PrivacyBudget, ...]:
        """Budgets of the server's sums, for one user; none at all lets all pass.

        Their ledger is of one plan that is fixed in advance, so no filter is chosen for them.
        """
        return tuple(one for one in self.budgets(target) if one.unit is PrivacyUnit.USER)

    @property
    def account_unit(self) -> PrivacyUnit:
        """The unit that a device's account is made for: the first promised, or an utterance."""
        return self.audited_units[0]

    @property
    def audited_units(self) -> tuple[PrivacyUnit, ...]:
        """The units that attacks bound an epsilon of; an utterance's where none is promised."""
        return self.promised or (PrivacyUnit.UTTERANCE,)

    # --- mechanisms and records ---------------------------------------------------------------

    @abstractmethod
    def sum_mechanism(self, plan: PlanFacts, kind: SumKind) -> SumMechanism | None:
        """Mechanism that hides a user in a sum; None without such a sum or without protection."""

    @abstractmethod
    def books_normaliser(self, plan: PlanFacts) -> bool:
        """Whether the training normaliser is a release; else it leaves only inside updates."""

    def participation(self, plan: PlanFacts) -> Participation:
        """Which rounds a user takes part in."""
        return EveryRound()

    def round_mechanism(
        self, plan: PlanFacts, unit: PrivacyUnit
    ) -> SumMechanism | GradientMechanism | None:
        """Clip and noise of a round that hide one of the units; None where nothing is promised."""
        if unit not in self.promised:
            return None
        hiding_user = self.sum_mechanism(plan, SumKind.UPDATE)
        return {PrivacyUnit.USER: hiding_user, PrivacyUnit.UTTERANCE: plan.mechanism}[unit]

    def normaliser_release(self, plan: PlanFacts) -> Release | None:
        """The ledger's record of the training normaliser; None where there is none to book."""
        settings = plan.normaliser
        if settings is None or not self.books_normaliser(plan):
            return None
        return make_release(
            plan, ReleaseKind.NORMALISER, 0, settings.noise_multiplier, settings.sensitivity
        )

    def centre_release(self, plan: PlanFacts) -> Release | None:
        """The ledger's record of the device's share of the centre; None where none is sent."""
        settings = plan.centre
        if settings is None:
            return None
        return make_release(
            plan,
            ReleaseKind.CENTRE,
            0,
            settings.noise_multiplier,
            settings.clip_norm,
            user=self.sum_mechanism(plan, SumKind.CENTRE),
        )

    def calibration_release(self, plan: PlanFacts) -> Release | None:
        """The ledger's record of the head statistics; None where none are asked for."""
        if plan.calibration is None:
            return None
        return make_release(
            plan,
            ReleaseKind.HEAD_STATISTICS,
            0,
            plan.calibration.noise_multiplier,
            SENSITIVITY,
            user=self.sum_mechanism(plan, SumKind.HEAD_STATISTICS),
        )

    def counts_release(self, plan: PlanFacts) -> Release:
        """The ledger's record of the label histogram, whose sensitivity is 1."""
        user = self.sum_mechanism(plan, SumKind.LABEL_COUNTS)
        return make_release(plan, ReleaseKind.LABEL_COUNTS, 0, plan.count_noise, 1.0, user=user)

    def gradient_release(self, plan: PlanFacts, number: int) -> Release:
        """The ledger's record of one round's update; rounds count from 1."""
        release = make_release(
            plan,
            ReleaseKind.GRADIENT,
            number,
            plan.mechanism.noise_multiplier,
            plan.mechanism.clip_norm,
            user=self.sum_mechanism(plan, SumKind.UPDATE),
        )
        training = plan.training
        return replace(release, sample_rate=training.sample_rate, steps=training.steps)

    def round_releases(self, plan: PlanFacts) -> Iterator[Release]:
        """The records of all rounds that a user can take part in."""
        return self.participation(plan).round_releases(
            plan.rounds, lambda number: self.gradient_release(plan, number)
        )

    def all_rounds_release(self, plan: PlanFacts) -> Release | None:
        """The record that pays for every round at once; None where rounds are booked singly."""
        return self.participation(plan).all_rounds_release(
            plan.rounds, lambda number: self.gradient_release(plan, number)
        )

    def releases_in_advance(self, plan: PlanFacts) -> Mapping[str, Release]:
        """Enrolment sums that a device books in advance, whether or not they are requested."""
        once = {"label-counts": self.counts_release(plan), "centre": self.centre_release(plan)}
        present = {name: release for name, release in once.items() if release}
        return self.participation(plan).releases_in_advance(present)

    # --- on a device --------------------------------------------------------------------------

    @abstractmethod
    def clip_counts(self, plan: PlanFacts, counts: Tensor) -> Tensor:
        """Clip a user's label counts, shape (classes,), to what their sum is noised for.

        Guarantees:
            - Where users are hidden, the L2 norm is at most that bound, whatever came in; NaN and
              infinity become zeros. No clips count as zeros.
        """

    @abstractmethod
    def device_rows(self, rows: Tensor) -> Tensor:
        """The rows that a device adds to the centre: all of them, or their mean as the only one.

        Args:
            rows: Projected training clips, shape (utterances, inputs).

        Returns:
            Shape (rows, inputs); none where there are none.
        """

    @abstractmethod
    def centre_bound(self, plan: PlanFacts) -> float:
        """L2 bound on a device's share of the centre before noise; infinite where none is set."""

    @abstractmethod
    def clip_statistics(self, plan: PlanFacts, rows: Tensor) -> Tensor:
        """Sum a device's head statistics before noise, bounded as their sum is noised for.

        Args:
            plan: The run's public facts.
            rows: Each clip's statistics, shape (utterances, STATISTICS_SIZE), float64.

        Returns:
            Shape (STATISTICS_SIZE,), float64; no clips give zeros.
        """

    @abstractmethod
    def clip_update(self, plan: PlanFacts, update: Tensor, clip_norm: float) -> Tensor:
        """Clip what one user adds to a round's sum.

        Args:
            plan: The run's public facts.
            update: As local training left it, shape (params,), float32.
            clip_norm: The round's clip norm, where the plan learns it.

        Guarantees:
            - Where the server's or shared noise hides users, the L2 norm is at most what that noise
              is scaled to (to 1e-6, relative), whatever came in; NaN and infinity become zeros.
        """

    def unpack_update(
        self,
        plan: PlanFacts,
        update: Tensor,
        clip_norm: float,
    ) -> tuple[Tensor, float | None]:
        """From what devices sent, or its mean: the update, and the next round's clip norm.

        The clip norm is None where it is fixed.
        """
        return update, None

    def initial_clip_norm(self, plan: PlanFacts) -> float:
        """The first round's clip norm on a user's update, where it is learned; else 1."""
        return 1.0

    def extra_coordinates(self, plan: PlanFacts) -> int:
        """How many numbers a device sends beside its update."""
        return 0

    def release_round(self, plan: PlanFacts, booking: RoundBooking[T]) -> T:
        """Let a device's update leave, booked as the plan's participation needs."""
        return self.participation(plan).release_round(
            booking, plan.rounds, lambda number: self.gradient_release(plan, number)
        )

    def match_sums(
        self,
        plan: PlanFacts,
        *,
        plain: Callable[[], T],
        secure: Callable[[SecureSumConfigs], T],
    ) -> T:
        """Choose between sums of replies and sums by secure aggregation; here of replies."""
        return plain()

    def sum_unit(self, plan: PlanFacts, kind: SumKind) -> float:
        """Length of a unit of the first secure sum, in the units of one of its parts.

        A device divides the part by it, and the server multiplies.

        Raises:
            SettingError: The plan has no secure sum of this kind.
        """
        mechanism = self.sum_mechanism(plan, kind)
        if mechanism is None:
            raise SettingError(f"the plan has no secure sum of {kind.value}")
        return mechanism.clip_norm

    def require_open_replies(self, plan: PlanFacts, what: str) -> None:
        """Refuse to send what leaves this plan's devices only in secure sums.

        Args:
            plan: The run's public facts.
            what: What is asked for, as the subject of a sentence.

        Raises:
            MessageError: It leaves only in secure sums.
        """

        def refuse(_: SecureSumConfigs) -> None:
            raise MessageError(f"{what} leave only in secure sums; nothing was sent")

        self.match_sums(plan, plain=lambda: None, secure=refuse)

    # --- on the server ------------------------------------------------------------------------

    @abstractmethod
    def device_noise(self, plan: PlanFacts, kind: SumKind) -> float:
        """Standard deviation of the noise that one device adds to its part of a sum; 0 for none.

        For updates, in one step, in the units of the gradient's clip norm.
        """

    @abstractmethod
    def update_unit(self, plan: PlanFacts, denominator: float) -> float:
        """Length in weights of one unit of the bound on a user's update.

        Args:
            plan: The run's public facts.
            denominator: What a device divides a step's sum of gradients by.
        """

    def device_noise_std(
        self, plan: PlanFacts, kind: SumKind, *, devices: float, denominator: float = 1.0
    ) -> float:
        """Standard deviation of the devices' own noise in a sum.

        Args:
            plan: The run's public facts.
            kind: Which sum.
            devices: How many devices are summed.
            denominator: What a device divides a step's sum of gradients by.

        Returns:
            In the units of the sum, for updates in weights; 0 where devices add none.
        """
        one = self.device_noise(plan, kind)
        if kind is SumKind.UPDATE:
            steps = plan.training.steps
            return one * self.update_unit(plan, denominator) * math.sqrt(devices * steps)
        return one * math.sqrt(devices)

    @abstractmethod
    def clip_part(
        self, plan: PlanFacts, kind: SumKind, part: Tensor, known_norm: float | None
    ) -> Tensor:
        """Clip what a device sent, on the server, where its word for the bound is not taken.

        Args:
            plan: The run's public facts.
            kind: Which sum it goes into.
            part: What was sent.
            known_norm: Its L2 norm by ``clipping.l2_norm``, where it was computed already.
        """

    def counted_devices(self, plan: PlanFacts, devices: float) -> float:
        """Count the devices whose own noise counts towards a sum's promise; here, every one."""
        return devices

    def server_noise_std(
        self, plan: PlanFacts, kind: SumKind, *, devices: float, denominator: float = 1.0
    ) -> float:
        """Standard deviation of the noise that the server adds to a sum; 0 where it adds none.

        It adds what the devices' own noise lacks, as far as that counts.

        Args:
            plan: The run's public facts.
            kind: Which sum.
            devices: How many devices are summed.
            denominator: What a device divides a step's sum of gradients by.
        """
        hiding = self.sum_mechanism(plan, kind)
        if hiding is None:
            return 0.0
        unit = self.update_unit(plan, denominator) if kind is SumKind.UPDATE else 1.0
        counted = self.counted_devices(plan, devices)
        own = self.device_noise_std(plan, kind, devices=counted, denominator=denominator)
        # Variances of independent noise add up; devices may have added more than is needed.
        return math.sqrt(max(0.0, (hiding.noise_std * unit) ** 2 - own**2))

    def sum_noise_std(
        self, plan: PlanFacts, kind: SumKind, *, devices: float, denominator: float = 1.0
    ) -> float:
        """Standard deviation of all noise in a sum, whoever adds it; 0 for none.

        Where noise is correlated across rounds, that of one independent draw.

        Args:
            plan: The run's public facts.
            kind: Which sum.
            devices: How many devices are summed.
            denominator: What a device divides a step's sum of gradients by.
        """
        own = self.device_noise_std(plan, kind, devices=devices, denominator=denominator)
        hiding = self.sum_mechanism(plan, kind)
        if hiding is None:
            return own
        if not own:
            unit = self.update_unit(plan, denominator) if kind is SumKind.UPDATE else 1.0
            return hiding.noise_std * unit
        added = self.server_noise_std(plan, kind, devices=devices, denominator=denominator)
        return math.hypot(own, added)

    @abstractmethod
    def total_weight(self, *, utterances: float, users: float) -> float:
        """Weight of a sum of head statistics: its utterances, or users where each counts as one."""

    def weight_noise_std(self, plan: PlanFacts, *, devices: int) -> float:
        """Standard deviation of the noise in that weight, which label counts give."""
        noise = self.sum_noise_std(plan, SumKind.LABEL_COUNTS, devices=devices)
        return noise * math.sqrt(len(plan.labels))

    @abstractmethod
    def sampled_divisor(self, received: int, expected: float) -> float:
        """Divisor of a sum over a sampled population: who came, or was expected if it is secret."""

    def check_streaming(self, plan: PlanFacts) -> None:
        """Refuse a plan that sums over a sampled population would not keep; here, any.

        Raises:
            SettingError: They would not keep it.
        """
        raise SettingError(STREAMING_HINT)

    # --- limits of replies --------------------------------------------------------------------

    @abstractmethod
    def max_device_norm(self, plan: PlanFacts, kind: SumKind) -> float:
        """Largest L2 norm, before noise, of what an honest device adds to a sum.

        In the units of the sum; for updates, those of one step of ``device_noise``. Infinite where
        nothing is bounded, 0 where there is no such sum.
        """

    @abstractmethod
    def update_reach(self, plan: PlanFacts, denominator: float) -> float:
        """How far a unit of that norm takes an update in weights, over all of a round's steps."""

    # --- words --------------------------------------------------------------------------------

    @abstractmethod
    def statement(self, plan: PlanFacts, target: PrivacyTarget) -> str:
        """The promise in words, with its adversary."""

    @abstractmethod
    def adversaries(self) -> tuple[AdversaryBound, ...]:
        """State what holds against every adversary, and under which assumption."""

    @abstractmethod
    def assumptions(self, plan: PlanFacts) -> tuple[str, ...]:
        """Assumptions behind the guarantee, beside those of every run."""

    @abstractmethod
    def not_protected(self, plan: PlanFacts) -> tuple[str, ...]:
        """Risks that this unit leaves open, beside those that every plan leaves open."""


def make_release(
    plan: PlanFacts,
    kind: ReleaseKind,
    number: int,
    noise: float,
    sensitivity: float,
    *,
    user: SumMechanism | None = None,
) -> Release:
    """Make the record of one release; without any noise it is marked as unprotected.

    Args:
        plan: Names the run.
        kind: What is released.
        number: The round, from 1; 0 before the first.
        noise: Noise multiplier that hides an utterance; 0 for none.
        sensitivity: L2 bound on what one utterance adds.
        user: What hides the user in the sum; None where nothing does.
    """
    return Release(
        kind=kind,
        mechanism=Mechanism.GAUSSIAN if noise > 0 or user else Mechanism.NONE,
        run=plan.run,
        round=number,
        noise_multiplier=noise,
        sensitivity=sensitivity if noise > 0 else 0.0,
        user=user,
    )


def calibration_note(plan: PlanFacts) -> str:
    """Phrase for the release of head statistics after the last round; empty without one."""
    return ", and the head statistics" if plan.calibration else ""


def clips_bound(plan: PlanFacts, kind: SumKind) -> float:
    """Largest L2 norm of a sum over as many clips as a device can hold, before noise.

    0 where the plan has no such sum; infinite where clips are not bounded.
    """
    if kind is SumKind.CENTRE:
        return MAX_UTTERANCES * plan.centre.clip_norm if plan.centre else 0.0
    if kind is SumKind.HEAD_STATISTICS:
        return MAX_UTTERANCES * SENSITIVITY if plan.calibration else 0.0
    if kind is SumKind.UPDATE:
        return MAX_UTTERANCES * plan.mechanism.clip_norm
    return float(MAX_UTTERANCES)
