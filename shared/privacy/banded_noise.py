"""Noise correlated across rounds (banded matrix factorisation), and the separation it needs.

Let G hold the sum of users' updates of each round, one row a round, and Z independent Gaussians.
Instead of G + Z the server releases G + C⁻¹Z, with C lower triangular, banded and Toeplitz: each
round's noise cancels part of the noise of the rounds before, so that less of it adds up in a model.
It is the same as releasing CG + Z: one Gaussian mechanism. A user whose participations are
separated by at least as many rounds as C has bands touches columns of C with disjoint supports, so
that user moves CG by at most (bound) x (norm of a column) x sqrt(participations). See Denisov et
al. 2022 (adaptively chosen G), Choquette-Choo et al. 2023 (https://arxiv.org/abs/2306.08153,
bands), and Kalinin & Lampert 2024 (https://arxiv.org/abs/2405.13763, the banded square root).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError


@dataclass(frozen=True, kw_only=True, slots=True)
class BandedNoise:
    """Minimum separation of a user's rounds, and how the noise of rounds is correlated.

    Attributes:
        min_separation: Fewest rounds from one that a user takes part in to the next, at least 1 and
            at least the number of bands.
        coefficients: The first column of C down to its last band, from 1, none above the one
            before, none negative; a single one is independent noise. Falling ones keep the noise
            from swinging up over rounds.
    """

    min_separation: int
    coefficients: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        validation.require_at_least(1, min_separation=self.min_separation)
        # Whole and bounded: programs index rounds by it.
        validation.require_whole_number(min_separation=self.min_separation)
        falling = (1.0, *self.coefficients)
        good = all(0 <= low <= high for high, low in pairwise(falling))
        if not good or self.coefficients[:1] != (1.0,):
            raise SettingError(
                f"coefficients of bands are {self.coefficients}; they must begin with 1 and fall "
                "from there, none below 0"
            )
        if self.band_count > self.min_separation:
            raise SettingError(
                f"bands is {self.band_count} and min_separation {self.min_separation}; "
                "min_separation must be a whole number and at least bands, or a user's rounds "
                "share noise and cost more than is booked"
            )

    @classmethod
    def from_square_root(cls, *, bands: int, min_separation: int) -> "BandedNoise":
        """The square root of summing all rounds up, cut to so many bands.

        Args:
            bands: At least 1; 1 is independent noise.
            min_separation: At least ``bands``.

        Raises:
            SettingError: They are not.
        """
        validation.require_at_least(1, bands=bands)
        column = [1.0]
        for index in range(1, bands):  # of (1 - x)^(-1/2)
            column.append(column[-1] * (2 * index - 1) / (2 * index))
        return cls(min_separation=min_separation, coefficients=tuple(column))

    @property
    def band_count(self) -> int:
        """How many bands C has."""
        return len(self.coefficients)

    @property
    def column_norm(self) -> float:
        """L2 norm of a column of C; the last ones, cut off, have less."""
        return math.sqrt(sum(one * one for one in self.coefficients))

    def max_participations(self, rounds: int) -> int:
        """How many of so many rounds one user can take part in."""
        return math.ceil(rounds / self.min_separation)

    def participation_group(self, number: int) -> int:
        """Which group of users trains in a round, from 0; rounds count from 1."""
        return (number - 1) % self.min_separation

    def block_start(self, number: int) -> int:
        """First of the ``min_separation`` rounds around this one in which each user trains once."""
        return number - self.participation_group(number)

    def correlate_noise(self, fresh: Tensor, past: Sequence[Tensor]) -> Tensor:
        """One round's row of C⁻¹Z.

        Args:
            fresh: The round's independent noise, shape (n,), float64.
            past: What this gave in the rounds before, the newest last; missing ones are zeros, as
                before the first round.
        """
        # Forward substitution: row t of C X = Z, solved for X, whose diagonal is 1.
        noise = fresh.clone()
        for back, weight in enumerate(self.coefficients[1:], 1):
            if back <= len(past):
                noise -= weight * past[-back]
        return noise

    def required_history(self, past: Sequence[Tensor]) -> list[Tensor]:
        """The part of the past that later rounds still need, the newest last."""
        return list(past[max(0, len(past) - (self.band_count - 1)) :])

    def cumulative_noise_factor(self, rounds: int) -> float:
        """Noise in the sum of so many rounds, over that of one independent draw.

        Without bands it is the square root of the rounds.
        """
        inverse: list[float] = []
        for index in range(rounds):
            back = range(1, min(index, self.band_count - 1) + 1)
            inverse.append(
                float(index == 0) - sum(self.coefficients[i] * inverse[index - i] for i in back)
            )
        # Each draw is in the sum by as much of its own echo as the rounds after it hold.
        echo, squares = 0.0, 0.0
        for one in inverse:
            echo += one
            squares += echo * echo
        return math.sqrt(squares)

    def to_dict(self) -> dict[str, Any]:
        """JSON's view; ledgers' lines hold ``min_separation`` as ``spacing``."""
        return {"spacing": self.min_separation, "coefficients": self.coefficients}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "BandedNoise":
        """Read it back; the caller turns what is raised into its own error."""
        values = dict(record)
        return cls(
            min_separation=values.pop("spacing"),
            coefficients=tuple(values.pop("coefficients")),
            **values,
        )
