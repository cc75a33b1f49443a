"""User-level privacy of the sums of a run, and who sees such a sum before it is noised."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.errors import MessageError, SettingError
from sottovoce.shared.privacy import clipping
from sottovoce.shared.privacy.release import DISCRETISATION_SLACK, NoiseSource, SumMechanism
from sottovoce.shared.secure_aggregation import noise_accounting, parameter_selection
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig

ENROLMENT_SUM, HEAD_STATISTICS_SUM = "enrolment", "head-statistics"
"""The secure sums that are of no round; the others are ``round-N``."""

# Promise and shares are computed in two ways, which round differently.
_ROUNDING_TOLERANCE = 1 + 1e-9


def secure_sum_name(plan: str, kind: str, attempt: str = "") -> str:
    """A secure sum's name, unique over all runs.

    Args:
        plan: SHA-256 of the plan.
        kind: ``enrolment``, ``head-statistics`` or ``round-N``.
        attempt: Tells apart sums that are begun again.
    """
    # 128 bits of the hash tell plans apart; names have at most 128 characters.
    return "/".join(part for part in (plan[:32], kind, attempt) if part)


def secure_sum_kind(plan: str, name: str) -> str:
    """``enrolment``, ``head-statistics`` or ``round-N``, from a sum's name.

    Raises:
        MessageError: Another plan's.
    """
    first, _, rest = name.partition("/")
    if first != plan[:32]:
        raise MessageError("the sum is of another plan than this device enrolled for")
    return rest.partition("/")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureSumConfigs:
    """Configurations of secure sums, which nobody sees before every noise share is in.

    Attributes:
        enrolment: Of the first sum: label counts and centre, each brought to a bound of 1.
        update: Of a round's sum of updates.
        dishonest: Most devices of a sum that side with the server, a whole number, 0 or above;
            their noise is not counted.
        calibration: Of the sum of head statistics; None where there is none.
    """

    enrolment: SecureAggregationConfig
    update: SecureAggregationConfig
    dishonest: int
    calibration: SecureAggregationConfig | None = None

    def __post_init__(self) -> None:
        validation.require_whole_number(dishonest=self.dishonest)

    def config_for(self, kind: str) -> SecureAggregationConfig:
        """The settings of a sum of this kind.

        Raises:
            MessageError: The run has no such sum.
        """
        if kind == HEAD_STATISTICS_SUM and self.calibration is None:
            raise MessageError("the plan has no secure sum of head statistics")
        kinds = {
            ENROLMENT_SUM: self.enrolment,
            HEAD_STATISTICS_SUM: self.calibration or self.update,
        }
        return kinds.get(kind, self.update)

    def all_configs(self) -> tuple[SecureAggregationConfig, ...]:
        """Settings of every sum of a run."""
        return tuple(one for one in (self.enrolment, self.update, self.calibration) if one)

    def guaranteed_multiplier(
        self, settings: SecureAggregationConfig, *, whole: bool = False
    ) -> float:
        """Noise multiplier that the quorum's honest devices give a sum together.

        Args:
            settings: Settings of the sum.
            whole: Whether over the bound on a device's whole part, whatever else is hidden.
        """
        honest = self._honest_contributors(settings)
        return noise_accounting.effective_multiplier(settings, honest, whole=whole)

    def discretisation_slack(
        self, settings: SecureAggregationConfig, *, whole: bool = False
    ) -> float:
        """Cost of such a sum beyond a Gaussian; see ``noise_accounting``.

        Arguments as for :meth:`guaranteed_multiplier`.
        """
        honest = self._honest_contributors(settings)
        return noise_accounting.discretisation_slack(settings, honest, whole=whole)

    def check_sum(
        self, settings: SecureAggregationConfig, *, near_gaussian: bool, whole: bool = False
    ) -> None:
        """Refuse a sum that hides nobody, or whose lattice is too coarse.

        Args:
            settings: Settings of the sum.
            near_gaussian: Whether its noise is booked as near Gaussian.
            whole: As for :meth:`guaranteed_multiplier`.

        Raises:
            SettingError: It is such a sum.
        """
        if not parameter_selection.is_secure(settings, self.dishonest):
            raise SettingError(
                f"a secure sum over {settings.devices:,} devices with {settings.degree} "
                f"neighbours each and a threshold of {settings.threshold} does not hide them "
                f"from a server with {self.dishonest:,} on its side: raise degree and "
                "threshold (parameter_selection.select_parameters finds them), or let fewer be "
                "dishonest"
            )
        slack = self.discretisation_slack(settings, whole=whole)
        if near_gaussian and not slack <= DISCRETISATION_SLACK:
            raise SettingError(
                f"a secure sum of {settings.parameters:,} values over {settings.devices:,} "
                f"devices in {settings.bits} bits has a discretisation slack of {slack:.3g}, "
                f"and near-Gaussian noise at most {DISCRETISATION_SLACK:g}: sum fewer devices, "
                "or a smaller model"
            )

    def _honest_contributors(self, settings: SecureAggregationConfig) -> int:
        """How many devices' noise can be counted on in a sum of the quorum."""
        return noise_accounting.honest_contributors(settings.quorum, self.dishonest)

    def to_dict(self) -> dict[str, Any]:
        """JSON's view of the settings."""
        return {
            "enrolment": self.enrolment.to_dict(),
            "update": self.update.to_dict(),
            "dishonest": self.dishonest,
            "calibration": self.calibration.to_dict() if self.calibration else None,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "SecureSumConfigs":
        """Read it back; the caller turns what is raised into its own error."""
        return cls(
            enrolment=SecureAggregationConfig(**record["enrolment"]),
            update=SecureAggregationConfig(**record["update"]),
            dishonest=record["dishonest"],
            calibration=_config_from_dict(record["calibration"]),
        )


def check_shares(promised: float, guaranteed: float) -> None:
    """Refuse noise that devices' shares do not add up to.

    Args:
        promised: Noise multiplier of the sum that is booked.
        guaranteed: What the honest devices' shares come to.

    Raises:
        SettingError: They come to less.
    """
    # "not <=": NaN is too little.
    if not promised <= guaranteed * _ROUNDING_TOLERANCE:
        raise SettingError(
            f"a noise_multiplier of {promised:.4g} is promised, and the devices' discrete shares "
            f"come to {guaranteed:.4g}; raise their noise"
        )


def _config_from_dict(record: Mapping[str, Any] | None) -> SecureAggregationConfig | None:
    """Settings of a sum, where there is one."""
    return SecureAggregationConfig(**record) if record else None


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveClipping:
    """A clip norm that follows a quantile of the updates' norms (Andrew et al. 2021).

    A device divides its update by the round's clip norm, bounds it by 1, and appends whether it was
    within: +``weight`` or -``weight``. Both are one vector of norm at most :attr:`norm_bound`,
    hidden by one noise, so that the clip norm costs no release of its own.

    Attributes:
        start: Clip norm of the first round, from 1e-12 to 1e12, as every other's.
        quantile: Share of the updates that should be within, in (0, 1).
        rate: How fast the clip norm follows, above 0.
        weight: Of the appended number, above 0; the noise on updates grows by sqrt(1 + weight^2).
    """

    start: float
    quantile: float = 0.5
    rate: float = 0.5
    weight: float = 0.2

    def __post_init__(self) -> None:
        validation.require_norm(start=self.start)
        validation.require_positive(rate=self.rate, weight=self.weight)
        validation.require_between(0, 1, quantile=self.quantile)

    @property
    def norm_bound(self) -> float:
        """L2 bound on what a device sends."""
        return math.hypot(1.0, self.weight)

    def pack_update(self, update: Tensor, clip_norm: float) -> Tensor:
        """Clip an update and append its indicator, shape (params + 1,), float64.

        Args:
            update: Shape (params,).
            clip_norm: The round's clip norm.

        Guarantees:
            - Its L2 norm is at most :attr:`norm_bound` (to 1e-6, relative), whatever came in.
            - An update with a NaN or an infinity counts as zeros that were not within.

        Raises:
            SettingError: A clip norm so small or large that floats would not keep the bound.
        """
        validation.require_norm(clip_norm=clip_norm)
        wide = update.double()
        within = bool(torch.linalg.vector_norm(wide) <= clip_norm)  # false for NaN
        indicator = torch.tensor([self.weight if within else -self.weight], dtype=torch.float64)
        return torch.cat([clipping.clip_to_norm(wide, clip_norm) / clip_norm, indicator])

    def unpack_mean(self, mean: Tensor, clip_norm: float) -> tuple[Tensor, float]:
        """From the mean of what devices sent: the mean update, and the next round's clip norm.

        Args:
            mean: Shape (params + 1,), float64, noised.
            clip_norm: The round's clip norm.
        """
        # From the mean of +weight and -weight back to the share that was within.
        within = (float(mean[-1]) / self.weight + 1) / 2
        # Geometric steps (Andrew et al. 2021); noise can take the share out of [0, 1].
        following = clip_norm * math.exp(-self.rate * (min(max(within, 0.0), 1.0) - self.quantile))
        low = max(self.start / _MAX_CLIP_DRIFT, validation.MIN_NORM)
        high = min(self.start * _MAX_CLIP_DRIFT, validation.MAX_NORM)
        return mean[:-1] * clip_norm, min(max(following, low), high)


_MAX_CLIP_DRIFT = 1e3
"""How far noise may ever take the clip norm from its start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserLevelPrivacy:
    """The mechanisms that hide a whole user in each sum of a run.

    A device that reads a plan makes one, so what is refused here is refused by devices.

    Attributes:
        counts: In the sum of label counts, bounded in utterances.
        centre: In the sum for this population's centre, bounded in projected units: a sum of users'
            means or, where devices noise their own rows, of all rows; None where there is none.
        update: In the sum of a round's updates. Bounded in weights; in summed gradients where
            devices noise their own, whose steps they were bounded in.
        adaptive: How the update's clip norm is learned; None keeps it. Where it is, the update is
            bounded in units of that norm.
        secure: How the sums are made where devices add shares of the noise; None elsewhere.
        calibration: In the sum of head statistics: of users' means or, where devices noise their
            own, of all clips; None where there is none.
        colluding_share: Where devices noise their own: largest share of a sum's devices that tell
            others their noise, in [0, 1); see :meth:`colluders`.
    """

    counts: SumMechanism
    centre: SumMechanism | None
    update: SumMechanism
    adaptive: AdaptiveClipping | None = None
    secure: SecureSumConfigs | None = None
    calibration: SumMechanism | None = None
    colluding_share: float = 0.0

    def __post_init__(self) -> None:
        validation.require_fraction(colluding_share=self.colluding_share)
        ways = {one.noised_by for one in self._mechanisms()}
        if (ways == {NoiseSource.DISTRIBUTED}) != (self.secure is not None) or len(ways) != 1:
            raise SettingError(
                "noise is added by shares in all sums of a run, and then secure says how, or in "
                f"none: noised_by is {', '.join(sorted(ways))}"
            )
        validation.require_norm(
            **{
                f"{name}_clip_norm": one.clip_norm
                for name, one in self._mechanisms_by_name().items()
            }
        )
        self._check_rates()
        if any(one.bands for name, one in self._mechanisms_by_name().items() if name != "update"):
            raise SettingError("bands are for the updates of rounds; other sums are made once")
        if self.update.bands and self.adaptive:
            raise SettingError(
                "bands go with a fixed clip norm: noise that is correlated across rounds must be "
                "of one scale; leave out adaptive, or min_separation and bands"
            )
        if self.secure:
            self._check_secure_sums(self.secure)
        if self.adaptive and self.update.clip_norm != self.adaptive.norm_bound:
            raise SettingError(
                f"the update's clip_norm is {self.update.clip_norm}; where it is learned it must "
                f"be {self.adaptive.norm_bound}"
            )

    def colluders(self, devices: float) -> int:
        """Count the devices of a sum whose own noise hides nobody.

        Whoever sees the sum and takes part in it knows at least its own device's noise, so at
        least one is counted.

        Args:
            devices: How many are summed, or are expected to be.

        Returns:
            From 1 up, and never more than ``devices``, rounded up.

        Example:
            >>> noise = SumMechanism(
            ...     noise_multiplier=1.0, clip_norm=1.0, noised_by=NoiseSource.DEVICES
            ... )
            >>> promise = UserLevelPrivacy(
            ...     counts=noise, centre=None, update=noise, colluding_share=0.1
            ... )
            >>> promise.colluders(8), promise.colluders(21)
            (1, 3)
        """
        # A hair less than the product: 0.1 of 20 devices is two, whatever floats make of it.
        return min(math.ceil(devices), max(1, math.ceil(self.colluding_share * devices - 1e-9)))

    def _mechanisms(self) -> tuple[SumMechanism, ...]:
        """The noise of every sum."""
        return tuple(self._mechanisms_by_name().values())

    def _check_rates(self) -> None:
        """Refuse sums that are accounted for as sampled where everybody is asked."""
        for name, one in self._mechanisms_by_name().items():
            drawn = name == "update" and one.noised_by is NoiseSource.SERVER
            if one.sample_rate != 1 and not drawn:
                raise SettingError(
                    f"sample_rate of {name} is {one.sample_rate:g}; it must be 1: only into the "
                    "rounds' updates, under noise that the server adds, are users drawn"
                )

    def _check_secure_sums(self, secure: SecureSumConfigs) -> None:
        """Refuse noise that the devices' shares would not add up to."""
        first = [one for one in (self.counts, self.centre) if one]
        # Each part is bounded by 1, so that together they are bounded by the root of their number.
        guaranteed = secure.guaranteed_multiplier(secure.enrolment, whole=True)
        sums = [(one, guaranteed * math.sqrt(len(first)), secure.enrolment) for one in first]
        guaranteed = secure.guaranteed_multiplier(secure.update, whole=True)
        sums.append((self.update, guaranteed, secure.update))
        if self.calibration and secure.calibration:
            guaranteed = secure.guaranteed_multiplier(secure.calibration, whole=True)
            sums.append((self.calibration, guaranteed, secure.calibration))
            self._check_calibration(self.calibration, secure.calibration)
        for one, guaranteed, settings in sums:
            secure.check_sum(settings, near_gaussian=one.near_gaussian, whole=True)
            promised = one.noise_multiplier if one.discrete else math.inf
            check_shares(promised, guaranteed)
        if (secure.calibration is None) != (self.calibration is None):
            raise SettingError("head statistics are promised and summed securely, or neither")
        bounds = (secure.enrolment.clip_norm, secure.update.clip_norm)
        if bounds != (math.sqrt(len(first)), self.update.clip_norm):
            raise SettingError(
                f"secure sums are bounded by {bounds}, and the promise by "
                f"{(math.sqrt(len(first)), self.update.clip_norm)}; they must be equal"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON's view of the promise."""
        noises = self._mechanisms_by_name().items()
        record = asdict(self) | {name: one.to_dict() for name, one in noises}
        record["secure"] = self.secure.to_dict() if self.secure else None
        if not self.colluding_share:
            del record["colluding_share"]  # plans of before keep their hash
        return record

    def _mechanisms_by_name(self) -> dict[str, SumMechanism]:
        """The noise of every sum, by name."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {name: one for name, one in fields.items() if isinstance(one, SumMechanism)}

    @staticmethod
    def _check_calibration(noise: SumMechanism, settings: SecureAggregationConfig) -> None:
        """Refuse a sum of head statistics that is bounded otherwise than promised."""
        if settings.clip_norm != noise.clip_norm:
            raise SettingError(
                f"the secure sum of head statistics is bounded by {settings.clip_norm}, and the "
                f"promise by {noise.clip_norm}; they must be equal"
            )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "UserLevelPrivacy":
        """Read it back; the caller turns what is raised into its own error."""
        centre, secure, adaptive = record["centre"], record["secure"], record["adaptive"]
        calibration = record["calibration"]
        return cls(
            counts=SumMechanism.from_dict(record["counts"]),
            centre=SumMechanism.from_dict(centre) if centre else None,
            update=SumMechanism.from_dict(record["update"]),
            adaptive=AdaptiveClipping(**adaptive) if adaptive else None,
            secure=SecureSumConfigs.from_dict(secure) if secure else None,
            calibration=SumMechanism.from_dict(calibration) if calibration else None,
            colluding_share=record.get("colluding_share", 0.0),
        )
