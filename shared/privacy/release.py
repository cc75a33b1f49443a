"""Releases of a device, described; ``accounting`` computes what they cost.

Describe first, account later (the design of ``dp_accounting.DpEvent``): a release is a frozen
record of public facts. Nothing here computes an epsilon.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Final

from sottovoce.shared import validation
from sottovoce.shared.errors import LedgerError, SettingError
from sottovoce.shared.privacy.banded_noise import BandedNoise

DISCRETISATION_SLACK: Final = 1e-4
"""What a sum of discrete but ``near_gaussian`` noise costs beyond a Gaussian, in epsilon and in the
logarithm of delta: see ``noise_accounting.discretisation_slack``."""


MIN_NOISE: Final = 1e-30
MAX_NOISE: Final = 1e12
MIN_RATE: Final = 1e-9
MAX_STEPS: Final = 10**6
MAX_ROUND: Final = 10**9
MAX_DEVICES: Final = 10**10
"""Ends of the numbers of a release. No accountant says anything useful beyond them, and some divide
by zero, overflow or fill the memory: a ledger may come from anybody."""

_MAX_RUN_LENGTH: Final = 1024


class ReleaseKind(StrEnum):
    """Purpose that a release serves."""

    CENTRE = "centre"
    NORMALISER = "normaliser"
    LABEL_COUNTS = "label-counts"
    GRADIENT = "gradient"
    HEAD_STATISTICS = "head-statistics"
    SEALED_HEAD = "sealed-head"
    TORN = "torn"


class Mechanism(StrEnum):
    """How a release was protected."""

    GAUSSIAN = "gaussian"
    ENCRYPTION = "encryption"
    NONE = "none"


class PrivacyUnit(StrEnum):
    """Whose presence a guarantee hides."""

    UTTERANCE = "utterance"
    USER = "user"


class NoiseSource(StrEnum):
    """Who adds the noise that hides a user, and so who must be trusted with what came before.

    ``server``: it sees every update and noises their sum before anybody else sees it.
    ``shares``: every device adds a share and masks it; nobody sees less than the noised sum.
    ``devices``: every device noises what it sends enough for its utterances; all of that noise
    together hides a user from those who see only the sum.
    """

    SERVER = "server"
    DISTRIBUTED = "shares"
    DEVICES = "devices"


@dataclass(frozen=True, kw_only=True, slots=True)
class SumMechanism:
    """Mechanism that hides one user in the noised sum of a release.

    Attributes:
        noise_multiplier: Standard deviation of the sum's noise over ``clip_norm``, above 0; where
            noise is correlated, that of one independent draw over what one round of a user moves.
        clip_norm: L2 bound on what one user adds to the sum, in the units of the release, above 0.
        noised_by: Who adds that noise.
        sample_rate: Chance that a user joins a sum (Poisson), in (0, 1].
        sums: How many sums like this one the record covers, at least 1.
        discrete: Whether the noise is a sum of discrete Gaussians, which has no closed
            privacy-loss distribution; unless it is ``near_gaussian``, its Renyi divergence is
            accounted for.
        near_gaussian: Whether such noise lies on a lattice so fine that it costs no more than a
            Gaussian but for ``DISCRETISATION_SLACK``. Who adds it must have checked.
        bands: How the noise of a run's rounds is correlated; None where it is independent. Records
            of one run with bands add up only because a user's rounds are separated: see
            ``accounting``.
    """

    noise_multiplier: float
    clip_norm: float
    noised_by: NoiseSource
    sample_rate: float = 1.0
    sums: int = 1
    discrete: bool = False
    near_gaussian: bool = False
    bands: BandedNoise | None = None

    def __post_init__(self) -> None:
        validation.require_range(MIN_NOISE, MAX_NOISE, noise_multiplier=self.noise_multiplier)
        validation.require_positive(clip_norm=self.clip_norm)
        _check_numbers(self.sample_rate, sums=self.sums)
        for name in ("discrete", "near_gaussian"):
            # An empty list would pass for False, which costs less than True.
            if not isinstance(getattr(self, name), bool):
                raise SettingError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        if self.near_gaussian and not (self.discrete and self.sample_rate == 1):
            raise SettingError(
                "near_gaussian is for discrete noise in sums without sampling: set discrete, and "
                "a sample_rate of 1"
            )
        plain = self.sample_rate == 1 and self.sums == 1 and not self.discrete
        if self.bands and not (plain and self.noised_by is NoiseSource.SERVER):
            raise SettingError(
                "bands go with noise that the server adds to each sum, without sampling: "
                f"noised_by is {self.noised_by.value}, sample_rate {self.sample_rate:g}, sums "
                f"{self.sums}, discrete {self.discrete}"
            )

    @property
    def noise_std(self) -> float:
        """Standard deviation of one independent draw, in the units of ``clip_norm``."""
        std = self.noise_multiplier * self.clip_norm
        # One round of a user moves CG by a column's norm times the bound (see banded_noise).
        return std * self.bands.column_norm if self.bands else std

    def to_dict(self) -> dict[str, Any]:
        """JSON's view; what does not apply is left out, as in the records of earlier releases.

        The keys are those of every ledger's lines, so they do not follow the fields' names:
        ``near_gaussian`` is written as ``fine``.
        """
        record = asdict(self)
        near_gaussian = record.pop("near_gaussian")
        if near_gaussian:
            record["fine"] = near_gaussian
        del record["bands"]
        if self.bands:
            record["bands"] = self.bands.to_dict()
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "SumMechanism":
        """Read it back; the caller turns what is raised into its own error."""
        values = dict(record)
        values["noised_by"] = NoiseSource(values["noised_by"])
        flags = (values.get("discrete", False), values.get("fine", False))
        if not all(isinstance(flag, bool) for flag in flags):
            raise SettingError("discrete and fine must be true or false")
        if values.get("bands") is not None:
            values["bands"] = BandedNoise.from_dict(values["bands"])
        return cls(near_gaussian=values.pop("fine", False), **values)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseShares:
    """Assumption under which the noise of a secure sum hides an utterance.

    The server follows the protocol of secure sums, and sees nothing less than the sum. All devices
    in it add a share of discrete noise, near Gaussian, and the shares of those who side with the
    server are not counted.

    Attributes:
        devices: Fewest devices that a sum is opened with, at least 2.
        colluders: Most of them that side with the server, 0 or above and fewer than ``devices``.
    """

    devices: int
    colluders: int

    def __post_init__(self) -> None:
        validation.require_count(2, MAX_DEVICES, devices=self.devices)
        validation.require_count(0, self.devices - 1, colluders=self.colluders)


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """One release of one device.

    Attributes:
        kind: What it was made for.
        mechanism: ``gaussian``; ``encryption`` for ciphertext of a public length under a key that
            never leaves the user; ``none`` for an unprotected release, which no epsilon covers.
        run: The run it belongs to.
        round: The round it belongs to; 0 before the first.
        noise_multiplier: Standard deviation of the noise that hides one utterance over the L2
            sensitivity; 0 where only a user's noise hides it, and for other mechanisms.
        sample_rate: Chance that one utterance takes part in one step (Poisson), in (0, 1].
        steps: How many such steps were composed, at least 1.
        sensitivity: L2 bound on what one utterance adds to one step (its clip norm), in the units
            of the release; 0 where none is kept.
        user: What hides the whole user in the sum that this goes into; None where nothing does.
        shares: Under which assumption the noise that hides an utterance is there, where it is the
            noise of a secure sum; None where the device adds all of it.
    """

    kind: ReleaseKind
    mechanism: Mechanism
    run: str
    round: int
    noise_multiplier: float = 0.0
    sample_rate: float = 1.0
    steps: int = 1
    sensitivity: float = 0.0
    user: SumMechanism | None = None
    shares: NoiseShares | None = None

    def __post_init__(self) -> None:
        _check_numbers(self.sample_rate, steps=self.steps)
        validation.require_count(0, MAX_ROUND, round=self.round)
        # First, for below it is asked whether there is noise at all, which a text might seem to be.
        validation.require_non_negative(
            sensitivity=self.sensitivity, noise_multiplier=self.noise_multiplier
        )
        if self.mechanism is Mechanism.GAUSSIAN and not (self.user and not self.noise_multiplier):
            validation.require_positive(sensitivity=self.sensitivity)
            validation.require_range(MIN_NOISE, MAX_NOISE, noise_multiplier=self.noise_multiplier)
        elif self.noise_multiplier:
            validation.require_range(MIN_NOISE, MAX_NOISE, noise_multiplier=self.noise_multiplier)
        if self.user and self.mechanism is not Mechanism.GAUSSIAN:
            raise SettingError(
                f"a release of mechanism {self.mechanism.value!r} names noise that hides its user; "
                "only gaussian ones have it"
            )
        if self.shares and not self.noise_multiplier:
            raise SettingError(
                "shares of noise hide an utterance: a release that names them has a "
                "noise_multiplier, that of their sum"
            )

    def mechanism_for(self, unit: PrivacyUnit) -> SumMechanism | None:
        """Mechanism that hides a unit in the release's sum; None where no sum hides the unit.

        Example:
            >>> release = Release(
            ...     kind=ReleaseKind.CENTRE, mechanism=Mechanism.NONE, run="r", round=0
            ... )
            >>> release.mechanism_for(PrivacyUnit.USER) is None
            True
        """
        return {PrivacyUnit.UTTERANCE: None, PrivacyUnit.USER: self.user}[unit]

    def to_dict(self) -> dict[str, Any]:
        """JSON's view of the release."""
        record = asdict(self) | {"user": self.user.to_dict() if self.user else None}
        if not self.shares:  # ledgers of before keep their lines
            del record["shares"]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Release":
        """Read a release back.

        Raises:
            LedgerError: A field is missing, unknown or of the wrong kind.
        """
        names = {field.name for field in fields(cls)}
        # Records from before there was a second unit, or shares of noise.
        record = {"user": None, "shares": None} | dict(record)
        if set(record) != names:
            raise LedgerError(f"a release has the fields {sorted(record)}; needed: {sorted(names)}")
        try:
            _require_run_name(record["run"])
            user, shares = record["user"], record["shares"]
            values = record | {
                "kind": ReleaseKind(record["kind"]),
                "mechanism": Mechanism(record["mechanism"]),
                "user": None if user is None else SumMechanism.from_dict(user),
                "shares": None if shares is None else NoiseShares(**shares),
            }
            return cls(**values)
        except (TypeError, ValueError, KeyError, SettingError) as error:
            raise LedgerError(f"a release cannot be read: {error}") from error


def _check_numbers(sample_rate: float, **counts: int) -> None:
    """Check a sampling rate, and how many steps or sums were taken at it."""
    validation.require_range(MIN_RATE, 1, sample_rate=sample_rate)
    validation.require_count(1, MAX_STEPS, **counts)


def _require_run_name(run: object) -> None:
    """Refuse what is no name of a run: releases of a run are looked up by it."""
    if not isinstance(run, str) or len(run) > _MAX_RUN_LENGTH:
        raise SettingError(f"run must be a text of at most {_MAX_RUN_LENGTH} characters")
