"""Simulated rooms, microphones and lines, for what a model must bear on recordings of no corpus.

One channel is a room (exponentially decaying noise as its impulse response), an equaliser that
bends smoothly over frequency, a band, and noise that is stationary and coloured. All of it is made,
nothing is downloaded; a seed decides every draw.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared import seeding
from sottovoce.shared.audio import Signal
from sottovoce.simulations.corpora.corpus import Clip

_DECAY_S: Final = (0.1, 0.6)
"""Reverberation time (RT60) of rooms, from a furnished to an empty one."""

_DIRECT_DB: Final = (0.0, 12.0)
"""Level of the direct sound over the room's."""

_LOW_HZ: Final = (30.0, 300.0)
_HIGH_HZ: Final = (3_400.0, 8_000.0)
_SNR_DB: Final = (12.0, 45.0)
_BEND_DB: Final = 8.0
"""Deviation of the equaliser's gain at ``_BENDS`` points, spread evenly in log frequency."""

_BENDS: Final = 6

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelClip:
    """Clip behind another room, microphone and line.

    Attributes:
        clip: The clip.
        seed: Of the channel; clips of one seed share it.
    """

    clip: Clip
    seed: int

    @property
    def clip_id(self) -> str:
        """The clip's own name."""
        return self.clip.clip_id

    def content_key(self) -> str:
        """Hash all that decides its sound."""
        described = f"{self.clip.content_key()} channel {self.seed} 1"
        return hashlib.sha256(described.encode()).hexdigest()

    def load_signal(self) -> Signal:
        """Load the clip through its channel."""
        return pass_channel(self.clip.load_signal(), seed=self.seed)


def pass_channel(signal: Signal, *, seed: int) -> Signal:
    """Pass a recording through a channel that a seed decides.

    Args:
        signal: The recording; its first channel is taken.
        seed: Of the channel.

    Returns:
        A recording of the same length and rate, at the level of the original.

    Example:
        >>> tone = Signal(np.sin(np.arange(16_000) / 8)[None], 16_000)
        >>> pass_channel(tone, seed=1).duration_s
        1.0
    """
    rng = np.random.default_rng(seeding.derive_seed(seed, "channel"))
    dry = np.asarray(signal.samples, dtype=np.float64)[0]
    response = _room_response(rng, signal.rate)
    # A power of two, and long enough that the room does not wrap around to the start.
    size = 1 << (len(dry) + len(response) - 1).bit_length()
    frequencies = np.fft.rfftfreq(size, 1 / signal.rate).astype(np.float64)
    spectrum = np.fft.rfft(dry, size) * np.fft.rfft(response, size)
    wet = np.fft.irfft(spectrum * _gain(rng, frequencies), size)[: len(dry)]
    level = _rms(dry)
    # The channel bends the spectrum; how loud people speak is no part of it.
    wet *= level / max(_rms(wet), 1e-9)
    noise = _noise(rng, size, frequencies)[: len(dry)]
    wet += noise * (level * 10 ** (-rng.uniform(*_SNR_DB) / 20) / max(_rms(noise), 1e-9))
    return Signal(wet.astype(np.float32)[None], signal.rate)


def _room_response(rng: np.random.Generator, rate: int) -> Floats:
    """Impulse response: the direct sound, then noise that falls by 60 dB in the decay time."""
    decay = rng.uniform(*_DECAY_S)
    times = np.arange(round(decay * rate)) / rate
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / decay)
    tail *= 10 ** (-rng.uniform(*_DIRECT_DB) / 20) / max(
        float(np.sqrt(np.square(tail).sum())), 1e-9
    )
    tail[0] = 1.0  # the direct sound, to whose energy the tail was set
    return tail


def _gain(rng: np.random.Generator, frequencies: Floats) -> Floats:
    """Gain at each frequency: a smooth equaliser between a low and a high cut-off."""
    # Hearing and microphones alike bend by octaves, not by hertz.
    octaves = np.log2(np.clip(frequencies, 60, 8_000) / 60)
    points = np.linspace(0, octaves.max(), _BENDS)
    bend = np.interp(octaves, points, rng.normal(0, _BEND_DB, _BENDS))
    low, high = rng.uniform(*_LOW_HZ), rng.uniform(*_HIGH_HZ)
    # Butterworth magnitudes of fourth order.
    passed = 1 / np.sqrt(1 + (low / np.maximum(frequencies, 1e-3)) ** 8)
    passed /= np.sqrt(1 + (frequencies / high) ** 8)
    gain: Floats = 10 ** (bend / 20) * passed
    return gain


def _noise(rng: np.random.Generator, size: int, frequencies: Floats) -> Floats:
    """Noise between white and brown."""
    slope = rng.uniform(0, 1)  # amplitude falls by it: 0 is white, 1 brown
    white = np.fft.rfft(rng.standard_normal(size))
    # Level below 50 Hz: a slope without end would be all rumble.
    return np.fft.irfft(white / np.maximum(frequencies, 50) ** slope, size)


def _rms(samples: Floats) -> float:
    return float(np.sqrt(np.square(samples).mean()))
