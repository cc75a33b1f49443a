"""One utterance and one user: devices' own noise, which all together hides a user in the sums."""

from typing import ClassVar

from torch import Tensor

from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.losses import Loss
from sottovoce.shared.privacy import clipping
from sottovoce.shared.privacy.bounds import PrivacyBounds
from sottovoce.shared.privacy.guarantees.adversaries import (
    ONE_USER,
    ONE_UTTERANCE,
    Adversary,
    AdversaryBound,
    make_adversary_table,
)
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, SumMechanism
from sottovoce.shared.privacy.scheme import (
    PlanFacts,
    PlanT,
    PrivacyScheme,
    SumKind,
    UnitWording,
)
from sottovoce.shared.privacy.schemes.secure_user import refuse_sampling
from sottovoce.shared.privacy.schemes.unhidden_users import COMMON_TRAITS
from sottovoce.shared.privacy.schemes.user import (
    UserScheme,
    add_user_noise,
    check_sums,
    user_level,
)
from sottovoce.shared.privacy.schemes.utterance import (
    ONE_RECORDING_LIMIT,
    UtteranceScheme,
    add_utterance_noise,
)
from sottovoce.shared.privacy.target import PrivacyTarget

_DEVICE_NOISE_CLAIM = (
    "Devices bound and noise what they send as agreed; the server adds what their noise lacks, and "
    "releases nothing but what is computed from the noised sums."
)


class BothScheme(UserScheme):
    """Messages hide an utterance from the server; sums hide a user from those who see only sums.

    A device does what it does for an utterance, within a bound on the user; the server adds the
    noise that devices' own lacks.
    """

    unit: ClassVar[str] = "both"
    promised: ClassVar[tuple[PrivacyUnit, ...]] = (PrivacyUnit.UTTERANCE, PrivacyUnit.USER)
    has_private_messages: ClassVar[bool] = True
    allows_population: ClassVar[bool] = False
    rows_per_device: ClassVar[int] = 0
    noise_source: ClassVar[NoiseSource | None] = NoiseSource.DEVICES
    wording: ClassVar[UnitWording] = UnitWording(
        name="utterance and user",
        short="both",
        protects="for one utterance and one person",
        limits=f"{ONE_RECORDING_LIMIT} against those who see what a device sends.",
    )

    def __init__(self) -> None:
        self._of_utterance = UtteranceScheme()

    def describes(self, plan: PlanFacts) -> bool:
        """Noise of devices, and something that hides users."""
        return (
            not plan.unit
            and plan.count_noise > 0
            and plan.user is not None
            and plan.user.secure is None
            and plan.secure_sums is None
        )

    def check_bounds(self, bounds: PrivacyBounds) -> None:
        """Refuse bounds with participation groups."""
        PrivacyScheme.check_bounds(self, bounds)

    def check_loss(self, loss: Loss) -> None:
        """Refuse a loss that couples utterances."""
        self._of_utterance.check_loss(loss)

    def check_plan(self, plan: PlanFacts) -> None:
        """Refuse noise that is not the devices' own, and steps whose sum is not bounded."""
        self._of_utterance.check_plan(plan)
        check_sums(plan)
        user, bounded = user_level(plan), plan.mechanism.sum_norm
        refuse_sampling(plan)
        if user.adaptive:
            raise SettingError(
                "an adaptive clip norm hides users alone; where utterances are hidden too, the sum "
                "of a user's gradients has a fixed bound"
            )
        if user.update.bands:
            raise SettingError(
                "utterances are hidden by noise of the devices' own, which noise correlated across "
                "rounds cannot count: hide users alone, or leave min_separation at 1"
            )
        if bounded != user.update.clip_norm or plan.training.steps != 1:
            raise SettingError(
                f"utterances and users are both hidden only in rounds of one step whose sum is "
                f"bounded as the user's update is: steps is {plan.training.steps}, sum_norm "
                f"{bounded}, the update's clip_norm {user.update.clip_norm}"
            )

    def add_noise(self, plan: PlanT, target: PrivacyTarget, bounds: PrivacyBounds) -> PlanT:
        """Add noise for utterances, then the further noise that sums over users need."""
        noised = add_utterance_noise(plan, target, bounds, sum_norm=bounds.user.update_norm)
        return add_user_noise(noised, target, bounds, self._mechanism, target.shares)

    def _mechanism(self, norm: float, multiplier: float) -> SumMechanism:
        """What hides a user within a bound: the devices' noise together."""
        return SumMechanism(
            noise_multiplier=multiplier, clip_norm=norm, noised_by=NoiseSource.DEVICES
        )

    def books_normaliser(self, plan: PlanFacts) -> bool:
        """It shapes gradients whose bound is an utterance's: a release of its own."""
        return True

    def device_rows(self, rows: Tensor) -> Tensor:
        """All of them: one utterance is one row."""
        return rows

    def clip_statistics(self, plan: PlanFacts, rows: Tensor) -> Tensor:
        """Sum over clips, each of which is bounded, and clip to the user's bound."""
        total = rows.sum(0)
        calibration = user_level(plan).calibration
        return clipping.clip_to_norm(total, calibration.clip_norm) if calibration else total

    def clip_update(self, plan: PlanFacts, update: Tensor, clip_norm: float) -> Tensor:
        """Return the update unchanged: it was clipped before noise; a later clip adds bias."""
        return update

    def device_noise(self, plan: PlanFacts, kind: SumKind) -> float:
        """As for an utterance."""
        return self._of_utterance.device_noise(plan, kind)

    def counted_devices(self, plan: PlanFacts, devices: float) -> float:
        """Leave out the colluders: noise that somebody knows can be subtracted."""
        return devices - user_level(plan).colluders(devices)

    def update_unit(self, plan: PlanFacts, denominator: float) -> float:
        """A gradient's step: the bound is on summed gradients."""
        return self._of_utterance.update_unit(plan, denominator)

    def clip_part(
        self, plan: PlanFacts, kind: SumKind, part: Tensor, known_norm: float | None
    ) -> Tensor:
        """Return the part unchanged: its bound is only as good as devices are honest."""
        return part

    def total_weight(self, *, utterances: float, users: float) -> float:
        """Every utterance counts as one."""
        return utterances

    def weight_noise_std(self, plan: PlanFacts, *, devices: int) -> float:
        """Label counts give it, which are noised."""
        return PrivacyScheme.weight_noise_std(self, plan, devices=devices)

    def check_streaming(self, plan: PlanFacts) -> None:
        """Refuse: what a sampled device's own noise hides is not accounted for."""
        PrivacyScheme.check_streaming(self, plan)

    def max_device_norm(self, plan: PlanFacts, kind: SumKind) -> float:
        """The user's bound, or what all of a device's clips come to where that is less."""
        mechanism = self.sum_mechanism(plan, kind)
        of_clips = self._of_utterance.max_device_norm(plan, kind)
        return min(of_clips, mechanism.clip_norm) if mechanism else of_clips

    def update_reach(self, plan: PlanFacts, denominator: float) -> float:
        """As for an utterance."""
        return self._of_utterance.update_reach(plan, denominator)

    def statement(self, plan: PlanFacts, target: PrivacyTarget) -> str:
        """For one utterance, then for one user."""
        of_utterance = self._of_utterance.statement(plan, target)
        return f"{of_utterance} {super().statement(plan, target)}"

    def adversaries(self) -> tuple[AdversaryBound, ...]:
        """Of an utterance against whoever sees messages, and of a user against who sees sums."""
        of_utterance = {one.adversary: one for one in self._of_utterance.adversaries()}
        of_sums = {
            Adversary.MODEL_RECIPIENT: (f"{ONE_UTTERANCE}, and {ONE_USER}", _DEVICE_NOISE_CLAIM),
            Adversary.PARTICIPANT: (
                f"{ONE_UTTERANCE}, and {ONE_USER}",
                (
                    f"{_DEVICE_NOISE_CLAIM} The noise of colluders is not counted, and always that "
                    "of one device."
                ),
            ),
            Adversary.COALITION: (
                (
                    f"{ONE_UTTERANCE}, for any k, with the server too; and {ONE_USER}, without the "
                    "server, while k is at most the share of colluders that the plan states"
                ),
                _DEVICE_NOISE_CLAIM,
            ),
        }
        return make_adversary_table(
            {who: (one.holds, one.assumption) for who, one in of_utterance.items()} | of_sums
        )

    def assumptions(self, plan: PlanFacts) -> tuple[str, ...]:
        """Honest devices, for the promise to users."""
        share = user_level(plan).colluding_share
        colluders = (
            f"Of a sum's devices at most a share of {share:g}, and always one, tells those who see "
            "the sum its noise: the colluders' noise is not counted."
        )
        return (_DEVICE_NOISE_CLAIM, colluders)

    def not_protected(self, plan: PlanFacts) -> tuple[str, ...]:
        """Traits common to a user's utterances, against the server."""
        return (
            f"{COMMON_TRAITS}, against the server: its promise is for one utterance at a time.",
        )
