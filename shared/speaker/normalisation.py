"""Speaker mean normalisation: the user's mean is estimated and subtracted on the device.

At prediction the exact statistics are used, because they never leave the device. In training they
influence the gradients that do leave it: removing one utterance would move the features of every
other utterance, and per-utterance clipping would bound nothing. So the mean used in training is a
release of its own: a clipped, noised sum with its count, booked once and reused in all rounds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.errors import ModelError
from sottovoce.shared.privacy import clipping
from sottovoce.shared.privacy.gaussian_noise import GaussianSampler


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SpeakerStatistics:
    """Variation between and within public speakers in projected space; shapes (inputs,), float32.

    Attributes:
        between: Variance of speakers' means around the population's.
        within: Variance of one speaker's utterances around that speaker's mean.
        neutral_offset: Mean of neutral utterances minus the speaker's mean over all emotions.
        neutral_within: Variance of one speaker's neutral utterances around their mean.
        offset_variance: Variance of the neutral offset from speaker to speaker.
    """

    between: Tensor
    within: Tensor
    neutral_offset: Tensor
    neutral_within: Tensor
    offset_variance: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(getattr(self, name).shape) for name in self.__dataclass_fields__}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ModelError(f"speaker statistics of shapes {shapes}; all must be (inputs,)")

    def to_tensors(self) -> dict[str, Tensor]:
        """Convert the statistics to tensors by name, for a file or a message.

        Example:
            >>> statistics = default_statistics(3)
            >>> sorted(statistics.to_tensors())[:2]
            ['between', 'neutral_offset']
        """
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "SpeakerStatistics":
        """Rebuild statistics from :meth:`to_tensors`; other tensors beside them are ignored.

        Earlier releases stored ``offset_variance`` as ``offset_spread``; devices and finished runs
        still hold that name.

        Raises:
            KeyError: A statistic is missing.
            ModelError: Shapes that do not fit each other.

        Example:
            >>> tensors = default_statistics(3).to_tensors()
            >>> SpeakerStatistics.from_tensors(tensors).within
            tensor([1., 1., 1.])
        """
        if "offset_variance" not in tensors:
            tensors = {**tensors, "offset_variance": tensors["offset_spread"]}
        return cls(**{name: tensors[name] for name in cls.__dataclass_fields__})


def default_statistics(inputs: int) -> SpeakerStatistics:
    """Make statistics for use without a public corpus: speakers differ as utterances do.

    Example:
        >>> default_statistics(2).between
        tensor([1., 1.])
    """
    ones, zeros = torch.ones(inputs), torch.zeros(inputs)
    return SpeakerStatistics(
        between=ones, within=ones, neutral_offset=zeros, neutral_within=ones, offset_variance=zeros
    )


def average_frames(projected: Tensor, frames: Tensor) -> Tensor:
    """Average each utterance over its real frames.

    Args:
        projected: Shape (utterances, inputs) or (utterances, frames, inputs), padding
            arbitrary, also NaN or infinite.
        frames: Real frames of each utterance, shape (utterances,), int64.

    Returns:
        Shape (utterances, inputs).

    Example:
        >>> projected = torch.tensor([[[1.0], [3.0], [99.0]]])
        >>> average_frames(projected, torch.tensor([2]))
        tensor([[2.]])
    """
    if projected.dim() == 2:
        return projected
    steps = torch.arange(projected.shape[1])[None, :, None]
    # Filled, since 0 times an infinity is NaN.
    real = projected.masked_fill(steps >= frames[:, None, None], 0)
    return real.sum(1) / frames[:, None].clamp(min=1)


def expected_neutral_offset(
    speaker_statistics: SpeakerStatistics, direction: Tensor | None
) -> Tensor:
    """Compute the expected offset of neutral speech from a speaker's mean, shape (inputs,).

    Args:
        speaker_statistics: Public statistics.
        direction: Unit vector from ``neutral_direction.estimate_direction``; None if the shared
            model gives none.

    Example:
        >>> expected_neutral_offset(default_statistics(2), torch.tensor([1.0, 0.0]))
        tensor([0.1600, 0.0000])
    """
    if direction is None:
        return _PUBLIC_ONLY_WEIGHT * speaker_statistics.neutral_offset
    return _PUBLIC_WEIGHT * speaker_statistics.neutral_offset + _DIRECTION_WEIGHT * direction


def estimate_mean(
    rows: Tensor,
    speaker_statistics: SpeakerStatistics,
    *,
    is_neutral: bool,
    direction: Tensor | None = None,
) -> Tensor:
    """Estimate the user's mean for prediction, from clips of all kinds or from neutral clips.

    Clips of all kinds: their plain mean. Neutral clips: the best linear unbiased prediction
    (Henderson 1975) of each input, which is their mean, less the expected offset of neutral speech,
    shrunk towards the population's centre according to the error variance of so few clips.

    Args:
        rows: Shape (utterances, inputs), with the population's centre subtracted.
        speaker_statistics: Public statistics.
        is_neutral: Whether the clips are neutral enrolment clips.
        direction: Direction of neutral speech, as in :func:`expected_neutral_offset`.

    Returns:
        Shape (inputs,); zeros, the population's centre, when there are no clips.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> estimate_mean(rows, default_statistics(2), is_neutral=False)
        tensor([2., 0.])
        >>> estimate_mean(rows, default_statistics(2), is_neutral=True)  # shrunk: few clips
        tensor([1.3333, 0.0000])
    """
    if not len(rows):
        return torch.zeros_like(speaker_statistics.between)
    if not is_neutral:
        return rows.mean(0)
    error_variance = (
        speaker_statistics.neutral_within / len(rows) + speaker_statistics.offset_variance
    )
    # Neutral clips lie off the speaker's mean over all emotions, which is what training used.
    centred_mean = rows.mean(0) - expected_neutral_offset(speaker_statistics, direction)
    return _shrinkage_factor(speaker_statistics.between, error_variance) * centred_mean


def _shrinkage_factor(between: Tensor, error_variance: Tensor) -> Tensor:
    """Weight of an estimate with this error variance, shape (inputs,)."""
    return between / (between + error_variance).clamp(min=1e-12)


@dataclass(frozen=True, kw_only=True, slots=True)
class NormaliserRelease:
    """Settings of the noised mean that is used in training.

    Attributes:
        clip_norm: L2 bound R on one utterance's row, in projected units, from 1e-12 to 1e12;
            infinite only without noise.
        count_weight: Contribution of one utterance to the count coordinate, from 1e-12 to 1e12.
        noise_multiplier: Standard deviation of the noise over the sensitivity, 0 for no privacy.
    """

    clip_norm: float
    count_weight: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        validation.require_norm(count_weight=self.count_weight)
        validation.require_non_negative(noise_multiplier=self.noise_multiplier)
        if self.noise_multiplier or self.clip_norm != math.inf:
            validation.require_norm(clip_norm=self.clip_norm)

    @property
    def sensitivity(self) -> float:
        """L2 bound on one utterance's contribution: its clipped row and its count together.

        Example:
            >>> NormaliserRelease(clip_norm=3.0, count_weight=4.0, noise_multiplier=1.0).sensitivity
            5.0
        """
        return math.hypot(self.clip_norm, self.count_weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class CentreRelease:
    """Settings of the noised sum from which the server learns this population's centre.

    Public corpora were recorded elsewhere, so their mean is not that of these users. The sum runs
    over many devices, so little noise on each is enough.

    Attributes:
        clip_norm: L2 bound on one utterance's row, in projected units, from 1e-12 to 1e12;
            infinite only without noise.
        noise_multiplier: Standard deviation of the noise over ``clip_norm``, 0 for no privacy.
    """

    clip_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        validation.require_non_negative(noise_multiplier=self.noise_multiplier)
        if self.noise_multiplier or self.clip_norm != math.inf:
            validation.require_norm(clip_norm=self.clip_norm)


def release_sum(
    rows: Tensor, settings: CentreRelease, noise: GaussianSampler, *, max_norm: float = math.inf
) -> Tensor:
    """Release a device's contribution to the population's centre by the Gaussian mechanism.

    Args:
        rows: Shape (utterances, inputs).
        settings: Clip and noise.
        noise: Source of the noise.
        max_norm: L2 bound on the sum before noise: the contribution of the whole user.

    Returns:
        Shape (inputs,), float32.

    Guarantees:
        - Before noise, adding or removing one utterance moves the sum by at most
          ``settings.clip_norm`` in L2, and the whole user by at most ``max_norm``.
        - A row with a NaN or an infinity counts as zeros; without utterances, noise alone is
          released.
    """
    exact = sum_rows(rows, settings, max_norm=max_norm)
    noise_std = settings.clip_norm * settings.noise_multiplier if settings.noise_multiplier else 0.0
    return noise.add_noise(exact, noise_std).float()


def sum_rows(rows: Tensor, settings: CentreRelease, *, max_norm: float = math.inf) -> Tensor:
    """Sum a device's clipped rows, without noise, shape (inputs,), float64.

    Arguments and bounds as for :func:`release_sum`, which adds the noise; else a secure sum must.

    Example:
        >>> rows = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        >>> sum_rows(rows, CentreRelease(clip_norm=1.0, noise_multiplier=1.0)).tolist()
        [1.6, 0.8]
    """
    return clipping.clip_to_norm(_clipped_sum(rows, settings.clip_norm), max_norm)


def _clipped_sum(rows: Tensor, clip_norm: float) -> Tensor:
    """Sum of rows, each at most ``clip_norm`` long, broken ones left out; (inputs,), float64."""
    finite = torch.where(rows.isfinite().all(1, keepdim=True), rows, 0.0).double()
    norms = torch.linalg.vector_norm(finite, dim=1, keepdim=True)
    # A norm can be infinite only beyond float32, which rows cannot hold; 0 stays 0.
    total: Tensor = (finite * (clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0)).sum(0)
    return total


_PUBLIC_ONLY_WEIGHT = 0.5
"""Share of the public corpora's neutral offset that is expected of speakers of another corpus:
chosen on training speakers of RAVDESS and CREMA-D, where the full offset helps the one and hurts
the other."""

_PUBLIC_WEIGHT = 0.25
"""The same share if the shared model gives a direction as well."""

_DIRECTION_WEIGHT = 0.16
"""Offset of neutral speech along the model's direction, in units of the root mean square distance
of utterances from their speaker's mean; both were chosen on training speakers,
docs/research/speaker-mean.md."""

_MIN_COUNT = 8.0
"""Least value of a noised count: below it the noise is larger than the count."""

EXACT_CENTRE = CentreRelease(clip_norm=math.inf, noise_multiplier=0.0)
"""The exact centre, without clipping and noise: no epsilon covers it."""

EXACT_MEAN = NormaliserRelease(clip_norm=math.inf, count_weight=1.0, noise_multiplier=0.0)
"""The exact mean, without clipping and noise: no epsilon covers it."""


def release_mean(
    rows: Tensor,
    settings: NormaliserRelease,
    speaker_statistics: SpeakerStatistics,
    noise: GaussianSampler,
) -> Tensor:
    """Release the user's mean for training by the Gaussian mechanism.

    Args:
        rows: Shape (utterances, inputs), with the population's centre subtracted.
        settings: Clip, count weight and noise.
        speaker_statistics: Public statistics, for shrinkage.
        noise: Source of the noise.

    Returns:
        Shape (inputs,), float32.

    Guarantees:
        - Before noise, adding or removing one utterance moves the (inputs + 1) released numbers
          by at most ``settings.sensitivity`` in L2. Everything else is post-processing.
        - A row with a NaN or an infinity counts as zeros.
        - Without utterances, noise alone is released.
    """
    count = torch.full((1,), settings.count_weight * len(rows), dtype=torch.float64)
    exact = torch.cat([_clipped_sum(rows, settings.clip_norm), count])
    noise_std = (
        settings.sensitivity * settings.noise_multiplier if settings.noise_multiplier else 0.0
    )
    noised = noise.add_noise(exact, noise_std)
    # Without noise there is nothing to shrink, and no bound on the count is needed.
    if not noise_std:
        return (exact[:-1] / max(len(rows), 1)).float()
    # The count is noised in the same release: the exact count would reveal who is there.
    utterances = (noised[-1] / settings.count_weight).clamp(min=_MIN_COUNT)
    between = speaker_statistics.between.double()
    error_variance = (noise_std / utterances) ** 2 + speaker_statistics.within.double() / utterances
    return (_shrinkage_factor(between, error_variance) * noised[:-1] / utterances).float()
