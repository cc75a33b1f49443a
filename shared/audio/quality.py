"""Quality measures of a recording, taken before any features are computed."""

import enum
import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.audio import RecordingDefect, Signal
from sottovoce.shared.audio.signal import Samples
from sottovoce.shared.errors import RecordingFault

MIN_DURATION_S = 0.25
SILENT_DBFS = -70.0
QUIET_DBFS = -55.0
FULL_SCALE = 0.98
CLIPPED_FRACTION = 1e-3
NOISY_DB = 10.0

_FRAME_S = 0.020
_PIECE_SAMPLES = 1 << 21


class QualityFlag(enum.Flag):
    """Quality problems of a recording; any combination of them is possible."""

    SILENT = enum.auto()
    TOO_SHORT = enum.auto()
    CLIPPED = enum.auto()
    NOISY = enum.auto()
    QUIET = enum.auto()
    CUT_SHORT = enum.auto()
    CHANNELS_CANCEL = enum.auto()
    DEAD_CHANNEL = enum.auto()


_DEFECTS = {
    RecordingDefect.CUT_SHORT: QualityFlag.CUT_SHORT,
    RecordingDefect.CHANNELS_CANCEL: QualityFlag.CHANNELS_CANCEL,
    RecordingDefect.DEAD_CHANNEL: QualityFlag.DEAD_CHANNEL,
}

UNUSABLE = QualityFlag.SILENT | QualityFlag.TOO_SHORT


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityReport:
    """Quality measures of a recording, and the problems found.

    Attributes:
        flags: Problems of the recording; empty if there are none.
        duration_s: Duration in seconds.
        level_dbfs: Root mean square without the constant part, in dB re full scale, -120 or above.
        peak: Largest absolute sample, full scale is 1.
        clipped_fraction: Fraction of samples at full scale (``FULL_SCALE`` and above).
        snr_db: Estimated signal-to-noise ratio: the 95th minus the 10th percentile of the levels
            of 20 ms frames. Low for steady sounds of any kind, speech or not.
    """

    flags: QualityFlag
    duration_s: float
    level_dbfs: float
    peak: float
    clipped_fraction: float
    snr_db: float

    @property
    def is_usable(self) -> bool:
        """Whether the recording can be used; if not, fall back and never guess.

        Example:
            >>> measure_quality(Signal(np.zeros(16_000), 16_000)).is_usable
            False
        """
        return not self.flags & UNUSABLE

    @property
    def fault(self) -> RecordingFault | None:
        """Why the recording cannot be used; None where it can."""
        if QualityFlag.SILENT in self.flags:
            return RecordingFault.SILENT
        return RecordingFault.TOO_SHORT if QualityFlag.TOO_SHORT in self.flags else None

    @property
    def flag_summary(self) -> str:
        """The flags in words, with figures and limits, for a message; empty if there are none.

        Example:
            >>> measure_quality(Signal(np.zeros(16_000), 16_000)).flag_summary
            'silent (-120 dBFS, no frame above -70)'
        """
        words = {
            QualityFlag.SILENT: (
                f"silent ({self.level_dbfs:.0f} dBFS, no frame above {SILENT_DBFS:g})"
            ),
            QualityFlag.TOO_SHORT: f"too short ({self.duration_s:.3f} s, need {MIN_DURATION_S:g})",
            QualityFlag.CLIPPED: (
                f"clipped ({self.clipped_fraction:.2%} at full scale, {CLIPPED_FRACTION:.1%} may)"
            ),
            QualityFlag.NOISY: f"noisy ({self.snr_db:.0f} dB, want {NOISY_DB:g})",
            QualityFlag.QUIET: f"quiet ({self.level_dbfs:.0f} dBFS, want {QUIET_DBFS:g})",
            QualityFlag.CUT_SHORT: "cut short (the file ends before its headers say)",
            QualityFlag.CHANNELS_CANCEL: "of channels that cancel (the loudest one is read)",
            QualityFlag.DEAD_CHANNEL: "with a dead channel (it is left out)",
        }
        return ", ".join(text for flag, text in words.items() if flag in self.flags)

    def to_json(self) -> dict[str, float]:
        """Convert the fields to numbers, for JSON.

        Example:
            >>> report = measure_quality(Signal(np.zeros(16_000), 16_000))
            >>> QualityReport.from_json(report.to_json()) == report
            True
        """
        return asdict(self) | {"flags": self.flags.value}

    @classmethod
    def from_json(cls, fields: Mapping[str, float]) -> "QualityReport":
        """Rebuild a report from the fields that ``to_json`` returned."""
        flags = QualityFlag(int(fields["flags"]))
        return cls(**{**{name: float(v) for name, v in fields.items()}, "flags": flags})  # type: ignore[arg-type]


def measure_quality(signal: Signal) -> QualityReport:
    """Measure the quality of a signal and flag its problems.

    Limits: silent below -70 dBFS in its loudest 20 ms; too short below 0.25 s; clipped with more
    than 0.1 % of samples at full scale; noisy below an estimated 10 dB; quiet below -55 dBFS.
    Only silence and shortness make a recording unusable: whispered, distant and overdriven
    speech is still speech. What the recording's reader found wrong (``signal.defects``) becomes a
    flag as well.

    Args:
        signal: Any signal, any rate.

    Returns:
        The measures, all finite, and the flags.

    Example:
        >>> tone = np.sin(np.arange(16_000) / 5) / 2
        >>> round(measure_quality(Signal(tone, 16_000)).level_dbfs, 1)
        -9.0
    """
    # A constant offset of cheap microphones is inaudible and must not count as level.
    samples = signal.waveform
    # In pieces: an hour in double precision would take a gigabyte.
    starts = range(0, len(samples), _PIECE_SAMPLES)
    pieces = [samples[start : start + _PIECE_SAMPLES] for start in starts]
    offset = sum(float(piece.sum(dtype=np.float64)) for piece in pieces) / len(samples)
    levels = _frame_levels(samples, offset, max(1, round(_FRAME_S * signal.rate)))
    power = sum(float(np.square(piece.astype(np.float64) - offset).sum()) for piece in pieces)
    clipped = sum(int((np.abs(piece) >= FULL_SCALE).sum()) for piece in pieces)
    measured = QualityReport(
        flags=QualityFlag(0),
        duration_s=signal.duration_s,
        level_dbfs=_decibel(power / len(samples)),
        peak=max(float(-samples.min()), float(samples.max())),
        clipped_fraction=clipped / len(samples),
        snr_db=float(np.quantile(levels, 0.95) - np.quantile(levels, 0.10)),
    )
    flagged = _flagged(measured, loudest=float(levels.max()))
    found = [flag for defect, flag in _DEFECTS.items() if defect in signal.defects]
    return replace(flagged, flags=reduce(operator.or_, found, flagged.flags))


def _flagged(measured: QualityReport, *, loudest: float) -> QualityReport:
    """The same figures with the flags they call for."""
    silent = loudest < SILENT_DBFS
    marks = {
        QualityFlag.SILENT: silent,
        QualityFlag.TOO_SHORT: measured.duration_s < MIN_DURATION_S,
        QualityFlag.CLIPPED: measured.clipped_fraction > CLIPPED_FRACTION,
        # Silence has no signal whose noise or level could be judged.
        QualityFlag.NOISY: not silent and measured.snr_db < NOISY_DB,
        QualityFlag.QUIET: not silent and measured.level_dbfs < QUIET_DBFS,
    }
    flags = QualityFlag(0)
    for flag, raised in marks.items():
        flags |= flag if raised else QualityFlag(0)
    figures = asdict(measured) | {"flags": flags}
    return QualityReport(**figures)


def _frame_levels(samples: Samples, offset: float, length: int) -> NDArray[np.float64]:
    """Level of each half-overlapping frame in dBFS, shape (frames,), less a constant offset."""
    step = max(1, length // 2)
    # A signal shorter than one frame still gives one.
    frames = max(1, (len(samples) - length) // step + 1)
    at_once = max(1, _PIECE_SAMPLES // step)
    levels = []
    for first in range(0, frames, at_once):
        last = min(frames, first + at_once)
        part = samples[first * step : (last - 1) * step + length].astype(np.float64) - offset
        part = np.square(np.pad(part, (0, max(0, length - len(part)))))
        powers = np.lib.stride_tricks.sliding_window_view(part, length)[::step].mean(1)
        # The least power gives digital silence a finite level of -120 dBFS.
        levels.append(10 * np.log10(powers + 1e-12))
    return np.concatenate(levels)


def _decibel(power: float) -> float:
    """Power in dB, -120 or above."""
    return 10 * math.log10(power + 1e-12)
