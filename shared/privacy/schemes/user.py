"""One user: the server clips every user's part of a sum, and adds the noise that hides a user."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.losses import Loss
from sottovoce.shared.privacy import accounting, clipping
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.guarantees.adversaries import (
    NOTHING,
    ONE_USER,
    Adversary,
    AdversaryBound,
    make_adversary_table,
)
from sottovoce.shared.privacy.participation import Participation, choose_participation
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, SumMechanism
from sottovoce.shared.privacy.scheme import (
    STREAMING_HINT,
    PlanFacts,
    PlanT,
    PrivacyScheme,
    SumKind,
    UnitWording,
    calibration_note,
    clips_bound,
)
from sottovoce.shared.privacy.target import BudgetShares, PrivacyTarget
from sottovoce.shared.privacy.user_level import AdaptiveClipping, UserLevelPrivacy

_SERVER_NOISE_CLAIM = (
    "The server bounds every update, adds the noise that it booked, releases nothing but what is "
    "computed from the noised sums, and keeps what devices sent to itself."
)


class UserScheme(PrivacyScheme):
    """The sums over users hide any one user from those who see only the sums."""

    unit: ClassVar[str] = "user"
    promised: ClassVar[tuple[PrivacyUnit, ...]] = (PrivacyUnit.USER,)
    has_private_messages: ClassVar[bool] = False
    has_private_sums: ClassVar[bool] = True
    allows_population: ClassVar[bool] = True
    rows_per_device: ClassVar[int] = 1
    noise_source: ClassVar[NoiseSource | None] = NoiseSource.SERVER
    wording: ClassVar[UnitWording] = UnitWording(
        name="user", short="one user", protects="for one person"
    )

    def describes(self, plan: PlanFacts) -> bool:
        """No noise of devices, and noise of the server that hides users."""
        return (
            not plan.unit
            and not plan.count_noise > 0
            and plan.user is not None
            and plan.secure_sums is None
            and plan.user.secure is None
        )

    def check_bounds(self, bounds: PrivacyBounds) -> None:
        """Any bounds can be kept; participation groups too."""

    def check_loss(self, loss: Loss) -> None:
        """Any loss will do: the update is bounded as a whole."""

    def check_plan(self, plan: PlanFacts) -> None:
        """Refuse sums that hide nobody, and participation groups that leave users out."""
        user = user_level(plan)
        check_sums(plan)
        if user.update.bands and user.update.bands.min_separation > plan.rounds:
            raise SettingError(
                f"min_separation is {user.update.bands.min_separation} and rounds {plan.rounds}: "
                "some users would never train; min_separation must be at most rounds"
            )

    def add_noise(self, plan: PlanT, target: PrivacyTarget, bounds: PrivacyBounds) -> PlanT:
        """Add noise to every sum over users, such that they stay within epsilon."""
        return add_user_noise(plan, target, bounds, self._mechanism, target.shares)

    def _mechanism(self, norm: float, multiplier: float) -> SumMechanism:
        """What hides a user within a bound."""
        return SumMechanism(
            noise_multiplier=multiplier, clip_norm=norm, noised_by=NoiseSource.SERVER
        )

    def sum_mechanism(self, plan: PlanFacts, kind: SumKind) -> SumMechanism | None:
        """Mechanism that the plan sets for a sum of this kind."""
        user = user_level(plan)
        return {
            SumKind.LABEL_COUNTS: user.counts,
            SumKind.CENTRE: user.centre,
            SumKind.HEAD_STATISTICS: user.calibration,
            SumKind.UPDATE: user.update,
        }[kind]

    def books_normaliser(self, plan: PlanFacts) -> bool:
        """It never leaves but inside updates that are bounded as a whole."""
        return False

    def participation(self, plan: PlanFacts) -> Participation:
        """Participation that the updates' mechanism accounts for."""
        return choose_participation(user_level(plan).update)

    def clip_counts(self, plan: PlanFacts, counts: Tensor) -> Tensor:
        """Clip them to the user's bound."""
        return clipping.clip_to_norm(counts, user_level(plan).counts.clip_norm)

    def device_rows(self, rows: Tensor) -> Tensor:
        """Their mean, however many clips there are: everybody counts as one."""
        return rows.mean(0, keepdim=True) if len(rows) else rows

    def centre_bound(self, plan: PlanFacts) -> float:
        """L2 bound on a user's share of the centre; infinite without a centre."""
        centre = user_level(plan).centre
        return centre.clip_norm if centre else math.inf

    def clip_statistics(self, plan: PlanFacts, rows: Tensor) -> Tensor:
        """Average over clips, so that everybody counts as one, and clip."""
        total = rows.sum(0)
        calibration = user_level(plan).calibration
        if calibration is None:
            return total
        return clipping.clip_to_norm(total / max(len(rows), 1), calibration.clip_norm)

    def clip_update(self, plan: PlanFacts, update: Tensor, clip_norm: float) -> Tensor:
        """Clip it to the user's bound, or to the round's clip norm where that is learned."""
        user = user_level(plan)
        if user.adaptive:
            return user.adaptive.pack_update(update, clip_norm).float()
        return clipping.clip_to_norm(update, user.update.clip_norm)

    def unpack_update(
        self, plan: PlanFacts, update: Tensor, clip_norm: float
    ) -> tuple[Tensor, float | None]:
        """Unscale the update and learn the next clip norm, where the clip norm is adaptive."""
        adaptive = user_level(plan).adaptive
        return adaptive.unpack_mean(update, clip_norm) if adaptive else (update, None)

    def initial_clip_norm(self, plan: PlanFacts) -> float:
        """Where it is learned, from what on; else 1."""
        adaptive = user_level(plan).adaptive
        return adaptive.start if adaptive else 1.0

    def extra_coordinates(self, plan: PlanFacts) -> int:
        """One clipping indicator where the clip norm is learned; otherwise none."""
        return 1 if user_level(plan).adaptive else 0

    def device_noise(self, plan: PlanFacts, kind: SumKind) -> float:
        """Zero: devices add no noise of their own."""
        return 0.0

    def update_unit(self, plan: PlanFacts, denominator: float) -> float:
        """Updates are bounded in weights."""
        return 1.0

    def clip_part(
        self, plan: PlanFacts, kind: SumKind, part: Tensor, known_norm: float | None
    ) -> Tensor:
        """Clip it again: a device's word for its bound is not taken."""
        mechanism = self.sum_mechanism(plan, kind)
        clip_norm = mechanism.clip_norm if mechanism else math.inf
        return clipping.clip_to_norm(part, clip_norm, known_norm=known_norm)

    def total_weight(self, *, utterances: float, users: float) -> float:
        """Every user counts as one."""
        return users

    def weight_noise_std(self, plan: PlanFacts, *, devices: int) -> float:
        """That a user takes part is no secret: their number is exact."""
        return 0.0

    def sampled_divisor(self, received: int, expected: float) -> float:
        """Those who were expected: who came is a secret."""
        return expected

    def check_streaming(self, plan: PlanFacts) -> None:
        """Refuse a clip norm that is learned."""
        if user_level(plan).adaptive:
            raise SettingError(STREAMING_HINT)

    def max_device_norm(self, plan: PlanFacts, kind: SumKind) -> float:
        """The user's bound, or what all of a device's clips come to where that is less."""
        mechanism = self.sum_mechanism(plan, kind)
        hidden = mechanism.clip_norm if mechanism else math.inf
        return hidden if kind is SumKind.UPDATE else min(clips_bound(plan, kind), hidden)

    def update_reach(self, plan: PlanFacts, denominator: float) -> float:
        """Updates are bounded in weights."""
        return 1.0

    def statement(self, plan: PlanFacts, target: PrivacyTarget) -> str:
        """For one user, against those who see what the adversary of this scheme sees."""
        sentence = self.participation(plan).mechanism_sentence(plan.rounds)
        return (
            "Whatever the server released of this run, all models included, changes by a factor of "
            f"at most e^{target.epsilon:g} in probability (but for a chance of "
            f"{target.user_delta:g}) when everything that one user has is added or removed. "
            f"Unit: user. This holds {self._adversary()}. It covers the sums of label counts, of "
            f"the centre and of {plan.rounds} rounds of updates{calibration_note(plan)}.{sentence}"
        )

    def _adversary(self) -> str:
        """Whom the promise to users holds against."""
        return (
            "against those who see the models, not against the server, which sees each device's "
            "own reply"
        )

    def adversaries(self) -> tuple[AdversaryBound, ...]:
        """The promise holds against those who see sums, not against those who see updates."""
        in_clear = (NOTHING, "It sees each update before the sum is noised.")
        return make_adversary_table(
            {
                Adversary.NETWORK: (
                    NOTHING,
                    "Updates travel without noise: a private network must hide them.",
                ),
                Adversary.MODEL_RECIPIENT: (ONE_USER, _SERVER_NOISE_CLAIM),
                Adversary.CURIOUS_SERVER: in_clear,
                Adversary.LYING_SERVER: in_clear,
                Adversary.PARTICIPANT: (ONE_USER, _SERVER_NOISE_CLAIM),
                Adversary.COALITION: (
                    f"{ONE_USER}, for any k without the server; nothing with it",
                    _SERVER_NOISE_CLAIM,
                ),
            }
        )

    def assumptions(self, plan: PlanFacts) -> tuple[str, ...]:
        """An honest server, and the assumptions of participation."""
        return (_SERVER_NOISE_CLAIM, *self.participation(plan).assumptions)

    def not_protected(self, plan: PlanFacts) -> tuple[str, ...]:
        """Each user's own update, which the server sees."""
        return ("Each user's own update, against the server that noises the sum.",)


def user_level(plan: PlanFacts) -> UserLevelPrivacy:
    """Return the user-level privacy of a plan's sums.

    Raises:
        SettingError: The plan hides no users.
    """
    if plan.user is None:
        raise SettingError("the plan hides no users in its sums")
    return plan.user


def check_sums(plan: PlanFacts) -> None:
    """Refuse a plan that hides users in some of its sums only.

    Raises:
        SettingError: A sum is without such noise, or noise without such a sum.
    """
    user = user_level(plan)
    sums = [(user.centre, plan.centre), (user.calibration, plan.calibration)]
    if any((hidden is None) != (settings is None) for hidden, settings in sums):
        raise SettingError(
            "a plan hides its users in all of its sums, the centre's and the head statistics' "
            "included"
        )


def add_user_noise(
    plan: PlanT,
    target: PrivacyTarget,
    bounds: PrivacyBounds,
    mechanism: Callable[[float, float], SumMechanism],
    shares: BudgetShares,
) -> PlanT:
    """Add noise to every sum over users, such that they stay within epsilon.

    Label counts, centre and head statistics get fixed shares of the budget (in squared Gaussian
    mu), the updates what is left, found by bisection on the safe side.

    Args:
        plan: A plan that hides no users yet.
        target: Epsilon and the user's delta.
        bounds: What one user adds.
        mechanism: From a bound and a noise multiplier to what hides a user within it.
        shares: The shares, as the way of summing needs them.

    Raises:
        SettingError: The budget is too small for these releases.
    """
    settings = bounds.user
    squared = accounting.gaussian_mu(target.epsilon, target.user_delta) ** 2
    adaptive = None
    if settings.adaptive:
        adaptive = AdaptiveClipping(start=settings.update_norm, quantile=settings.quantile)

    def shared(norm: float, share: float) -> SumMechanism:
        return mechanism(norm, 1 / math.sqrt(share * squared))

    calibration = None
    if plan.calibration:
        calibration = shared(settings.calibration_norm, shares.head_statistics)

    def with_noise(multiplier: float) -> PlanT:
        user = UserLevelPrivacy(
            counts=shared(settings.counts_norm, shares.label_counts),
            centre=shared(settings.centre_norm, shares.centre) if plan.centre else None,
            calibration=calibration,
            update=replace(
                mechanism(adaptive.norm_bound if adaptive else settings.update_norm, multiplier),
                sample_rate=settings.user_sampling_rate,
                bands=settings.banded_noise,
            ),
            adaptive=adaptive,
        )
        if user.update.noised_by is NoiseSource.DEVICES:
            user = replace(user, colluding_share=settings.corruption)
        return replace(plan, user=user)

    multiplier = accounting.calibrate_noise_multiplier(
        lambda trial: with_noise(trial).all_releases(),
        target.epsilon,
        target.user_delta,
        unit=PrivacyUnit.USER,
    )
    return with_noise(multiplier)
