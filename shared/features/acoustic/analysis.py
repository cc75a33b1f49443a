"""Analysis of one signal: all descriptors, frame by frame and of the utterance.

Rules for what is not defined: descriptors of voiced frames are NaN in others; the shape of a
spectrum is NaN in digital silence; a functional over no value is NaN, and a slope over fewer than
two. A signal of any length from one sample on gives at least one frame, and no warning.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared import audio
from sottovoce.shared.audio import Signal
from sottovoce.shared.features.acoustic import (
    cepstrum,
    formants,
    pitch,
    rhythm,
    spectrum,
    voice_quality,
)
from sottovoce.shared.features.acoustic.catalogue import FRAME_NAMES, UTTERANCE_DESCRIPTORS
from sottovoce.shared.features.acoustic.framing import Array, compute_spectra
from sottovoce.shared.features.acoustic.functionals import compute_statistics
from sottovoce.shared.features.acoustic.voice_quality import average_over_frames


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AcousticDescription:
    """Acoustic descriptors of one recording.

    Attributes:
        frames: Shape (frames, descriptors), float32, columns as in ``FRAME_NAMES``, 100 a second;
            frame ``i`` is centred on ``i / 100`` s. NaN where a descriptor is not defined.
        voiced: Which frames are voiced, shape (frames,).
        utterance: Measures of the whole recording by name, as in ``UTTERANCE_DESCRIPTORS``.
    """

    frames: Array
    voiced: NDArray[np.bool_]
    utterance: Mapping[str, float]

    def compute_functionals(self) -> Array:
        """Compute the row of the recording, shape as ``FUNCTIONAL_NAMES``, float32."""
        # By descriptor: all statistics of the first stand first.
        statistics = compute_statistics(self.frames).T.ravel()
        whole = [self.utterance[one.name] for one in UTTERANCE_DESCRIPTORS]
        return np.concatenate([statistics, np.array(whole, dtype=np.float32)])


def describe_speech(signal: Signal) -> AcousticDescription:
    """Compute the acoustic descriptors of a recording as it is, pauses included.

    Args:
        signal: At any rate; it is resampled to 16 kHz. Any length from one sample.

    Returns:
        Descriptors of every frame and of the whole.

    Example:
        >>> time = np.arange(16_000) / 16_000
        >>> hum = describe_speech(Signal(np.sin(2 * np.pi * 220 * time), 16_000))
        >>> round(float(hum.frames[50, FRAME_NAMES.index("f0")]))
        220
    """
    samples = audio.resample(signal, audio.SAMPLE_RATE).waveform
    spectra = compute_spectra(samples)
    bands = cepstrum.measure_bands(spectra)
    cepstra = cepstrum.compute_cepstra(bands)
    slopes = cepstrum.compute_deltas(cepstra)
    level = spectrum.measure_level(samples)
    track = pitch.track_f0(samples)
    cycles = voice_quality.find_cycles(samples, track)
    changes = voice_quality.measure_perturbation(cycles)
    found = {
        "f0": track.f0_hz,
        "voicing": track.strength,
        "level": level,
        "loudness": cepstrum.measure_loudness(bands),
        "flux": spectrum.measure_flux(spectra),
        "zero_crossing_rate": spectrum.count_zero_crossings(samples),
        "jitter": average_over_frames(changes.jitter, changes.positions, track.voiced),
        "shimmer": average_over_frames(changes.shimmer_db, changes.positions, track.voiced),
        "hnr": voice_quality.measure_hnr(track),
        **spectrum.measure_shape(spectra, level),
        **_name_columns("mfcc_", cepstra),
        **_name_columns("mfcc_delta_", slopes),
        **_name_columns("mfcc_delta2_", cepstrum.compute_deltas(slopes)),
        **_name_columns("f", formants.find_formants(spectra, track.voiced)),
    }
    whole = {
        "jitter_local": _mean(changes.jitter),
        "shimmer_local": _mean(changes.shimmer_db),
        **rhythm.measure_rhythm(level, track.voiced, rhythm.measure_onset_strength(bands)),
        "duration": signal.duration_s,
    }
    columns = np.empty((len(level), len(FRAME_NAMES)), dtype=np.float32)
    for index, name in enumerate(FRAME_NAMES):
        columns[:, index] = found[name]
    return AcousticDescription(frames=columns, voiced=track.voiced, utterance=whole)


def _name_columns(prefix: str, values: Array) -> dict[str, Array]:
    """Columns by name, numbered from 1."""
    return {f"{prefix}{number}": column for number, column in enumerate(values.T, start=1)}


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is defined; NaN without any."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")
