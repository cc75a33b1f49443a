"""What left a device, described; ``accountant`` says what it cost.

Describe first, price later (the design of ``dp_accounting.DpEvent``): a release is a frozen
record of public facts. Nothing here computes an epsilon.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from sottovoce.shared import check
from sottovoce.shared.errors import LedgerError, SettingError


class Kind(StrEnum):
    """What a release was made for."""

    CENTRE = "centre"
    NORMALISER = "normaliser"
    LABEL_COUNTS = "label-counts"
    GRADIENT = "gradient"
    SEALED_HEAD = "sealed-head"
    TORN = "torn"


class Mechanism(StrEnum):
    """How a release was protected."""

    GAUSSIAN = "gaussian"
    ENCRYPTION = "encryption"
    NONE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """One release of one device.

    Attributes:
        kind: What it was made for.
        mechanism: ``gaussian``; ``encryption`` for ciphertext of a public length under a key that
            never leaves the user; ``none`` for an unprotected release, which no epsilon covers.
        run: The run it belongs to.
        round: The round it belongs to; 0 before the first.
        noise_multiplier: Standard deviation of the noise over the L2 sensitivity, above 0 for
            ``gaussian``, 0 otherwise.
        sample_rate: Chance that one utterance takes part in one step (Poisson), in (0, 1].
        steps: How many such steps were composed, at least 1.
        sensitivity: L2 bound on what one utterance adds to one step (its clip norm), in the units
            of the release; 0 where none is kept.
    """

    kind: Kind
    mechanism: Mechanism
    run: str
    round: int
    noise_multiplier: float = 0.0
    sample_rate: float = 1.0
    steps: int = 1
    sensitivity: float = 0.0

    def __post_init__(self) -> None:
        check.rate(sample_rate=self.sample_rate)
        check.at_least(1, steps=self.steps)
        check.not_negative(round=self.round, sensitivity=self.sensitivity)
        if self.mechanism is Mechanism.GAUSSIAN:
            check.positive(noise_multiplier=self.noise_multiplier, sensitivity=self.sensitivity)
        else:
            check.not_negative(noise_multiplier=self.noise_multiplier)

    def to_dict(self) -> dict[str, Any]:
        """JSON's view of the release."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Release":
        """Read a release back.

        Raises:
            LedgerError: A field is missing, unknown or of the wrong kind.
        """
        names = {field.name for field in fields(cls)}
        if set(record) != names:
            raise LedgerError(f"a release has the fields {sorted(record)}; needed: {sorted(names)}")
        try:
            values = dict(record) | {
                "kind": Kind(record["kind"]),
                "mechanism": Mechanism(record["mechanism"]),
            }
            return cls(**values)
        except (TypeError, ValueError, SettingError) as error:
            raise LedgerError(f"a release cannot be read: {error}") from error
