"""One utterance and one user, by secure aggregation: one noise in each sum hides both.

The strongest promise here: no server is trusted with anything but to follow the protocol. A
device's part of a sum is bounded as a whole, for the user, and one utterance changes it by a
fraction of that bound. Noise that hides the whole hides the part better, so that each sum has the
larger noise of the two, which mostly is the user's. What it leaves of an utterance's budget goes to
the normaliser, whose noise is the device's own.
"""

import math
from dataclasses import replace
from functools import partial
from typing import ClassVar

from sottovoce.shared.calibration.head_statistics import SENSITIVITY
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.guarantees.adversaries import (
    NOTHING,
    ONE_USER,
    ONE_UTTERANCE,
    Adversary,
    AdversaryBound,
    make_adversary_table,
)
from sottovoce.shared.privacy.release import NoiseSource, SumMechanism
from sottovoce.shared.privacy.scheme import PlanFacts, PlanT
from sottovoce.shared.privacy.schemes.both import BothScheme
from sottovoce.shared.privacy.schemes.secure_gradients import (
    ENOUGH_HONEST_DEVICES,
    LYING_SERVER_LIMIT,
    SecureGradientsScheme,
    mark_in_sums,
    require_one_step,
    select_nested_sum,
)
from sottovoce.shared.privacy.schemes.secure_utterance import SecureUtteranceScheme
from sottovoce.shared.privacy.schemes.user import add_user_noise, user_level
from sottovoce.shared.privacy.schemes.utterance import add_utterance_noise
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.privacy.user_level import SecureSumConfigs
from sottovoce.shared.secure_aggregation.parameter_selection import count_share

_OF_UTTERANCE = SecureUtteranceScheme()


class SecureBothScheme(SecureGradientsScheme, BothScheme):
    """Scheme that hides one utterance and one user in secure sums, from the server too.

    As under ``both`` from when :meth:`add_noise` scaled the noise, each device adding all of it; in
    sums from when :meth:`add_secure_sums` knows how many devices share it.
    """

    noise_source: ClassVar[NoiseSource | None] = NoiseSource.DISTRIBUTED

    def describes(self, plan: PlanFacts) -> bool:
        """Noise that hides an utterance, and noise in shares that hides users."""
        return (
            not plan.unit
            and plan.count_noise > 0
            and plan.user is not None
            and plan.user.secure is not None
            and plan.secure_sums is None
        )

    # --- planning -----------------------------------------------------------------------------

    def check_plan(self, plan: PlanFacts) -> None:
        """Refuse what either unit refuses, and sums whose noise is less than is booked."""
        super().check_plan(plan)
        self.check_secure_sums(plan)

    def add_noise(self, plan: PlanT, target: PrivacyTarget, bounds: PrivacyBounds) -> PlanT:
        """Scale one noise for every sum, as large as both units need, and the normaliser's own."""
        require_one_step(plan)
        _require_nested(bounds)
        calibration = plan.calibration and replace(plan.calibration, subtracted_share=0.0)
        noised = add_utterance_noise(
            replace(plan, calibration=calibration),
            target,
            bounds,
            sum_norm=bounds.user.update_norm,
            list_releases=lambda trial: mark_in_sums(trial.all_releases()),
        )
        # One secure sum brings label counts and centre: their bounds and noise are one vector's.
        even = (target.shares.label_counts + target.shares.centre) / 2
        shares = replace(target.shares, label_counts=even, centre=even)
        noised = add_user_noise(noised, target, bounds, self._mechanism, shares)
        return self._leave_the_rest(_share_noise(noised), target)

    def _mechanism(self, norm: float, multiplier: float) -> SumMechanism:
        """What hides a user within a bound: discrete noise on a fine lattice."""
        return replace(super()._mechanism(norm, multiplier), discrete=True, near_gaussian=True)

    def _leave_the_rest(self, plan: PlanT, target: PrivacyTarget) -> PlanT:
        """Leave to the normaliser what the sums have not spent of an utterance's budget."""
        normaliser = plan.normaliser
        if normaliser is None:
            return plan

        def with_noise(multiplier: float) -> PlanT:
            return replace(plan, normaliser=replace(normaliser, noise_multiplier=multiplier))

        multiplier = accounting.calibrate_noise_multiplier(
            lambda trial: mark_in_sums(with_noise(trial).all_releases()),
            target.epsilon,
            target.delta,
        )
        # Never more than it was given: the sums cost an utterance no more than was planned.
        return with_noise(min(multiplier, normaliser.noise_multiplier))

    def add_secure_sums(self, plan: PlanT, bounds: PrivacyBounds, *, devices: int) -> PlanT:
        """Make the sums secure by shares of the noise."""
        user = user_level(plan)
        enrolment, update, calibration = self.promised_sums(plan)
        make = partial(select_nested_sum, devices, bounds.user)
        root = math.sqrt(2 if user.centre else 1)
        secure = SecureSumConfigs(
            enrolment=make(enrolment, root, user.counts.noise_multiplier / root),
            update=make(update, user.update.clip_norm, user.update.noise_multiplier),
            dishonest=count_share(devices, bounds.user.corruption),
            calibration=make(
                calibration, user.calibration.clip_norm, user.calibration.noise_multiplier
            )
            if calibration and user.calibration
            else None,
        )
        by_shares = {
            name: replace(noise, noised_by=NoiseSource.DISTRIBUTED)
            for name in ("counts", "centre", "update", "calibration")
            if (noise := getattr(user, name))
        }
        return replace(plan, user=replace(user, secure=secure, colluding_share=0.0, **by_shares))

    def enrolment_change(self, plan: PlanFacts) -> float:
        """One count, and one clipped row, each over the user's bound on its part."""
        user = user_level(plan)
        changes = [1 / user.counts.clip_norm]
        if plan.centre and user.centre:
            changes.append(plan.centre.clip_norm / user.centre.clip_norm)
        return math.hypot(*changes)

    def enrolment_noise(self, plan: PlanFacts) -> float:
        """The noise of the counts over the user's bound on them, as of the centre over its own."""
        user = user_level(plan)
        return plan.count_noise / user.counts.clip_norm

    # --- words --------------------------------------------------------------------------------

    def statement(self, plan: PlanFacts, target: PrivacyTarget) -> str:
        """For one utterance, then for one user, against those who see sums."""
        of_user = super(BothScheme, self).statement(plan, target)
        return f"{_OF_UTTERANCE.statement(plan, target)} {of_user}"

    def _adversary(self) -> str:
        """Whom the promise to users holds against."""
        return "against the same, the server included, on the same condition"

    def adversaries(self) -> tuple[AdversaryBound, ...]:
        """Both promises hold against a server that sees sums only, while enough are honest."""
        both, enough = f"{ONE_UTTERANCE}, and {ONE_USER}", ENOUGH_HONEST_DEVICES
        return make_adversary_table(
            {
                Adversary.NETWORK: (both, f"Messages are masked. {enough}"),
                Adversary.MODEL_RECIPIENT: (both, enough),
                Adversary.CURIOUS_SERVER: (both, enough),
                Adversary.LYING_SERVER: (NOTHING, LYING_SERVER_LIMIT),
                Adversary.PARTICIPANT: (both, enough),
                Adversary.COALITION: (
                    (
                        f"{both}, with the server too, while k is at most the number of dishonest "
                        "devices that the plan states; above, less and less, down to a device's "
                        "own share of the noise"
                    ),
                    enough,
                ),
            }
        )

    def not_protected(self, plan: PlanFacts) -> tuple[str, ...]:
        """A server that breaks the protocol."""
        return ("Anything, against a server that does not follow the protocol of secure sums.",)


def _require_nested(bounds: PrivacyBounds) -> None:
    """Refuse a user's bound below an utterance's, of which it has several.

    Raises:
        SettingError: There is one.
    """
    user = bounds.user
    pairs = (
        ("update_norm", user.update_norm, "clip_norm", bounds.clip_norm),
        ("centre_norm", user.centre_norm, "centre_radius", bounds.centre_radius),
        ("counts_norm", user.counts_norm, "the bound on one count", 1.0),
        ("calibration_norm", user.calibration_norm, "the bound on one clip's", SENSITIVITY),
    )
    for name, whole, of_part, part in pairs:
        if not part <= whole:
            raise SettingError(
                f"recipe.user.{name} is {whole:g} and {of_part} {part:g}; it must be at least as "
                "large where secure sums hide a user and an utterance of theirs: raise it"
            )


def _share_noise(plan: PlanT) -> PlanT:
    """Give every sum the larger noise of the two that its units need, and book it for both."""
    user, centre = user_level(plan), plan.centre
    counts, update, hidden = user.counts, user.update, user.calibration
    # In units of the users' bounds, in which one secure sum has one noise for all of its values.
    first = [counts.noise_multiplier, plan.count_noise / counts.clip_norm]
    if centre and user.centre:
        scale = centre.clip_norm / user.centre.clip_norm
        first.append(centre.noise_multiplier * scale)
        centre = replace(centre, noise_multiplier=max(first) / scale)
    step = max(update.noise_std, plan.mechanism.noise_multiplier * plan.mechanism.clip_norm)
    calibration = plan.calibration
    if calibration and hidden:
        last = max(hidden.noise_std, calibration.noise_multiplier * SENSITIVITY)
        calibration = replace(calibration, noise_multiplier=last / SENSITIVITY)
        hidden = replace(hidden, noise_multiplier=last / hidden.clip_norm)
    return replace(
        plan,
        count_noise=max(first) * counts.clip_norm,
        centre=centre,
        mechanism=replace(plan.mechanism, noise_multiplier=step / plan.mechanism.clip_norm),
        calibration=calibration,
        user=replace(
            user,
            counts=replace(counts, noise_multiplier=max(first)),
            centre=user.centre and replace(user.centre, noise_multiplier=max(first)),
            update=replace(update, noise_multiplier=step / update.clip_norm),
            calibration=hidden,
        ),
    )
