"""A source-filter voice: from a speaker, a manner and a statement to samples.

Glottal pulses and noise go through a filter that is set anew every 10 ms: the spectrum of the
glottal flow's derivative (Doval, d'Alessandro and Henrich 2006, Acta Acustica 92:1026-1046), five
formants in cascade (Fant 1960; Klatt 1980, JASA 67:971-995) whose first three follow vowels after
Hillenbrand et al. (1995, JASA 97:3099-3111), and a band of friction. Frames are filtered in the
frequency domain and added up, so that no loop runs over samples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from sottovoce.simulations.corpora.synthetic.speakers import (
    ACCENTS,
    SpeakingStyle,
    SyntheticSpeaker,
)

SAMPLE_RATE = 16_000
_HOP, _WINDOW, _FFT = 160, 320, 512
_LEAD = 0.12  # seconds of background before and after the voice

Floats = NDArray[np.floating[Any]]

STATEMENTS = (
    "ma ni do ga le so",
    "be la tu mi ra ke no",
    "fa do gi se mu la",
    "no re ta li bo sa de",
    "gu mi fe la ko",
    "sa le di mo na be tu",
)
"""What synthetic speakers say: syllables without a meaning, in a made-up language."""

# First three formants in Hz of an average man's vowels.
_VOWELS = {
    "a": (770, 1330, 2520),
    "e": (480, 2090, 2690),
    "i": (340, 2320, 3000),
    "o": (500, 910, 2460),
    "u": (380, 1000, 2240),
}
# Seconds, voicing, friction, friction's centre in Hz, first two formants in Hz.
_CONSONANTS = {
    "b": (0.06, 0.15, 0.20, 1200, 300, 900),
    "d": (0.06, 0.15, 0.30, 4000, 300, 1700),
    "f": (0.09, 0.00, 0.30, 4500, 350, 1100),
    "g": (0.06, 0.15, 0.30, 2200, 300, 2000),
    "k": (0.08, 0.00, 0.40, 2000, 300, 1900),
    "l": (0.06, 0.60, 0.00, 2000, 360, 1200),
    "m": (0.07, 0.35, 0.00, 2000, 280, 1000),
    "n": (0.07, 0.35, 0.00, 2000, 280, 1600),
    "r": (0.06, 0.55, 0.00, 2000, 400, 1350),
    "s": (0.10, 0.00, 0.70, 6000, 350, 1700),
    "t": (0.08, 0.00, 0.45, 4500, 300, 1700),
}
_UPPER = (3500.0, 4500.0)
_BANDWIDTHS = np.array([70.0, 95.0, 130.0, 190.0, 260.0])
_MEAN_SYLLABLE_RATE = (
    5.2  # syllables a second, at which consonants last as long as they stand above
)
_TRACT = 16.9  # cm, of the average man whose formants stand above

_HZ = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
_OCTAVES = np.maximum(np.log2(np.maximum(_HZ, 1.0) / 500), 0.0)
_Z = np.exp(-2j * np.pi * _HZ / SAMPLE_RATE).astype(np.complex64)
_Z2 = _Z**2
_HANN = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Track:
    """What the voice does, one value a frame; ``formants`` has shape (frames, 5)."""

    pitch: Floats
    voicing: Floats
    friction: Floats
    centre: Floats
    formants: Floats


def synthesise_utterance(
    person: SyntheticSpeaker, manner: SpeakingStyle, statement: str, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Synthesise one utterance of a speaker.

    Args:
        person: The speaker.
        manner: How this utterance departs from the speaker's neutral voice.
        statement: One of ``STATEMENTS``, or any string of their syllables.
        rng: Decides everything that varies when the same is said again in the same manner.

    Returns:
        Samples in [-1, 1], shape (samples,), 16 kHz.
    """
    track = _track(person, manner, statement, rng)
    length = len(track.pitch) * _HOP
    rough = person.jitter * np.exp(manner.roughness)
    pulses = _frames(_pulses(track.pitch, rough, rng))
    noise = _frames(rng.normal(size=length).astype(np.float32))
    tract = _tract(track.formants)
    breath = person.breathiness * np.exp(manner.breathiness)
    tilt = 10 ** ((person.tilt + manner.tilt) * _OCTAVES / 20)
    voiced = pulses * _glottis(track.pitch) * track.voicing[:, None]
    hiss = noise * (breath * track.voicing[:, None])
    mouth = (voiced + hiss) * tract * tilt.astype(np.float32)
    spectra = mouth + noise * _friction(track)
    return _levelled(_overlap_add(spectra, length), person, manner, rng)


def _track(
    person: SyntheticSpeaker, manner: SpeakingStyle, statement: str, rng: np.random.Generator
) -> _Track:
    """Plan the utterance: knots at each consonant and vowel, joined by straight lines."""
    syllables = statement.split()
    consonants = np.array([_CONSONANTS[syllable[0]] for syllable in syllables])
    vowels = np.array([_VOWELS[syllable[1]] for syllable in syllables], dtype=float)
    vowels = vowels * np.exp(rng.normal(0, 0.03, vowels.shape))
    stress = np.where(np.arange(len(syllables)) % 2 == 0, 1.0, 0.0)
    clock = _clock(person.rate * np.exp(manner.rate), consonants[:, 0], stress, rng)
    loud = np.maximum(1.0 + (0.25 + manner.burst) * (stress - 0.5), 0.2)
    melody = _melody(person, manner, clock.times, clock.follow(stress, stress), rng)
    return _Track(
        pitch=person.pitch * 2 ** (melody / 12),
        voicing=clock.follow(consonants[:, 1], loud) * clock.inside,
        friction=clock.follow(consonants[:, 2], np.zeros(len(syllables))) * clock.inside,
        centre=clock.follow(consonants[:, 3], consonants[:, 3]),
        formants=_formants(person, manner, clock, consonants, vowels),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clock:
    """When things happen: knots (four a syllable), frames, and how much of a frame is speech."""

    knots: Floats
    times: Floats
    inside: Floats

    def follow(self, closed: Floats, opened: Floats) -> Floats:
        """A value, one a frame, that moves between consonants' and vowels' targets."""
        values = np.stack([closed, closed, opened, opened], axis=1).ravel()
        return np.asarray(np.interp(self.times, self.knots, values))


def _clock(rate: float, closures: Floats, stress: Floats, rng: np.random.Generator) -> _Clock:
    """Time the syllables of an utterance spoken at ``rate`` syllables a second."""
    stretch = np.exp(rng.normal(0, 0.08, len(stress)))
    spans = (1 / rate) * stretch * (0.9 + 0.2 * stress)
    spans[-1] *= 1.35  # speakers slow down at the end
    # A closure lasts at most 0.55 of its syllable, or fast speech would have no vowels.
    closed = np.minimum(closures * _MEAN_SYLLABLE_RATE / rate, 0.55 * spans)
    starts = _LEAD + np.concatenate([[0.0], np.cumsum(spans)[:-1]])
    marks = [0.35 * closed, 0.8 * closed, 0.75 * closed + 0.25 * spans, 0.2 * closed + 0.8 * spans]
    end = starts[-1] + spans[-1]
    times = np.arange(int((end + _LEAD) * SAMPLE_RATE / _HOP)) * _HOP / SAMPLE_RATE
    return _Clock(
        knots=np.stack([starts + mark for mark in marks], axis=1).ravel(),
        times=times,
        inside=np.clip(np.minimum(times - _LEAD, end - times) / 0.03, 0, 1),
    )


def _formants(
    person: SyntheticSpeaker,
    manner: SpeakingStyle,
    clock: _Clock,
    consonants: Floats,
    vowels: Floats,
) -> Floats:
    """Formants of this tract in this accent in Hz, shape (frames, 5)."""
    lift, shift, _ = ACCENTS[person.accent]
    first = clock.follow(consonants[:, 4], vowels[:, 0]) * lift
    second = clock.follow(consonants[:, 5], vowels[:, 1]) * shift
    third = clock.follow(np.full(len(vowels), 2500.0), vowels[:, 2])
    upper = np.broadcast_to(np.array(_UPPER), (len(clock.times), 2))
    scale = (_TRACT / person.tract) * np.exp(manner.lip_spread)
    stacked = np.column_stack([first, second, third, upper])
    # Below the Nyquist frequency of 8 kHz, or a formant would fold back.
    return np.asarray(np.minimum(stacked * scale, 7600.0))


def _melody(
    person: SyntheticSpeaker,
    manner: SpeakingStyle,
    times: Floats,
    stress: Floats,
    rng: np.random.Generator,
) -> Floats:
    """Pitch in semitones above the speaker's own, one value a frame."""
    progress = np.linspace(-0.5, 0.5, len(times))
    size = np.exp(manner.pitch_range)
    wander = np.interp(times, np.linspace(0, times[-1], 5), rng.normal(0, 0.6, 5))
    falling = (ACCENTS[person.accent][2] * size + manner.slope) * progress
    accents = person.pitch_range * size * (stress - 0.5) + size * wander
    tremble = max(manner.tremor, 0.0) * np.sin(2 * np.pi * (6 * times + rng.uniform()))
    return np.asarray(np.clip(manner.pitch + falling + accents + tremble, -14, 20))


def _pulses(pitch: Floats, rough: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """One impulse a glottal period, at a fraction of a sample, shape (samples,)."""
    length = len(pitch) * _HOP
    track = np.interp(np.arange(length) / _HOP, np.arange(len(pitch)), pitch)
    phase = np.cumsum(track) / SAMPLE_RATE
    count = int(phase[-1])
    at = np.interp(np.arange(1, count + 1), phase, np.arange(length))
    period = SAMPLE_RATE / track[at.astype(int)]
    at = np.clip(at + period * min(rough, 0.08) * rng.normal(size=count), 0, length - 2)
    # Energy per second stays the same at any pitch: fewer pulses are larger ones.
    force = np.sqrt(period) * np.exp(6 * min(rough, 0.08) * rng.normal(size=count))
    whole = at.astype(int)
    part = at - whole
    train = np.bincount(whole, force * (1 - part), length)
    return (train + np.bincount(whole + 1, force * part, length)).astype(np.float32)


def _glottis(pitch: Floats) -> NDArray[np.float32]:
    """Magnitude of the glottal flow's derivative, shape (frames, bins).

    It rises by 6 dB an octave to the glottal formant, a little above the pitch, and falls by 6 dB
    beyond it, by 12 dB beyond 3 kHz.
    """
    ratio = _HZ[None] / (0.95 * pitch[:, None])
    bump = ratio / np.sqrt((1 - ratio**2) ** 2 + (ratio / 1.2) ** 2)
    return np.asarray(bump / np.sqrt(1 + (_HZ / 3000.0) ** 2), dtype=np.float32)


def _tract(formants: Floats) -> NDArray[np.complex64]:
    """Transfer function of five formants in cascade, 1 at 0 Hz, shape (frames, bins)."""
    radius = np.exp(-np.pi * _BANDWIDTHS / SAMPLE_RATE)
    linear = (-2 * radius * np.cos(2 * np.pi * formants / SAMPLE_RATE)).astype(np.float32)
    square = (radius**2).astype(np.float32)
    response = np.ones((len(formants), len(_Z)), dtype=np.complex64)
    for index in range(formants.shape[1]):
        a, b = linear[:, index, None], square[index]
        response *= 1 + a * _Z + b * _Z2
        response *= 1 / (1 + a + b)
    return 1 / response


def _friction(track: _Track) -> NDArray[np.float32]:
    """Magnitude of the noise made at a narrow place in the mouth, shape (frames, bins)."""
    width = 0.35 * track.centre[:, None]
    band = np.exp(-0.5 * ((_HZ[None] - track.centre[:, None]) / width) ** 2)
    return (0.25 * track.friction[:, None] * band).astype(np.float32)


def _frames(samples: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Spectra of half-overlapping Hann windows, which add up to 1, shape (frames, bins)."""
    padded = np.concatenate([samples, np.zeros(_HOP, dtype=np.float32)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    return np.fft.rfft(windows * _HANN, _FFT).astype(np.complex64, copy=False)


def _overlap_add(spectra: NDArray[np.complex64], length: int) -> NDArray[np.float32]:
    """Back to samples, shape (samples,); what rings beyond three hops is cut."""
    # The filters ring: three hops hold a window of two and 10 ms of ringing.
    pieces = np.fft.irfft(spectra, _FFT)[:, : 3 * _HOP]
    parts = pieces.reshape(len(pieces), 3, _HOP)
    out = np.zeros((len(pieces) + 2, _HOP), dtype=np.float32)
    for hop in range(3):
        out[hop : hop + len(pieces)] += parts[:, hop]
    return out.ravel()[:length]


def _levelled(
    samples: NDArray[np.float32],
    person: SyntheticSpeaker,
    manner: SpeakingStyle,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Bring a voice to its level, and put it into its room."""
    level = person.level + manner.energy + rng.normal(0, 1.0)
    # Keeps silence from dividing by zero.
    now = np.sqrt(np.mean(samples**2)) + 1e-12
    voice = samples * (10 ** (level / 20) / now)
    hum = lfilter([0.436], [1, -0.9], rng.normal(size=len(samples)))  # of variance 1
    mixed = voice + hum * 10 ** (person.noise / 20)
    peak = np.abs(mixed).max()
    return np.asarray(mixed * min(1.0, 0.97 / peak), dtype=np.float32)
