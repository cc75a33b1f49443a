"""The set of acoustic descriptors: definitions, units, and their fixed order.

Frames are 10 ms apart and 25 ms long (pitch: 32 ms plus the lag). What lies around the speech is
cut off first. Statistics read frames of speech, those of descriptors marked "V" voiced frames only.

=================== ====== = ================================================================
name                unit     definition and source
=================== ====== = ================================================================
log_mel_1 .. 26     ln       energy in 26 mel bands, 20 Hz to 8 kHz, Slaney's scale
mfcc_1 .. 13        ln       their cepstrum (Davis & Mermelstein 1980), without coefficient 0
mfcc_delta_1 .. 13  ln/fr    its slope over five frames (Furui 1986)
mfcc_accel_1 .. 13  ln/fr2   the slope's slope
level               dB       root mean square re full scale
flux                ln       rms change of the log-mel bands since the frame before
centroid            kHz      centre of gravity of the power spectrum
rolloff             kHz      frequency below which 85 % of the power lies
flatness            dB       geometric over arithmetic mean of the power spectrum
slope_low           dB/kHz V line through the spectrum, 0 to 500 Hz (GeMAPS)
slope_high          dB/kHz V line through the spectrum, 500 to 1500 Hz (GeMAPS)
alpha_ratio         dB     V 50-1000 Hz over 1-5 kHz (GeMAPS, with the sign turned)
hammarberg          dB     V strongest bin of 0-2 kHz over that of 2-5 kHz (Hammarberg 1980)
f0                  st     V fundamental frequency above 27.5 Hz, YIN (de Cheveigné 2002)
hnr                 dB     V harmonics-to-noise ratio (Boersma 1993) from YIN's aperiodicity
jitter              1      V second difference of the period over three frames, a proxy
shimmer             dB     V second difference of the level over three frames, a proxy
=================== ====== = ================================================================

Statistics of each: mean, standard deviation, 10th, 50th and 90th percentile, slope per second.
Then eight measures of rhythm per utterance:

=============== ===== ===================================================================
syllable_rate   1/s   voiced peaks of the level, 2 dB out of their dips (de Jong & Wempe 2009)
pause_ratio     1     share of frames in pauses: 150 ms or more, 25 dB below the loud parts
pause_rate      1/s   such pauses
voiced_ratio    1     share of voiced frames
voiced_rate     1/s   runs of voiced frames
voiced_mean     s     their mean length
voiced_std      s     standard deviation of their lengths
duration        s     length of the utterance, margins cut
=============== ===== ===================================================================

GeMAPS: Eyben et al., The Geneva Minimalistic Acoustic Parameter Set for voice research and
affective computing, IEEE Trans. Affective Computing 7(2):190-202, 2016.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.shared import audio
from sottovoce.shared.audio import Signal, voice_activity
from sottovoce.shared.features import pitch, rhythm, spectral
from sottovoce.shared.features.fingerprint import compute_fingerprint

HOP = 160
"""Samples between frames, 10 ms at 16 kHz."""

BANDS, CEPSTRA = 26, 13
_SHAPE = ("centroid", "rolloff", "flatness", "slope_low", "slope_high", "alpha_ratio", "hammarberg")

FRAME_NAMES: tuple[str, ...] = (
    *(f"log_mel_{band}" for band in range(1, BANDS + 1)),
    *(f"mfcc_{index}" for index in range(1, CEPSTRA + 1)),
    *(f"mfcc_delta_{index}" for index in range(1, CEPSTRA + 1)),
    *(f"mfcc_accel_{index}" for index in range(1, CEPSTRA + 1)),
    "level",
    "flux",
    *_SHAPE,
    "f0",
    "hnr",
    "jitter",
    "shimmer",
)
"""Names of the frame-level descriptors, in the order of ``FrameDescriptors.frames``."""

VOICED_ONLY = frozenset(
    ("slope_low", "slope_high", "alpha_ratio", "hammarberg", "f0", "hnr", "jitter", "shimmer")
)
"""Descriptors whose statistics read voiced frames only, and are 0 without voiced frames."""

STATISTICS = ("mean", "std", "p10", "p50", "p90", "slope")

FUNCTIONAL_NAMES: tuple[str, ...] = (
    *(f"{name}_{statistic}" for statistic in STATISTICS for name in FRAME_NAMES),
    *rhythm.RHYTHM_NAMES,
)
"""Names of an utterance's functionals, in the order of ``compute_functionals``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameDescriptors:
    """Frame-level descriptors of one utterance.

    Attributes:
        frames: Shape (frames, 78), float32, finite, columns as in ``FRAME_NAMES``, 100 a second.
        voiced: Shape (frames,), bool.
        spoken: Which frames are speech, shape (frames,), bool; the others are pauses and margins.
    """

    frames: Tensor
    voiced: Tensor
    spoken: Tensor


def compute_descriptors(signal: Signal) -> FrameDescriptors:
    """Compute the frame-level descriptors of a signal, what lies around its speech cut off.

    Args:
        signal: At 16 kHz, any length.

    Returns:
        The descriptors, finite for silence, clicks and single samples, too.

    Raises:
        AudioError: The signal has another rate.

    Example:
        >>> silence = Signal(torch.zeros(1, 1_600), 16_000)  # 0.1 s
        >>> described = compute_descriptors(silence)
        >>> described.frames.shape, bool(described.voiced.any())
        (torch.Size([11, 78]), False)
    """
    audio.require_sample_rate(signal, audio.SAMPLE_RATE, reader="the descriptor set")
    cut = voice_activity.cut_to_speech(signal)
    samples = cut.signal.samples[0]
    power = spectral.power_spectra(samples, hop=HOP)
    bands = spectral.log_mel_energies(power, bands=BANDS)
    mfcc = spectral.mel_cepstra(bands, count=CEPSTRA)
    slopes = spectral.regression_deltas(mfcc)
    levels = spectral.frame_levels(samples, hop=HOP)
    found = pitch.track_pitch(samples, hop=HOP)
    shape = spectral.spectral_shape(power)
    single = [
        levels,
        spectral.spectral_flux(bands),
        *(shape[name] for name in _SHAPE),
        pitch.f0_semitones(found),
        pitch.harmonics_to_noise(found),
        pitch.jitter_proxy(found),
        pitch.shimmer_proxy(levels, found.voiced),
    ]
    columns = [bands, mfcc, slopes, spectral.regression_deltas(slopes), torch.stack(single, dim=1)]
    frames = torch.cat(columns, dim=1)
    spoken = torch.from_numpy(cut.mask_frames(len(frames), HOP))
    return FrameDescriptors(frames=frames, voiced=found.voiced, spoken=spoken)


def compute_functionals(described: FrameDescriptors) -> Tensor:
    """Compute statistics over time of every descriptor, and the measures of rhythm.

    Args:
        described: From ``compute_descriptors``.

    Returns:
        Shape (476,), float32, finite, named by ``FUNCTIONAL_NAMES``: all means, all standard
        deviations and so on, then the rhythm.

    Example:
        >>> silence = Signal(torch.zeros(1, 1_600), 16_000)
        >>> len(compute_functionals(compute_descriptors(silence))) == len(FUNCTIONAL_NAMES) == 476
        True
    """
    frames, voiced, pooled = described.frames, described.voiced, described.spoken
    only = torch.tensor([name in VOICED_ONLY for name in FRAME_NAMES])
    # True frame positions, so that a slope over time is not squeezed by pauses and unvoiced gaps.
    overall = _statistics(frames[pooled], pooled.nonzero()[:, 0])
    tonal = _statistics(frames[voiced], voiced.nonzero()[:, 0])
    levels = frames[:, FRAME_NAMES.index("level")]
    return torch.cat(
        [torch.where(only, tonal, overall).flatten(), rhythm.measure_rhythm(levels, voiced)]
    )


@dataclass(frozen=True, slots=True)
class Descriptors:
    """``descriptors``: statistics of the descriptor set and rhythm, (476,), float32."""

    name: str = "descriptors"
    is_framewise: bool = False

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the values."""
        return compute_fingerprint(self.name, module=__name__, settings={})

    def __call__(self, signal: Signal) -> Tensor:
        """Compute the functionals of one signal at 16 kHz, shape (476,), float32."""
        return compute_functionals(compute_descriptors(signal))


def _statistics(frames: Tensor, frame_indices: Tensor) -> Tensor:
    """Statistics over time of frames at the given indices, (statistics, descriptors)."""
    if len(frames) == 0:
        return torch.zeros(len(STATISTICS), frames.shape[1])
    quantiles = torch.quantile(frames, torch.tensor([0.1, 0.5, 0.9]), dim=0)
    time = frame_indices.float() * (HOP / audio.SAMPLE_RATE)
    # Centred: the slope of the regression line needs no intercept then.
    time = time - time.mean()
    mean = frames.mean(0, keepdim=True)
    slope = time @ (frames - mean) / time.square().sum().clamp_min(1e-6)
    return torch.cat([mean, frames.std(0, correction=0)[None], quantiles, slope[None]])
