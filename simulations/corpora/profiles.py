"""How synthetic speakers differ, and what emotions do to a voice.

The directions of the emotions' effects follow the reviews of Scherer (2003, Speech Communication
40:227-256) and Juslin and Laukka (2003, Psychological Bulletin 129:770-814) and the measurements
of Banse and Scherer (1996, Journal of Personality and Social Psychology 70:614-636). The
sizes are ours: set so that a linear model on a small speech encoder finds emotions about as hard
as in acted speech. Calm stands for their tenderness.

Speakers: vocal tracts after Fitch and Giedd (1999, JASA 106:1511-1522), pitch with age after
Stathopoulos, Huber and Sussman (2011, JSLHR 54:1011-1021).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from sottovoce.shared import seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How an utterance departs from a speaker's neutral voice; 0 is no departure.

    Attributes:
        pitch: Mean pitch, semitones.
        range: Size of pitch movements, natural logarithm of a factor.
        slope: Pitch movement from beginning to end, semitones.
        rate: Speaking rate, natural logarithm of a factor.
        energy: Level, decibels.
        tilt: Strength of high frequencies, decibels an octave above 500 Hz.
        breath: Aspiration noise in the voice, natural logarithm of a factor.
        rough: Irregularity of periods and amplitudes, natural logarithm of a factor.
        tremor: Depth of a tremble in pitch at 6 Hz, semitones; below 0 is none.
        spread: Spreading of the lips (a smile), which lifts formants, natural logarithm.
        burst: Suddenness of accents: share of energy that moves into stressed syllables.
    """

    pitch: float = 0.0
    range: float = 0.0
    slope: float = 0.0
    rate: float = 0.0
    energy: float = 0.0
    tilt: float = 0.0
    breath: float = 0.0
    rough: float = 0.0
    tremor: float = 0.0
    spread: float = 0.0
    burst: float = 0.0


CUES = tuple(field.name for field in fields(Manner))

PROFILES: Mapping[str, Manner] = {
    "neutral": Manner(),
    "calm": Manner(
        pitch=-0.9, range=-0.35, slope=-0.3, rate=-0.2, energy=-4.0, tilt=-1.5, breath=0.6,
        rough=-0.3, spread=0.01, burst=-0.15,
    ),
    "happy": Manner(
        pitch=4.0, range=0.55, slope=1.6, rate=0.12, energy=4.0, tilt=1.4, breath=-0.1,
        rough=-0.2, spread=0.05, burst=0.15,
    ),
    "sad": Manner(
        pitch=-2.0, range=-0.6, slope=-2.4, rate=-0.3, energy=-6.0, tilt=-2.4, breath=0.7,
        rough=0.4, tremor=0.1, spread=-0.025, burst=-0.25,
    ),
    "angry": Manner(
        pitch=3.6, range=0.45, slope=-0.4, rate=0.1, energy=7.5, tilt=3.0, breath=-0.7,
        rough=0.6, spread=-0.01, burst=0.45,
    ),
    "fearful": Manner(
        pitch=5.0, range=-0.15, slope=0.6, rate=0.25, energy=0.5, tilt=-0.2, breath=0.5,
        rough=0.8, tremor=0.45, spread=0.015, burst=-0.1,
    ),
}  # fmt: skip
"""Departure of a fully expressed emotion from neutral, by harmonised name."""

VARIATION = Manner(
    pitch=1.1, range=0.21, slope=1.0, rate=0.075, energy=1.9, tilt=0.75, breath=0.3,
    rough=0.3, tremor=0.1, spread=0.012, burst=0.13,
)  # fmt: skip
"""Standard deviation of what varies from utterance to utterance, whatever the emotion."""

STRENGTH_SPREAD = 0.35
"""Standard deviation of the logarithm of how strongly single utterances express the emotion."""
CUE_SPREAD = 0.3
"""Standard deviation of the logarithm of how much use single speakers make of each cue."""
_MOST = 1.8  # nobody goes further than this times the full profile

ACCENTS: Mapping[str, tuple[float, float, float]] = {
    "x-plain": (1.0, 1.0, -2.0),
    "x-coast": (1.08, 0.94, -0.5),
    "x-hill": (0.93, 1.07, -3.5),
}
"""Made-up accents: factors on the first two formants, and declination of pitch in semitones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaker:
    """A synthetic person.

    Attributes:
        gender: ``female`` or ``male``.
        age: Years.
        accent: One of ``ACCENTS``.
        pitch: Neutral mean pitch, Hz.
        tract: Length of the vocal tract, cm.
        rate: Syllables a second when neutral.
        level: Neutral level, dBFS.
        range: Size of pitch accents when neutral, semitones.
        tilt: Strength of high frequencies of voice and microphone, decibels an octave.
        breath: Aspiration relative to voicing, a factor.
        rough: Jitter, as a share of the period.
        noise: Level of the background, dBFS.
        expressiveness: How strongly emotions show, a factor.
        use: How much of each cue's profile this speaker uses, one factor for each of ``CUES``.
    """

    gender: str
    age: int
    accent: str
    pitch: float
    tract: float
    rate: float
    level: float
    range: float
    tilt: float
    breath: float
    rough: float
    noise: float
    expressiveness: float
    use: tuple[float, ...]


def speaker(seed: int, index: int) -> Speaker:
    """The ``index``-th speaker of a population; women and men alternate."""
    rng = seeds.numpy_rng(seed, "synthetic speaker", index)
    woman = index % 2 == 0
    age = int(rng.integers(18, 80))
    old = max(0.0, age - 50) / 30
    return Speaker(
        gender="female" if woman else "male",
        age=age,
        accent=str(rng.choice(list(ACCENTS))),
        pitch=(205 if woman else 115) * _around(rng, 0.11) * (1 - 0.1 * old if woman else 1),
        tract=(14.6 if woman else 16.9) * _around(rng, 0.04),
        rate=5.2 * _around(rng, 0.1) * (1 - 0.12 * old),
        level=float(rng.normal(-24, 3)),
        range=3.0 * _around(rng, 0.25),
        tilt=float(rng.normal(0, 1.2)),
        breath=0.05 * _around(rng, 0.5) * (1 + old),
        rough=0.006 * _around(rng, 0.4) * (1 + 1.5 * old),
        noise=float(rng.normal(-62, 5)),
        expressiveness=_around(rng, 0.25),
        use=tuple(float(factor) for factor in np.exp(CUE_SPREAD * rng.normal(size=len(CUES)))),
    )


def _around(rng: np.random.Generator, spread: float) -> float:
    """A factor around 1 whose logarithm has the standard deviation ``spread``."""
    return float(np.exp(spread * rng.normal()))


def manner(person: Speaker, emotion: str, rng: np.random.Generator) -> Manner:
    """How one utterance of a speaker sounds: the profile, personal use of it, and chance."""
    strength = person.expressiveness * _around(rng, STRENGTH_SPREAD)
    profile, chance = PROFILES[emotion], np.clip(rng.normal(size=len(CUES)), -2.5, 2.5)
    return Manner(
        **{
            cue: min(strength * use, _MOST) * getattr(profile, cue) + draw * getattr(VARIATION, cue)
            for cue, use, draw in zip(CUES, person.use, chance, strict=True)
        }
    )
