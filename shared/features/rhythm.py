"""Rhythm of an utterance: syllables, pauses, and lengths of voiced runs."""

import torch
from torch import Tensor
from torch.nn import functional as F

RHYTHM_NAMES = (
    "syllable_rate",
    "pause_ratio",
    "pause_rate",
    "voiced_ratio",
    "voiced_rate",
    "voiced_mean",
    "voiced_std",
    "duration",
)
"""Names of the values of ``measure_rhythm``; ``descriptors`` gives units and definitions."""

DIP_DB = 2.0
"""Least height of a syllable's nucleus above the dips on both sides."""

PAUSE_DB = 25.0
PAUSE_S = 0.15
_RATE = 100  # frames a second
_SMOOTH = 7  # frames, 70 ms: below a syllable, above a glottal cycle


def measure_rhythm(levels: Tensor, voiced: Tensor) -> Tensor:
    """Measure syllable rate, pauses and voiced runs of one utterance.

    Syllable nuclei after de Jong and Wempe, Praat script to detect syllable nuclei and measure
    speech rate automatically, Behavior Research Methods 41(2):385-390, 2009: peaks of the
    intensity that stand out of their dips and are voiced.

    Args:
        levels: Level of each frame in dB, shape (frames,), 100 frames a second.
        voiced: Whether each frame is voiced, shape (frames,), bool.

    Returns:
        The values named in ``RHYTHM_NAMES``, shape (8,), float32; finite for any finite input.

    Example:
        >>> levels = torch.full((100,), -20.0)  # one second of even voice
        >>> values = measure_rhythm(levels, torch.ones(100, dtype=torch.bool))
        >>> dict(zip(RHYTHM_NAMES, values.tolist(), strict=True))["voiced_ratio"]
        1.0
    """
    seconds = len(levels) / _RATE
    smooth = _smoothed(levels)
    loud = float(torch.quantile(smooth, 0.95))
    pauses = [run for run in _runs(smooth < loud - PAUSE_DB) if run >= PAUSE_S * _RATE]
    voices = torch.tensor(_runs(voiced), dtype=torch.float32) / _RATE
    return torch.tensor(
        [
            _count_nuclei(smooth, voiced, loud - PAUSE_DB) / seconds,
            sum(pauses) / len(levels),
            len(pauses) / seconds,
            float(voiced.float().mean()),
            len(voices) / seconds,
            float(voices.mean()) if len(voices) else 0.0,
            float(voices.std(correction=0)) if len(voices) else 0.0,
            seconds,
        ]
    )


def _count_nuclei(levels: Tensor, voiced: Tensor, floor: float) -> int:
    """How many voiced peaks above the floor rise out of both their dips."""
    count, peak, dip, climbing = 0, -torch.inf, torch.inf, True
    peak_voiced = False
    for level, voice in zip(levels.tolist(), voiced.tolist(), strict=True):
        if climbing:
            if level > peak:
                peak, peak_voiced = level, voice
            if level < peak - DIP_DB:  # the peak is over: it counts, and a dip begins
                count += peak_voiced and peak > floor
                dip, climbing = level, False
        else:
            dip = min(dip, level)
            if level > dip + DIP_DB:
                peak, peak_voiced, climbing = level, voice, True
    return count + (climbing and peak_voiced and peak > floor)


def _smoothed(levels: Tensor) -> Tensor:
    """Moving average over 70 ms, ends repeated, (frames,)."""
    half = _SMOOTH // 2
    padded = torch.cat([levels[:1].expand(half), levels, levels[-1:].expand(half)])
    return F.avg_pool1d(padded[None, None], _SMOOTH, stride=1)[0, 0]


def _runs(marked: Tensor) -> list[int]:
    """Lengths of the runs of marked frames, in order."""
    edges = torch.diff(F.pad(marked.to(torch.int64), (1, 1)))
    starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    return [int(length) for length in ends - starts]
