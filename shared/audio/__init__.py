"""Signals: decoding, resampling, and the quality measures before features."""

from sottovoce.shared.audio.signal import (
    MAX_AMPLITUDE,
    SAMPLE_RATE,
    Signal,
    hash_file,
    load_signal,
    require_sample_rate,
    resample,
)

__all__ = [
    "MAX_AMPLITUDE",
    "SAMPLE_RATE",
    "Signal",
    "hash_file",
    "load_signal",
    "require_sample_rate",
    "resample",
]
