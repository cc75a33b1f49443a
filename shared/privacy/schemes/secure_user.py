"""One user, by secure aggregation: devices add shares of the noise, and nobody sees less."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import ClassVar, TypeVar

from sottovoce.shared.calibration.head_statistics import STATISTICS_SIZE
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.parameters import count_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.guarantees.adversaries import (
    NOTHING,
    ONE_USER,
    Adversary,
    AdversaryBound,
    make_adversary_table,
)
from sottovoce.shared.privacy.release import NoiseSource, SumMechanism
from sottovoce.shared.privacy.scheme import STREAMING_HINT, PlanFacts, PlanT, SumKind
from sottovoce.shared.privacy.schemes.user import (
    UserScheme,
    add_user_noise,
    check_sums,
    user_level,
)
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.privacy.user_level import SecureSumConfigs
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters

T = TypeVar("T")


class SecureUserScheme(UserScheme):
    """Scheme that hides one user in secure sums, from the server and colluding devices too.

    A plan hides users from when :meth:`add_noise` scaled the noise, and securely from when
    :meth:`add_secure_sums` knows how many devices share it.
    """

    secure: ClassVar[bool] = True
    allows_population: ClassVar[bool] = False
    accountant_name: ClassVar[str] = accounting.DISCRETE_ACCOUNTANT_NAME
    noise_source: ClassVar[NoiseSource | None] = NoiseSource.DISTRIBUTED

    def describes(self, plan: PlanFacts) -> bool:
        """No noise of devices, and noise in shares that hides users."""
        return (
            not plan.unit
            and not plan.count_noise > 0
            and plan.user is not None
            and plan.secure_sums is None
            and plan.user.secure is not None
        )

    def check_bounds(self, bounds: PrivacyBounds) -> None:
        """Refuse bounds with participation groups."""
        super(UserScheme, self).check_bounds(bounds)

    def check_plan(self, plan: PlanFacts) -> None:
        """Refuse sums that hide nobody, and sampled users."""
        check_sums(plan)
        refuse_sampling(plan)

    def add_noise(self, plan: PlanT, target: PrivacyTarget, bounds: PrivacyBounds) -> PlanT:
        """Scale noise for every sum, label counts and centre alike: one secure sum brings both."""
        shares = target.shares
        even = (shares.label_counts + shares.centre) / 2
        shares = replace(shares, label_counts=even, centre=even)
        return add_user_noise(plan, target, bounds, self._mechanism, shares)

    def _mechanism(self, norm: float, multiplier: float) -> SumMechanism:
        """What hides a user within a bound: discrete noise on a fine lattice."""
        return replace(super()._mechanism(norm, multiplier), discrete=True, near_gaussian=True)

    def add_secure_sums(self, plan: PlanT, bounds: PrivacyBounds, *, devices: int) -> PlanT:
        """Make the sums secure by shares of the noise."""
        user, settings = user_level(plan), bounds.user
        parts = 2 if user.centre else 1
        inputs = plan.model.inputs if user.centre else 0
        make = partial(
            select_parameters, devices, dropout=settings.dropout, corruption=settings.corruption
        )
        secure = SecureSumConfigs(
            enrolment=make(
                len(plan.labels) + inputs,
                math.sqrt(parts),
                noise_multiplier=user.counts.noise_multiplier / math.sqrt(parts),
            ),
            update=make(
                count_parameters(build_network(plan.model, 0)) + self.extra_coordinates(plan),
                user.update.clip_norm,
                noise_multiplier=user.update.noise_multiplier,
            ),
            dishonest=math.ceil(devices * settings.corruption - 1e-9),
            calibration=make(
                STATISTICS_SIZE,
                user.calibration.clip_norm,
                noise_multiplier=user.calibration.noise_multiplier,
            )
            if user.calibration
            else None,
        )
        by_shares = {
            name: replace(noise, noised_by=NoiseSource.DISTRIBUTED)
            for name in ("counts", "centre", "update", "calibration")
            if (noise := getattr(user, name))
        }
        return replace(plan, user=replace(user, secure=secure, **by_shares))

    def match_sums(
        self,
        plan: PlanFacts,
        *,
        plain: Callable[[], T],
        secure: Callable[[SecureSumConfigs], T],
    ) -> T:
        """Choose sums by secure aggregation."""
        return secure(_secure_sums(plan))

    def sum_noise_std(
        self, plan: PlanFacts, kind: SumKind, *, devices: float, denominator: float = 1.0
    ) -> float:
        """All shares together: more than is promised, as those who drop out are not counted on."""
        config = _config_of(_secure_sums(plan), kind)
        if config is None:
            return 0.0
        return config.noise * config.granularity * math.sqrt(devices)

    def check_streaming(self, plan: PlanFacts) -> None:
        """Refuse: every device of a secure sum must be there from its first step on."""
        raise SettingError(STREAMING_HINT)

    def _adversary(self) -> str:
        """Whom the promise to users holds against."""
        return (
            "against anyone who sees the models or what the devices send, the server included: "
            "sums are made by secure aggregation, with every device's share of the noise in them"
        )

    def adversaries(self) -> tuple[AdversaryBound, ...]:
        """The promise holds against the server too, while enough devices are honest."""
        enough = (
            "At least as many honest devices as the plan counts on add their share of the noise, "
            "and the identities that devices pinned are the users' own."
        )
        return make_adversary_table(
            {
                Adversary.NETWORK: (ONE_USER, enough),
                Adversary.MODEL_RECIPIENT: (ONE_USER, enough),
                Adversary.CURIOUS_SERVER: (ONE_USER, enough),
                Adversary.LYING_SERVER: (
                    NOTHING,
                    (
                        "Devices refuse requests with wrong signatures or thresholds, and sums of "
                        "fewer devices, or with fewer dishonest ones, than their owners accept, "
                        "but such a server may learn sums over a part of the devices."
                    ),
                ),
                Adversary.PARTICIPANT: (ONE_USER, enough),
                Adversary.COALITION: (
                    (
                        f"{ONE_USER}, with the server too, while k is at most the number of "
                        "dishonest devices that the plan states; nothing above"
                    ),
                    enough,
                ),
            }
        )

    def assumptions(self, plan: PlanFacts) -> tuple[str, ...]:
        """Honest devices, and a server that follows the protocol."""
        secure = _secure_sums(plan)
        claim = (
            f"In a sum of at least {secure.update.quorum} devices, at most "
            f"{secure.dishonest} side with the server; identities that devices pinned "
            "are the users' own; the server follows the protocol of secure aggregation, and "
            "remembers all that it sees. A device refuses a plan whose numbers are below what its "
            "own owner accepts."
        )
        return (claim,)

    def not_protected(self, plan: PlanFacts) -> tuple[str, ...]:
        """Nothing beside what no plan protects."""
        return ()


def _secure_sums(plan: PlanFacts) -> SecureSumConfigs:
    """How the plan's sums are made.

    Raises:
        SettingError: They are not secure.
    """
    secure = user_level(plan).secure
    if secure is None:
        raise SettingError("the plan's sums are not secure yet")
    return secure


def _config_of(secure: SecureSumConfigs, kind: SumKind) -> SecureAggregationConfig | None:
    """Settings of a sum; of the first one, which brings label counts and centre, for both."""
    return {
        SumKind.LABEL_COUNTS: secure.enrolment,
        SumKind.CENTRE: secure.enrolment,
        SumKind.HEAD_STATISTICS: secure.calibration,
        SumKind.UPDATE: secure.update,
    }[kind]


def refuse_sampling(plan: PlanFacts) -> None:
    """Refuse sampled users, whose noise only a server's is accounted for.

    Raises:
        SettingError: Users are sampled.
    """
    update = user_level(plan).update
    if update.sample_rate < 1:
        raise SettingError(
            f"devices join a round with a chance of {update.sample_rate:g}, which only "
            "noise that the server adds is accounted for: hide users alone, without secure sums"
        )
