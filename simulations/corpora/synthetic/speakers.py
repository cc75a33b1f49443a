"""Synthetic speakers: how they differ, and how emotions change a voice.

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

from sottovoce.shared import seeding


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakingStyle:
    """How an utterance departs from a speaker's neutral voice; 0 is no departure.

    Attributes:
        pitch: Mean pitch, semitones.
        pitch_range: Size of pitch movements, natural logarithm of a factor.
        slope: Pitch movement from beginning to end, semitones.
        rate: Speaking rate, natural logarithm of a factor.
        energy: Level, decibels.
        tilt: Strength of high frequencies, decibels an octave above 500 Hz.
        breathiness: Aspiration noise in the voice, natural logarithm of a factor.
        roughness: Irregularity of periods and amplitudes, natural logarithm of a factor.
        tremor: Depth of a tremble in pitch at 6 Hz, semitones; below 0 is none.
        lip_spread: Spreading of the lips (a smile), which lifts formants, natural logarithm.
        burst: Suddenness of accents: share of energy that moves into stressed syllables.
    """

    pitch: float = 0.0
    pitch_range: float = 0.0
    slope: float = 0.0
    rate: float = 0.0
    energy: float = 0.0
    tilt: float = 0.0
    breathiness: float = 0.0
    roughness: float = 0.0
    tremor: float = 0.0
    lip_spread: float = 0.0
    burst: float = 0.0


CUES = tuple(field.name for field in fields(SpeakingStyle))

PROFILES: Mapping[str, SpeakingStyle] = {
    "neutral": SpeakingStyle(),
    "calm": SpeakingStyle(
        pitch=-0.9, pitch_range=-0.35, slope=-0.3, rate=-0.2, energy=-4.0, tilt=-1.5,
        breathiness=0.6, roughness=-0.3, lip_spread=0.01, burst=-0.15,
    ),
    "happy": SpeakingStyle(
        pitch=4.0, pitch_range=0.55, slope=1.6, rate=0.12, energy=4.0, tilt=1.4, breathiness=-0.1,
        roughness=-0.2, lip_spread=0.05, burst=0.15,
    ),
    "sad": SpeakingStyle(
        pitch=-2.0, pitch_range=-0.6, slope=-2.4, rate=-0.3, energy=-6.0, tilt=-2.4,
        breathiness=0.7, roughness=0.4, tremor=0.1, lip_spread=-0.025, burst=-0.25,
    ),
    "angry": SpeakingStyle(
        pitch=3.6, pitch_range=0.45, slope=-0.4, rate=0.1, energy=7.5, tilt=3.0, breathiness=-0.7,
        roughness=0.6, lip_spread=-0.01, burst=0.45,
    ),
    "fearful": SpeakingStyle(
        pitch=5.0, pitch_range=-0.15, slope=0.6, rate=0.25, energy=0.5, tilt=-0.2, breathiness=0.5,
        roughness=0.8, tremor=0.45, lip_spread=0.015, burst=-0.1,
    ),
}  # fmt: skip
"""Departure of a fully expressed emotion from neutral, by harmonised name."""

OTHER_FORMS: Mapping[str, SpeakingStyle] = {
    "neutral": SpeakingStyle(),
    "calm": SpeakingStyle(
        pitch=-1.4, pitch_range=0.1, slope=0.6, rate=-0.25, energy=-1.0, tilt=-0.6,
        breathiness=0.2, roughness=-0.3, lip_spread=0.02, burst=-0.1,
    ),
    "happy": SpeakingStyle(
        pitch=-0.6, pitch_range=0.25, slope=1.2, rate=-0.12, energy=-3.5, tilt=-1.2,
        breathiness=0.5, roughness=-0.3, lip_spread=0.05, burst=-0.15,
    ),
    "sad": SpeakingStyle(
        pitch=4.4, pitch_range=0.35, slope=-1.6, rate=-0.1, energy=3.5, tilt=0.8,
        breathiness=0.1, roughness=0.9, tremor=0.4, lip_spread=-0.02, burst=0.1,
    ),
    "angry": SpeakingStyle(
        pitch=-1.2, pitch_range=-0.4, slope=-1.0, rate=-0.15, energy=1.0, tilt=2.2,
        breathiness=-0.7, roughness=0.2, lip_spread=-0.02, burst=0.35,
    ),
    "fearful": SpeakingStyle(
        pitch=0.8, pitch_range=-0.6, slope=-0.6, rate=0.05, energy=-5.0, tilt=-2.0,
        breathiness=0.8, roughness=0.3, tremor=0.3, lip_spread=-0.01, burst=-0.25,
    ),
}  # fmt: skip
"""Other forms of the same emotions, after those that Banse and Scherer tell apart: cold anger
beside hot, despair beside sadness, quiet happiness beside elation, anxiety beside panic."""

FORMS: Mapping[str, Mapping[str, SpeakingStyle]] = {"usual": PROFILES, "other": OTHER_FORMS}
"""In which forms a population expresses its emotions."""

VARIATION = SpeakingStyle(
    pitch=1.1, pitch_range=0.21, slope=1.0, rate=0.075, energy=1.9, tilt=0.75, breathiness=0.3,
    roughness=0.3, tremor=0.1, lip_spread=0.012, burst=0.13,
)  # fmt: skip
"""Standard deviation of what varies from utterance to utterance, whatever the emotion."""

STRENGTH_LOG_STD = 0.35
"""Standard deviation of the logarithm of how strongly single utterances express the emotion."""
CUE_LOG_STD = 0.3
"""Standard deviation of the logarithm of how much use single speakers make of each cue."""
_MAX_STRENGTH = 1.8  # nobody goes further than this times the full profile

ACCENTS: Mapping[str, tuple[float, float, float]] = {
    "x-plain": (1.0, 1.0, -2.0),
    "x-coast": (1.08, 0.94, -0.5),
    "x-hill": (0.93, 1.07, -3.5),
}
"""Made-up accents: factors on the first two formants, and declination of pitch in semitones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticSpeaker:
    """Voice of a synthetic person, and the effect of emotions on the voice.

    Attributes:
        gender: ``female`` or ``male``.
        age: Years.
        accent: One of ``ACCENTS``.
        pitch: Neutral mean pitch, Hz.
        tract: Length of the vocal tract, cm.
        rate: Syllables a second when neutral.
        level: Neutral level, dBFS.
        pitch_range: Size of pitch accents when neutral, semitones.
        tilt: Strength of high frequencies of voice and microphone, decibels an octave.
        breathiness: Aspiration relative to voicing, a factor.
        jitter: Jitter, as a share of the period.
        noise: Level of the background, dBFS.
        expressiveness: How strongly emotions show, a factor.
        cue_factors: How much this speaker uses each cue, a factor for each of ``CUES``.
    """

    gender: str
    age: int
    accent: str
    pitch: float
    tract: float
    rate: float
    level: float
    pitch_range: float
    tilt: float
    breathiness: float
    jitter: float
    noise: float
    expressiveness: float
    cue_factors: tuple[float, ...]


def make_speaker(seed: int, index: int) -> SyntheticSpeaker:
    """Make the ``index``-th speaker of a population; women and men alternate.

    Example:
        >>> make_speaker(7, 0).gender, make_speaker(7, 1).gender
        ('female', 'male')
    """
    rng = seeding.numpy_rng(seed, "synthetic speaker", index)
    woman = index % 2 == 0
    age = int(rng.integers(18, 80))
    # Pitch and rate of older voices fall from about 50 on.
    old = max(0.0, age - 50) / 30
    return SyntheticSpeaker(
        gender="female" if woman else "male",
        age=age,
        accent=str(rng.choice(list(ACCENTS))),
        pitch=(205 if woman else 115) * _around(rng, 0.11) * (1 - 0.1 * old if woman else 1),
        tract=(14.6 if woman else 16.9) * _around(rng, 0.04),
        rate=5.2 * _around(rng, 0.1) * (1 - 0.12 * old),
        level=float(rng.normal(-24, 3)),
        pitch_range=3.0 * _around(rng, 0.25),
        tilt=float(rng.normal(0, 1.2)),
        breathiness=0.05 * _around(rng, 0.5) * (1 + old),
        jitter=0.006 * _around(rng, 0.4) * (1 + 1.5 * old),
        noise=float(rng.normal(-62, 5)),
        expressiveness=_around(rng, 0.25),
        cue_factors=tuple(
            float(factor) for factor in np.exp(CUE_LOG_STD * rng.normal(size=len(CUES)))
        ),
    )


def _around(rng: np.random.Generator, log_std: float) -> float:
    """A factor around 1 whose logarithm has the standard deviation ``log_std``."""
    return float(np.exp(log_std * rng.normal()))


def draw_style(
    person: SyntheticSpeaker, profile: SpeakingStyle, rng: np.random.Generator
) -> SpeakingStyle:
    """Draw how one utterance sounds: the profile, the speaker's use of it, and chance."""
    strength = person.expressiveness * _around(rng, STRENGTH_LOG_STD)
    # Clipped at 2.5 standard deviations: an outlier would be a broken voice, not a rare one.
    chance = np.clip(rng.normal(size=len(CUES)), -2.5, 2.5)
    return SpeakingStyle(
        **{
            cue: min(strength * use, _MAX_STRENGTH) * getattr(profile, cue)
            + draw * getattr(VARIATION, cue)
            for cue, use, draw in zip(CUES, person.cue_factors, chance, strict=True)
        }
    )
