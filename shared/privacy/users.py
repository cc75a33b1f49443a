"""What hides whole users in the sums of a run, and who sees such a sum before it is noised."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sottovoce.shared import check
from sottovoce.shared.errors import MessageError, SettingError
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.release import GRAIN, NoisedBy, UserNoise
from sottovoce.shared.secagg import arrangement, price
from sottovoce.shared.secagg.settings import SecureAggregation

ENROLMENT, CALIBRATION = "enrolment", "head-statistics"
"""The secure sums that are of no round; the others are ``round-N``."""

_HAIR = 1 + 1e-9


def sum_name(plan: str, kind: str, attempt: str = "") -> str:
    """A secure sum's name, unique over all runs.

    Args:
        plan: SHA-256 of the plan.
        kind: ``enrolment``, ``head-statistics`` or ``round-N``.
        attempt: Tells apart sums that are begun again.
    """
    return "/".join(part for part in (plan[:32], kind, attempt) if part)


def sum_kind(plan: str, name: str) -> str:
    """``enrolment``, ``head-statistics`` or ``round-N``, from a sum's name.

    Raises:
        MessageError: Another plan's.
    """
    first, _, rest = name.partition("/")
    if first != plan[:32]:
        raise MessageError("the sum is of another plan than this device enrolled for")
    return rest.partition("/")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureSums:
    """Sums that nobody sees before every device's share of the noise is in them.

    Attributes:
        enrolment: Of the first sum: label counts and centre, each brought to a bound of 1.
        update: Of a round's sum of updates.
        dishonest: Most devices of a sum that side with the server, a whole number, 0 or above;
            their noise is not counted.
        calibration: Of the sum of what is told of heads and scores; None where nothing is.
    """

    enrolment: SecureAggregation
    update: SecureAggregation
    dishonest: int
    calibration: SecureAggregation | None = None

    def __post_init__(self) -> None:
        check.whole(dishonest=self.dishonest)

    def of(self, kind: str) -> SecureAggregation:
        """The settings of a sum of this kind.

        Raises:
            MessageError: The run has no such sum.
        """
        if kind == CALIBRATION and self.calibration is None:
            raise MessageError("the plan has no secure sum of head statistics")
        kinds = {ENROLMENT: self.enrolment, CALIBRATION: self.calibration or self.update}
        return kinds.get(kind, self.update)

    def multiplier(self, settings: SecureAggregation) -> float:
        """Noise multiplier that the quorum's honest devices give a sum together."""
        return price.effective_multiplier(settings, self._sharers(settings))

    def grain(self, settings: SecureAggregation) -> float:
        """How much further apart two worlds are in such a sum than under a Gaussian."""
        return price.grain(settings, self._sharers(settings))

    def _sharers(self, settings: SecureAggregation) -> int:
        """Whose noise can be counted on in a sum of the quorum."""
        return price.noise_sharers(settings.quorum, self.dishonest)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "SecureSums":
        """Read it back; the caller turns what is raised into its own error."""
        return cls(
            enrolment=SecureAggregation(**record["enrolment"]),
            update=SecureAggregation(**record["update"]),
            dishonest=record["dishonest"],
            calibration=_secure_sum(record["calibration"]),
        )


def _secure_sum(record: Mapping[str, Any] | None) -> SecureAggregation | None:
    """Settings of a sum, where there is one."""
    return SecureAggregation(**record) if record else None


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveClip:
    """A clip norm that follows a quantile of the updates' norms (Andrew et al. 2021).

    A device divides its update by the round's clip norm, bounds it by 1, and appends whether it was
    within: +``weight`` or -``weight``. Both are one vector of norm at most :attr:`bound`, hidden by
    one noise, so that the clip norm costs no release of its own.

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
        check.norm(start=self.start)
        check.positive(rate=self.rate, weight=self.weight)
        check.inside(0, 1, quantile=self.quantile)

    @property
    def bound(self) -> float:
        """L2 bound on what a device sends."""
        return math.hypot(1.0, self.weight)

    def packed(self, update: Tensor, clip: float) -> Tensor:
        """What a device sends, shape (params + 1,), float64.

        Args:
            update: Shape (params,).
            clip: The round's clip norm.

        Guarantees:
            - Its L2 norm is at most :attr:`bound` (to 1e-6, relative), whatever came in.
            - An update with a NaN or an infinity counts as zeros that were not within.

        Raises:
            SettingError: A clip norm so small or large that floats would not keep the bound.
        """
        check.norm(clip=clip)
        wide = update.double()
        within = bool(torch.linalg.vector_norm(wide) <= clip)  # false for NaN
        told = torch.tensor([self.weight if within else -self.weight], dtype=torch.float64)
        return torch.cat([bound.project(wide, clip) / clip, told])

    def unpacked(self, mean: Tensor, clip: float) -> tuple[Tensor, float]:
        """From the mean of what devices sent: the mean update, and the next round's clip norm.

        Args:
            mean: Shape (params + 1,), float64, noised.
            clip: The round's clip norm.
        """
        within = (float(mean[-1]) / self.weight + 1) / 2
        following = clip * math.exp(-self.rate * (min(max(within, 0.0), 1.0) - self.quantile))
        low = max(self.start / _FURTHEST, check.LEAST_NORM)
        high = min(self.start * _FURTHEST, check.MOST_NORM)
        return mean[:-1] * clip, min(max(following, low), high)


_FURTHEST = 1e3
"""How far noise may ever take the clip norm from its start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserPromise:
    """What hides a whole user in each sum of a run; see ``UserNoise``.

    A device that reads a plan makes one, so what is refused here is refused by devices.

    Attributes:
        counts: In the sum of label counts, bounded in utterances.
        centre: In the sum that tells where this population's voices lie, bounded in front units: a
            sum of users' means or, where devices noise their own rows, of all rows; None where
            there is none.
        update: In the sum of a round's updates. Bounded in weights; in summed gradients where
            devices noise their own, whose steps they were bounded in.
        adaptive: How the update's clip norm is learned; None keeps it. Where it is, the update is
            bounded in units of that norm.
        secure: How the sums are made where devices add shares of the noise; None elsewhere.
        calibration: In the sum of what is told of heads and scores: of users' means or, where
            devices noise their own, of all clips; None where there is none.
    """

    counts: UserNoise
    centre: UserNoise | None
    update: UserNoise
    adaptive: AdaptiveClip | None = None
    secure: SecureSums | None = None
    calibration: UserNoise | None = None

    def __post_init__(self) -> None:
        ways = {one.noised_by for one in self._all()}
        if (ways == {NoisedBy.SHARES}) != (self.secure is not None) or len(ways) != 1:
            raise SettingError(
                "noise is added by shares in all sums of a run, and then secure says how, or in "
                f"none: noised_by is {', '.join(sorted(ways))}"
            )
        check.norm(**{f"{name}_clip_norm": one.clip_norm for name, one in self._noises().items()})
        self._check_rates()
        if any(one.bands for name, one in self._noises().items() if name != "update"):
            raise SettingError("bands are for the updates of rounds; other sums are made once")
        if self.update.bands and self.adaptive:
            raise SettingError(
                "bands go with a fixed clip norm: noise that hangs together over rounds must be of "
                "one scale; leave adaptive out, or spacing"
            )
        if self.secure:
            self._check_shares(self.secure)
        if self.adaptive and self.update.clip_norm != self.adaptive.bound:
            raise SettingError(
                f"the update's clip_norm is {self.update.clip_norm}; where it is learned it must "
                f"be {self.adaptive.bound}"
            )

    def _all(self) -> tuple[UserNoise, ...]:
        """The noise of every sum."""
        return tuple(self._noises().values())

    def _check_rates(self) -> None:
        """Refuse sums that are priced as if not everybody were asked, where everybody is."""
        for name, one in self._noises().items():
            drawn = name == "update" and one.noised_by is NoisedBy.SERVER
            if one.sample_rate != 1 and not drawn:
                raise SettingError(
                    f"sample_rate of {name} is {one.sample_rate:g}; it must be 1: only into the "
                    "rounds' updates, under noise that the server adds, are users drawn"
                )

    def _check_shares(self, secure: SecureSums) -> None:
        """Refuse promises that the devices' shares would not keep."""
        first = [one for one in (self.counts, self.centre) if one]
        # Each part is bounded by 1, so that together they are bounded by the root of their number.
        kept = secure.multiplier(secure.enrolment) * math.sqrt(len(first))
        promises = [(one, kept, secure.enrolment) for one in first]
        promises.append((self.update, secure.multiplier(secure.update), secure.update))
        if self.calibration and secure.calibration:
            given = secure.multiplier(secure.calibration)
            promises.append((self.calibration, given, secure.calibration))
            self._check_calibration(self.calibration, secure.calibration)
        for one, given, settings in promises:
            if not arrangement.hides(settings, secure.dishonest):
                raise SettingError(
                    f"a secure sum over {settings.devices:,} devices with {settings.degree} "
                    f"neighbours each and a threshold of {settings.threshold} does not hide them "
                    f"from a server with {secure.dishonest:,} on its side: raise degree and "
                    "threshold (arrangement.settings_for finds them), or let fewer be dishonest"
                )
            if one.fine and not secure.grain(settings) <= GRAIN:
                raise SettingError(
                    f"a secure sum of {settings.parameters:,} values over {settings.devices:,} "
                    f"devices in {settings.bits} bits has a grain of "
                    f"{secure.grain(settings):.3g}, and fine noise at most {GRAIN:g}: sum fewer "
                    "devices, or a smaller model"
                )
            if not one.discrete or not one.noise_multiplier <= given * _HAIR:
                raise SettingError(
                    f"a noise_multiplier of {one.noise_multiplier:.4g} is promised, and the "
                    f"devices' discrete shares come to {given:.4g}; raise their noise"
                )
        if (secure.calibration is None) != (self.calibration is None):
            raise SettingError("head statistics are promised and summed securely, or neither")
        bounds = (secure.enrolment.clip_norm, secure.update.clip_norm)
        if bounds != (math.sqrt(len(first)), self.update.clip_norm):
            raise SettingError(
                f"secure sums are bounded by {bounds}, and the promise by "
                f"{(math.sqrt(len(first)), self.update.clip_norm)}; they must be alike"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON's view of the promise."""
        noises = self._noises().items()
        return asdict(self) | {name: one.to_dict() for name, one in noises}

    def _noises(self) -> dict[str, UserNoise]:
        """The noise of every sum, by name."""
        given = {name: getattr(self, name) for name in self.__slots__}
        return {name: one for name, one in given.items() if isinstance(one, UserNoise)}

    @staticmethod
    def _check_calibration(noise: UserNoise, settings: SecureAggregation) -> None:
        """Refuse a sum of head statistics that is bounded otherwise than promised."""
        if settings.clip_norm != noise.clip_norm:
            raise SettingError(
                f"the secure sum of head statistics is bounded by {settings.clip_norm}, and the "
                f"promise by {noise.clip_norm}; they must be alike"
            )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "UserPromise":
        """Read it back; the caller turns what is raised into its own error."""
        centre, secure, adaptive = record["centre"], record["secure"], record["adaptive"]
        calibration = record["calibration"]
        return cls(
            counts=UserNoise.from_dict(record["counts"]),
            centre=UserNoise.from_dict(centre) if centre else None,
            update=UserNoise.from_dict(record["update"]),
            adaptive=AdaptiveClip(**adaptive) if adaptive else None,
            secure=SecureSums.from_dict(secure) if secure else None,
            calibration=UserNoise.from_dict(calibration) if calibration else None,
        )
