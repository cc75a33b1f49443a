"""Rounds that lie apart, and noise that hangs together over them (banded matrix factorisation).

Let G hold the sum of users' updates of each round, one row a round, and Z independent Gaussians.
Instead of G + Z the server lets out G + C⁻¹Z, with C lower triangular, banded and Toeplitz: each
round's noise takes back part of the noise of the rounds before, so that less of it adds up in a
model. It is the same as letting out CG + Z: one Gaussian mechanism. A user who takes part in rounds
at least as far apart as C has bands touches columns of C with disjoint supports, so that user moves
CG by at most (bound) x (norm of a column) x sqrt(times taken part). See Denisov et al. 2022
(adaptively chosen G), Choquette-Choo et al. 2023 (https://arxiv.org/abs/2306.08153, bands), and
Kalinin & Lampert 2024 (https://arxiv.org/abs/2405.13763, the banded square root).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from sottovoce.shared import check
from sottovoce.shared.errors import SettingError


@dataclass(frozen=True, kw_only=True, slots=True)
class Bands:
    """How far a user's rounds lie apart, and how the noise of rounds hangs together.

    Attributes:
        spacing: Fewest rounds from one that a user takes part in to the next, at least 1 and at
            least the number of bands.
        coefficients: The first column of C down to its last band, from 1, none above the one
            before, none negative; a single one is independent noise. Falling ones keep the noise
            from swinging up over rounds.
    """

    spacing: int
    coefficients: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        check.at_least(1, spacing=self.spacing)
        falling = (1.0, *self.coefficients)
        good = all(0 <= low <= high for high, low in pairwise(falling))
        if not good or self.coefficients[:1] != (1.0,):
            raise SettingError(
                f"coefficients of bands are {self.coefficients}; they must begin with 1 and fall "
                "from there, none below 0"
            )
        if self.count > self.spacing or self.spacing != int(self.spacing):
            raise SettingError(
                f"bands is {self.count} and spacing {self.spacing}; spacing must be a whole number "
                "and at least bands, or a user's rounds share noise and cost more than is booked"
            )

    @classmethod
    def square_root(cls, *, bands: int, spacing: int) -> "Bands":
        """The square root of summing all rounds up, cut to so many bands.

        Args:
            bands: At least 1; 1 is independent noise.
            spacing: At least ``bands``.

        Raises:
            SettingError: They are not.
        """
        check.at_least(1, bands=bands)
        column = [1.0]
        for place in range(1, bands):  # of (1 - x)^(-1/2)
            column.append(column[-1] * (2 * place - 1) / (2 * place))
        return cls(spacing=spacing, coefficients=tuple(column))

    @property
    def count(self) -> int:
        """How many bands C has."""
        return len(self.coefficients)

    @property
    def norm(self) -> float:
        """L2 norm of a column of C; the last ones, cut off, have less."""
        return math.sqrt(sum(one * one for one in self.coefficients))

    def most(self, rounds: int) -> int:
        """How many of so many rounds one user can take part in."""
        return math.ceil(rounds / self.spacing)

    def group(self, number: int) -> int:
        """Which group of users trains in a round, from 0; rounds count from 1."""
        return (number - 1) % self.spacing

    def block(self, number: int) -> int:
        """The first of the ``spacing`` rounds around this one in which each user trains once."""
        return number - self.group(number)

    def correlated(self, fresh: Tensor, past: Sequence[Tensor]) -> Tensor:
        """One round's row of C⁻¹Z.

        Args:
            fresh: The round's independent noise, shape (n,), float64.
            past: What this gave in the rounds before, the newest last; missing ones are zeros, as
                before the first round.
        """
        noise = fresh.clone()
        for back, weight in enumerate(self.coefficients[1:], 1):
            if back <= len(past):
                noise -= weight * past[-back]
        return noise

    def needed(self, past: Sequence[Tensor]) -> list[Tensor]:
        """What of the past later rounds still need, the newest last."""
        return list(past[max(0, len(past) - (self.count - 1)) :])

    def growth(self, rounds: int) -> float:
        """Noise in the sum of so many rounds, over that of one independent draw.

        Without bands it is the square root of the rounds.
        """
        inverse: list[float] = []
        for place in range(rounds):
            back = range(1, min(place, self.count - 1) + 1)
            inverse.append(
                float(place == 0) - sum(self.coefficients[i] * inverse[place - i] for i in back)
            )
        # Each draw is in the sum by as much of its own echo as the rounds after it hold.
        echo, squares = 0.0, 0.0
        for one in inverse:
            echo += one
            squares += echo * echo
        return math.sqrt(squares)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Bands":
        """Read it back; the caller turns what is raised into its own error."""
        values = dict(record)
        return cls(**values | {"coefficients": tuple(values["coefficients"])})
