"""Who takes part in a run, and what enrolment taught the server of them together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device of this run, by the user's pseudonym and Flower's node."""

    user: str
    node: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Enrolled:
    """What enrolment taught the server; every figure is a sum of booked releases.

    Attributes:
        contributing: Devices that train.
        receiving: Devices that only take the model.
        counts: Noised label counts of all contributing devices, shape (classes,), float64.
        sums: Noised sum of their rows in front space, shape (inputs,), float64.
        told: How many devices are in ``counts`` and ``sums``, above 0; in a run that goes on, as
            many as there were when it began.
        rows: How many rows one device put into it; 0 for all of its utterances.
    """

    contributing: list[Device]
    receiving: list[Device]
    counts: Tensor
    sums: Tensor
    told: int
    rows: int = 0

    def without(self, devices: Sequence[Device]) -> "Enrolled":
        """As if some contributing devices had not: their part of the sums is the usual one."""
        left = [one for one in self.contributing if one not in devices]
        share = len(left) / len(self.contributing)
        return replace(
            self,
            contributing=left,
            counts=self.counts * share,
            sums=self.sums * share,
            told=len(left),
        )

    @property
    def usual(self) -> float:
        """How many utterances one device usually holds, at least 1."""
        return max(float(self.counts.sum()) / self.told, 1.0)

    @property
    def centre(self) -> Tensor:
        """Where these voices lie in front space, shape (inputs,), float32."""
        return (self.sums / ((self.rows or self.usual) * self.told)).float()
