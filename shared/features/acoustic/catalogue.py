"""The table of acoustic descriptors: name, unit, definition and source of each."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from sottovoce.shared.features.acoustic.cepstrum import COEFFICIENTS
from sottovoce.shared.features.acoustic.functionals import STATISTICS
from sottovoce.shared.features.acoustic.spectrum import CONTRAST_EDGES

_GEMAPS = "Eyben et al. 2016 (GeMAPS)"
_PEETERS = "Peeters 2004"
_BOERSMA = "Boersma 1993"
_NUCLEI = "de Jong and Wempe 2009"


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptor:
    """One acoustic descriptor, as the reference lists its column.

    Attributes:
        name: Name of its column; of functionals, before ``_mean`` and so on.
        unit: Its unit; "1" for ratios and shares, "–" where there is none.
        definition: How it is computed.
        source: Paper that defines it.
        voiced_only: Whether it is defined in voiced frames only, and NaN in others.
    """

    name: str
    unit: str
    definition: str
    source: str
    voiced_only: bool = False


def _voiced(name: str, unit: str, definition: str, source: str) -> Descriptor:
    """A descriptor of voiced frames."""
    return Descriptor(name=name, unit=unit, definition=definition, source=source, voiced_only=True)


def _every(name: str, unit: str, definition: str, source: str) -> Descriptor:
    """A descriptor of every frame, or of the utterance."""
    return Descriptor(name=name, unit=unit, definition=definition, source=source)


def _cepstral(suffix: str, unit: str, definition: str, source: str) -> tuple[Descriptor, ...]:
    """The coefficients 1 to 13, or their slopes."""
    return tuple(
        _every(f"mfcc{suffix}_{order}", unit, f"{definition}, coefficient {order}", source)
        for order in range(1, COEFFICIENTS + 1)
    )


FRAME_DESCRIPTORS: Final[tuple[Descriptor, ...]] = (
    _voiced("f0", "Hz", "fundamental frequency, 75 to 600 Hz, by autocorrelation", _BOERSMA),
    _every(
        "voicing", "1", "voicing confidence: normalised autocorrelation at the period", _BOERSMA
    ),
    _every("level", "dB re full scale", "root mean square of the frame, at least -100", _PEETERS),
    _every("loudness", "–", "sum of 26 mel bands under equal loudness, to the power .33", _GEMAPS),
    *_cepstral("", "ln", "mel-frequency cepstrum of 26 bands", "Davis and Mermelstein 1980"),
    *_cepstral("_delta", "ln/frame", "slope of the cepstrum over five frames", "Furui 1986"),
    *_cepstral("_delta2", "ln/frame²", "slope of the slope over five frames", "Furui 1986"),
    _every("flux", "re full scale", "rms change of magnitudes below 5 kHz in 10 ms", _GEMAPS),
    _every("centroid", "Hz", "mean of frequency, weighted by magnitude", _PEETERS),
    _every("bandwidth", "Hz", "standard deviation of frequency around the centroid", _PEETERS),
    _every("rolloff", "Hz", "frequency below which 85 % of the magnitude lies", _PEETERS),
    _every("flatness", "dB", "geometric over arithmetic mean of the power spectrum", _PEETERS),
    *(
        _every(
            f"contrast_{number}",
            "dB",
            f"strongest over weakest bin, {low:g} to {high:g} Hz",
            "Jiang et al. 2002",
        )
        for number, (low, high) in enumerate(pairwise(CONTRAST_EDGES), start=1)
    ),
    _every("zero_crossing_rate", "1", "share of samples at which the sign turns", _PEETERS),
    _voiced("jitter", "1", "change of the period between cycles, over its mean", _BOERSMA),
    _voiced("shimmer", "dB", "change of the amplitude between cycles", _BOERSMA),
    _voiced("hnr", "dB", "harmonics-to-noise ratio, at most 50", _BOERSMA),
    *(
        _voiced(f"f{number}", "Hz", f"formant F{number}, from roots of order 10", "Makhoul 1975")
        for number in (1, 2, 3)
    ),
)
"""Descriptors of frames, in the order of their columns; those of 10 ms each."""

UTTERANCE_DESCRIPTORS: Final[tuple[Descriptor, ...]] = (
    _every("jitter_local", "1", "mean change of the period over the mean period", _BOERSMA),
    _every("shimmer_local", "dB", "mean change of the amplitude between cycles", _BOERSMA),
    _every("syllable_rate", "1/s", "voiced peaks of the level, 2 dB out of their dips", _NUCLEI),
    _every("articulation_rate", "1/s", "the same, without the time of pauses", _NUCLEI),
    _every("onset_rate", "1/s", "peaks of the rises of the mel bands", "Böck et al. 2012"),
    _every("pause_share", "1", "share in pauses: 150 ms, 25 dB below the loud parts", _NUCLEI),
    _every("pause_rate", "1/s", "such pauses", _NUCLEI),
    _every("voiced_share", "1", "share of voiced frames", _GEMAPS),
    _every("voiced_rate", "1/s", "stretches of voiced frames", _GEMAPS),
    _every("voiced_length_mean", "s", "mean length of voiced stretches", _GEMAPS),
    _every("voiced_length_std", "s", "standard deviation of their lengths", _GEMAPS),
    _every("duration", "s", "length of the recording", "–"),
)
"""Descriptors of a whole utterance, behind the functionals."""

FRAME_NAMES: Final[tuple[str, ...]] = tuple(one.name for one in FRAME_DESCRIPTORS)

FUNCTIONAL_NAMES: Final[tuple[str, ...]] = (
    *(f"{name}_{statistic}" for name in FRAME_NAMES for statistic in STATISTICS),
    *(one.name for one in UTTERANCE_DESCRIPTORS),
)
"""Columns of an utterance's row: six statistics of each descriptor, then those of the whole."""


def format_catalogue() -> str:
    """Format the table of all descriptors as Markdown.

    Example:
        >>> format_catalogue().splitlines()[2]
        '| descriptor | unit | definition | source | frames |'
    """
    lines: list[str] = []
    for title, table in (
        ("Frame by frame", FRAME_DESCRIPTORS),
        ("Of the utterance", UTTERANCE_DESCRIPTORS),
    ):
        lines += [f"## {title}", "", "| descriptor | unit | definition | source | frames |"]
        lines.append("|---|---|---|---|---|")
        for one in table:
            frames = "voiced" if one.voiced_only else "all"
            cells = (f"`{one.name}`", one.unit, one.definition, one.source, frames)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)
