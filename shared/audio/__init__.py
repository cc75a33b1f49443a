"""Signals: decoding, resampling, and the quality measures before features."""

from sottovoce.shared.audio.decoding import MIN_RATE, hash_file, load_signal, read_pieces
from sottovoce.shared.audio.signal import (
    MAX_AMPLITUDE,
    MAX_CHANNELS,
    MAX_RATE,
    SAMPLE_RATE,
    RecordingDefect,
    Signal,
    require_sample_rate,
    resample,
)

__all__ = [
    "MAX_AMPLITUDE",
    "MAX_CHANNELS",
    "MAX_RATE",
    "MIN_RATE",
    "SAMPLE_RATE",
    "RecordingDefect",
    "Signal",
    "hash_file",
    "load_signal",
    "read_pieces",
    "require_sample_rate",
    "resample",
]
