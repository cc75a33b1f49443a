"""What is personal in a voice, estimated on the user's device and taken off there.

At prediction the user's own statistics are used as they are: they never leave the device. In
training they shape the gradients that do leave, and removing one utterance would move every other
utterance's features; per-utterance clipping then bounds nothing. So the mean that training uses is
itself one release: a clipped, noised sum with its count, booked once and reused for good.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.shared import check
from sottovoce.shared.errors import ModelError
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.noise import NoiseSource


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Population:
    """How speakers differ, in front space, from public corpora; all shapes (inputs,), float32.

    Attributes:
        between: Variance of speakers' means around the population's.
        within: Variance of one speaker's utterances around that speaker's mean.
        neutral_offset: Mean of neutral utterances minus the speaker's mean over all emotions.
        neutral_within: Variance of one speaker's neutral utterances around their mean.
        offset_spread: Variance of the neutral offset from speaker to speaker.
    """

    between: Tensor
    within: Tensor
    neutral_offset: Tensor
    neutral_within: Tensor
    offset_spread: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(getattr(self, name).shape) for name in self.__dataclass_fields__}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ModelError(f"population statistics of shapes {shapes}; all must be (inputs,)")


def unknown(inputs: int) -> Population:
    """No public corpus: speakers are taken to differ as much as utterances do."""
    ones, zeros = torch.ones(inputs), torch.zeros(inputs)
    return Population(
        between=ones, within=ones, neutral_offset=zeros, neutral_within=ones, offset_spread=zeros
    )


def summarise(projected: Tensor, frames: Tensor) -> Tensor:
    """One row an utterance: the mean over its real frames.

    Args:
        projected: Shape (utterances, inputs) or (utterances, frames, inputs), padding arbitrary.
        frames: Real frames of each utterance, shape (utterances,), int64.

    Returns:
        Shape (utterances, inputs).
    """
    if projected.dim() == 2:
        return projected
    steps = torch.arange(projected.shape[1])[None, :, None]
    real = steps < frames[:, None, None]
    return (projected * real).sum(1) / frames[:, None].clamp(min=1)


def neutral_offset(population: Population, direction: Tensor | None) -> Tensor:
    """What is believed of where neutral speech lies from the speaker's mean, shape (inputs,).

    Args:
        population: Public statistics.
        direction: Where the shared model hears it, a unit vector (``neutral.direction``); None
            where it cannot say.
    """
    if direction is None:
        return _PUBLIC_ALONE * population.neutral_offset
    return _PUBLIC_SHARE * population.neutral_offset + _HEARD * direction


def estimate(
    rows: Tensor, population: Population, *, neutral: bool, direction: Tensor | None = None
) -> Tensor:
    """The user's mean from unlabelled clips, or from clips known to be neutral, for prediction.

    Unlabelled clips of all kinds: their mean as it is. Neutral clips: the best linear unbiased
    prediction (Henderson 1975) per input, which is their mean, less the offset that neutral speech
    is believed to have, shrunk to the population's centre by how little so many clips can tell.

    Args:
        rows: Shape (utterances, inputs), with the population's centre taken off.
        population: Public statistics.
        neutral: Whether the clips are neutral enrolment clips.
        direction: Where the shared model hears neutral speech; see :func:`neutral_offset`.

    Returns:
        Shape (inputs,); zeros, the population's centre, when there are no clips.
    """
    if not len(rows):
        return torch.zeros_like(population.between)
    if not neutral:
        return rows.mean(0)
    doubt = population.neutral_within / len(rows) + population.offset_spread
    usual = rows.mean(0) - neutral_offset(population, direction)
    return _trust(population.between, doubt) * usual


def _trust(between: Tensor, doubt: Tensor) -> Tensor:
    """How far an estimate of this error variance is believed, shape (inputs,)."""
    return between / (between + doubt).clamp(min=1e-12)


@dataclass(frozen=True, kw_only=True, slots=True)
class NormaliserRelease:
    """Settings of the noised mean that training uses.

    Attributes:
        radius: L2 bound R on one utterance's row, in front units, from 1e-12 to 1e12; infinite
            only without noise.
        count_weight: What one utterance adds to the count coordinate, c, from 1e-12 to 1e12.
        noise_multiplier: Standard deviation of the noise over the sensitivity, 0 for no privacy.
    """

    radius: float
    count_weight: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        check.norm(count_weight=self.count_weight)
        check.not_negative(noise_multiplier=self.noise_multiplier)
        if self.noise_multiplier or self.radius != math.inf:
            check.norm(radius=self.radius)

    @property
    def sensitivity(self) -> float:
        """L2 bound on what one utterance adds: its clipped row and its count together."""
        return math.hypot(self.radius, self.count_weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class CentreRelease:
    """Settings of the noised sum from which the server learns where this population's voices lie.

    Public corpora were recorded elsewhere; their mean is not these users' mean. Summed over many
    devices, a little noise on each is enough.

    Attributes:
        radius: L2 bound on one utterance's row, in front units, from 1e-12 to 1e12; infinite only
            without noise.
        noise_multiplier: Standard deviation of the noise over ``radius``, 0 for no privacy.
    """

    radius: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        check.not_negative(noise_multiplier=self.noise_multiplier)
        if self.noise_multiplier or self.radius != math.inf:
            check.norm(radius=self.radius)


def released_sum(
    rows: Tensor, settings: CentreRelease, noise: NoiseSource, *, most: float = math.inf
) -> Tensor:
    """A device's share of the population's centre, as one Gaussian release.

    Args:
        rows: Shape (utterances, inputs).
        settings: Clip and noise.
        noise: Where the noise comes from.
        most: L2 bound on the sum before noise, which is all that one user adds.

    Returns:
        Shape (inputs,), float32.

    Guarantees:
        - Before noise, adding or removing one utterance moves it by at most ``radius`` in L2, and
          the whole user by at most ``most``.
        - A row with a NaN or an infinity counts as zeros; no utterances give noise alone.
    """
    exact = bound.project(_clipped_sum(rows, settings.radius), most)
    spread = settings.radius * settings.noise_multiplier if settings.noise_multiplier else 0.0
    return (exact + noise.normal(tuple(exact.shape), spread)).float()


def _clipped_sum(rows: Tensor, radius: float) -> Tensor:
    """Sum of rows, each at most ``radius`` long, broken ones left out; (inputs,), float64."""
    finite = torch.where(rows.isfinite().all(1, keepdim=True), rows, 0.0).double()
    length = torch.linalg.vector_norm(finite, dim=1, keepdim=True)
    # A norm can be infinite only beyond float32, which rows cannot hold; 0 stays 0.
    total: Tensor = (finite * (radius / length.clamp(min=1e-12)).clamp(max=1.0)).sum(0)
    return total


_PUBLIC_ALONE = 0.5
"""How much of the public corpora's neutral offset is believed of another corpus's speakers: chosen
on training speakers of RAVDESS and CREMA-D, where all of it helps the one and hurts the other."""

_PUBLIC_SHARE = 0.25
"""The same where the shared model says something of it too."""

_HEARD = 0.16
"""How far neutral speech lies where the model hears it, where utterances lie 1 from their speaker's
mean (root mean square); both were chosen on training speakers, docs/recipes.md."""

_LEAST_COUNT = 8.0
"""A noised count below this says nothing; users with so few clips are hardly worth the noise."""

EXACT_CENTRE = CentreRelease(radius=math.inf, noise_multiplier=0.0)
"""The same without a bound and without noise, which no epsilon covers."""

EXACT_MEAN = NormaliserRelease(radius=math.inf, count_weight=1.0, noise_multiplier=0.0)
"""The same without a bound and without noise, which no epsilon covers."""


def released_mean(
    rows: Tensor, settings: NormaliserRelease, population: Population, noise: NoiseSource
) -> Tensor:
    """The user's mean as one Gaussian release, for training.

    Args:
        rows: Shape (utterances, inputs), with the population's centre taken off.
        settings: Clip, count weight and noise.
        population: Public statistics, for shrinkage.
        noise: Where the noise comes from.

    Returns:
        Shape (inputs,), float32.

    Guarantees:
        - Before noise, adding or removing one utterance moves the (inputs + 1) released numbers
          by at most ``settings.sensitivity`` in L2. All else is post-processing.
        - A row with a NaN or an infinity counts as zeros.
        - No utterances: noise alone.
    """
    count = torch.full((1,), settings.count_weight * len(rows), dtype=torch.float64)
    exact = torch.cat([_clipped_sum(rows, settings.radius), count])
    spread = settings.sensitivity * settings.noise_multiplier if settings.noise_multiplier else 0.0
    noised = exact + noise.normal(tuple(exact.shape), spread)
    if not spread:
        return (exact[:-1] / max(len(rows), 1)).float()
    utterances = (noised[-1] / settings.count_weight).clamp(min=_LEAST_COUNT)
    between = population.between.double()
    doubt = (spread / utterances) ** 2 + population.within.double() / utterances
    return (_trust(between, doubt) * noised[:-1] / utterances).float()
