"""Signals: audio with its sampling rate, and resampling.

Everything here is NumPy, so that a program that only predicts needs no torch.
"""

import enum
import math
import operator
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.errors import AudioError, RecordingFault

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_RATE = 16_000
"""Sampling rate of every built-in extractor, in Hz."""

MAX_RATE = 768_000
"""Highest sampling rate of a signal in Hz, twice that of any studio."""

MAX_CHANNELS = 32
"""Most channels of a recording."""

MAX_AMPLITUDE = 100.0
"""Largest sample accepted as audio; full scale is 1. Integers stored as floats lie above."""

ONE_PASS_SAMPLES = 1 << 23
"""Longest signal that is resampled in one pass; longer ones are converted in parts."""

Samples = NDArray[np.float32]

_LARGEST_KERNEL = 1 << 24
_LEAST_OUTPUTS = 64  # of a product of matrices: fewer would make it slow
_MOST_INPUTS = 1 << 21  # values that are laid out for one product: 8 MB
_CHUNK_S, _GUARD_S = 16, 1
_FULL_SCALE = {"int8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}

# The parameters of resampy's "kaiser_best" filter.
_ZERO_CROSSINGS, _ROLLOFF, _KAISER_BETA = 64, 0.9475937167399596, 14.769656459379492


class RecordingDefect(enum.Flag):
    """Defects of a recording that only its reader sees; any combination is possible."""

    CUT_SHORT = enum.auto()
    """The file ends, or breaks off, before its own headers say."""

    CHANNELS_CANCEL = enum.auto()
    """The mean of the channels loses the sound; the loudest channel stands for all."""

    DEAD_CHANNEL = enum.auto()
    """A channel holds nothing beside others; it is left out."""


NO_DEFECT = RecordingDefect(0)
"""The value of recordings without any."""


@dataclass(frozen=True, slots=True, eq=False, init=False)
class Signal:
    """Mono audio with its sampling rate.

    Attributes:
        waveform: Shape (samples,), float32, full scale is 1; finite, at least one sample.
        rate: Samples a second, above 0.
        defects: What the recording's reader found wrong with it.
    """

    waveform: Samples
    rate: int
    defects: RecordingDefect

    def __init__(
        self,
        samples: "Tensor | np.ndarray",
        rate: float,
        *,
        defects: RecordingDefect = NO_DEFECT,
    ) -> None:
        """Take samples in the layouts of torchaudio, soundfile and NumPy.

        Args:
            samples: One channel of any length: shape (samples,), or (1, samples) as torchaudio
                loads it, or (samples, 1) as soundfile reads it. Several channels: a tensor of shape
                (channels, samples) or a NumPy array of shape (samples, channels), at most
                ``MAX_CHANNELS``; they are joined as :func:`mix_channels` does. Floats of any width
                have full scale 1; int8, int16 and int32 are divided by their own full scale, uint8
                is centred at 128 as in WAV.
            rate: Samples a second, a whole number from 1 to ``MAX_RATE``; 44100.0 is one.
            defects: What the recording's reader found wrong with it.

        Raises:
            AudioError: Samples of another kind or shape, none at all, NaN, infinity or samples far
                beyond full scale; or another rate.
        """
        whole = require_rate(rate)
        channels = _as_channels(samples, "the signal")
        require_samples(channels, "the signal")
        mono, found = mix_channels(channels)
        object.__setattr__(self, "waveform", mono)
        object.__setattr__(self, "rate", whole)
        object.__setattr__(self, "defects", defects | found)

    @property
    def samples(self) -> "Tensor":
        """The waveform as a tensor, shape (1, samples), in the same memory; loads torch."""
        import torch

        return torch.from_numpy(self.waveform)[None]

    @property
    def duration_s(self) -> float:
        """Duration of the signal in seconds.

        Example:
            >>> Signal(np.zeros(8_000), 16_000).duration_s
            0.5
        """
        return len(self.waveform) / self.rate

    def cut(self, start_s: float, seconds: float) -> "Signal":
        """Cut a part out of the signal; it shares the samples, and keeps the defects.

        Args:
            start_s: Where the part begins, in seconds, 0 or above and before the end.
            seconds: How long it is, above 0; less where the signal ends before.

        Example:
            >>> Signal(np.zeros(8_000), 16_000).cut(0.25, 10).duration_s
            0.25
        """
        first = round(start_s * self.rate)
        last = first + max(1, round(seconds * self.rate))
        return self.replace_waveform(self.waveform[first:last])

    def replace_waveform(self, waveform: Samples, *, rate: int = 0) -> "Signal":
        """Make a signal of another waveform with this one's defects, without a copy.

        Args:
            waveform: Shape (samples,), float32.
            rate: Its sampling rate in Hz; 0 is this signal's.

        Raises:
            AudioError: It holds no samples, NaN, infinity, or samples far beyond full scale.

        Example:
            >>> louder = Signal(np.ones(8), 16_000).replace_waveform(np.full(8, 2, np.float32))
            >>> float(louder.waveform.max())
            2.0
        """
        require_samples(waveform, "the signal")
        signal = object.__new__(Signal)
        object.__setattr__(signal, "waveform", waveform)
        object.__setattr__(signal, "rate", rate or self.rate)
        object.__setattr__(signal, "defects", self.defects)
        return signal


class ChannelLevels:
    """Power of channels and of their mean, added up block by block.

    Args:
        channels: How many channels.

    Example:
        >>> levels = ChannelLevels(2)
        >>> levels.add(np.array([[0.5, -0.5], [0.25, -0.25]], dtype=np.float32))
        >>> levels.choose_channels()
        ((0,), <RecordingDefect.CHANNELS_CANCEL: 2>)
    """

    _DEAD = 1e-6  # 60 dB below the loudest channel
    _CANCELLED = 0.1  # 10 dB below what the mean of unrelated channels has
    _SHARE = 0.1  # of the sound
    _FRAME = 2_048

    def __init__(self, channels: int) -> None:
        self._power = np.zeros(channels)
        self._pair_power = np.zeros(2)  # all of it, and that of frames whose mean cancels

    def add(self, block: np.ndarray) -> None:
        """Add a block of shape (samples, channels)."""
        # What is no number is refused by the reader, in words.
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(block), self._FRAME):
                self._add_frame(block[start : start + self._FRAME].astype(np.float64))

    def _add_frame(self, frame: np.ndarray) -> None:
        """Add some 0.1 s, shape (samples, channels), float64."""
        # A constant offset is inaudible, and must not hide that the rest cancels.
        frame = frame - frame.mean(axis=0)
        power = np.square(frame).sum(axis=0)
        self._power += power
        live = power > self._DEAD * power.max()
        mixed = np.square(frame[:, live].mean(axis=1)).sum() if live.any() else 0.0
        unrelated = power[live].sum() / max(1, live.sum()) ** 2
        cancels = live.sum() > 1 and mixed < self._CANCELLED * unrelated
        self._pair_power += power.max() * np.array([1.0, float(cancels)])

    def choose_channels(self) -> tuple[tuple[int, ...], RecordingDefect]:
        """Choose the channels whose mean stands for all, and name their defects.

        Returns:
            The live channels; the loudest one alone where a tenth of the sound cancels in the mean
            of all. All of them where all are silent.
        """
        loudest = float(self._power.max())
        if loudest == 0:
            return tuple(range(len(self._power))), NO_DEFECT
        live = tuple(np.flatnonzero(self._power > self._DEAD * loudest).tolist())
        dead = NO_DEFECT
        if len(live) < len(self._power):
            dead = RecordingDefect.DEAD_CHANNEL
        if self._pair_power[1] > self._SHARE * self._pair_power[0]:
            return (int(self._power.argmax()),), dead | RecordingDefect.CHANNELS_CANCEL
        return live, dead


def mix_channels(channels: Samples) -> tuple[Samples, RecordingDefect]:
    """Join channels to one: their mean, unless channels are dead or cancel each other.

    Channels 60 dB below the loudest are dead and left out. Where a tenth of the sound is lost in
    the mean, as with a plug of reversed polarity, the loudest channel stands for all.

    Args:
        channels: Shape (channels, samples), float32, finite.

    Returns:
        Shape (samples,), float32, in the same memory for one channel; and what was wrong.

    Example:
        >>> left = np.array([0.5, -0.5, 0.25, -0.25], dtype=np.float32)
        >>> mono, defects = mix_channels(np.stack([left, -left]))
        >>> np.array_equal(mono, left), defects
        (True, <RecordingDefect.CHANNELS_CANCEL: 2>)
    """
    if channels.shape[0] == 1:
        return channels[0], NO_DEFECT
    levels = ChannelLevels(channels.shape[0])
    levels.add(channels.T)
    chosen, defects = levels.choose_channels()
    return mean_of_channels(channels.T, chosen), defects


def mean_of_channels(block: np.ndarray, chosen: tuple[int, ...]) -> np.ndarray:
    """Average the chosen columns of a block, shape (samples, channels) to (samples,), float32."""
    picked = block if len(chosen) == block.shape[1] else block[:, list(chosen)]
    # Infinities of both signs make a NaN, which the reader of the file refuses in words.
    with np.errstate(invalid="ignore", over="ignore"):
        mean: np.ndarray = picked.mean(axis=1, dtype=np.float32)
    return mean


def resample(signal: Signal, rate: int) -> Signal:
    """Convert a signal to another sampling rate.

    A Kaiser-windowed sinc of 64 zero crossings (the "kaiser best" of resampy, after J. O. Smith,
    Digital Audio Resampling, 2002). Rates without a usable common divisor would need a kernel of
    gigabytes and go through one Fourier transform of the whole signal instead. Signals of more than
    eight million samples are converted in parts of 16 s that overlap, so that the memory beside
    both signals stays bounded.

    Args:
        signal: Any signal.
        rate: Samples a second wanted, a whole number from 1 to ``MAX_RATE``.

    Returns:
        A signal of ceil(samples * rate / signal.rate) samples; the same object where the rate
        already fits.

    Raises:
        AudioError: The rate is another.

    Example:
        >>> len(resample(Signal(np.zeros(44_100), 44_100), 16_000).waveform)
        16000
    """
    rate = require_rate(rate)
    if rate == signal.rate:
        return signal
    whole = signal.waveform
    if len(whole) <= ONE_PASS_SAMPLES:
        converted = _resample_once(whole, signal.rate, rate)
    else:
        step = _CHUNK_S * signal.rate
        pieces = (whole[at : at + step] for at in range(0, len(whole), step))
        converted = np.concatenate(list(resample_pieces(pieces, signal.rate, rate)))
    return signal.replace_waveform(converted, rate=rate)


def resample_pieces(pieces: Iterable[Samples], old: int, new: int) -> Iterator[Samples]:
    """Convert consecutive pieces of a signal, of any lengths, in parts that overlap.

    Args:
        pieces: Each of shape (samples,), float32.
        old: Their sampling rate in Hz.
        new: The rate wanted.

    Yields:
        Consecutive pieces at the new rate, as one conversion of the whole would give them but for
        rounding.
    """
    # Whole seconds are whole samples at both rates: parts fit together to the sample.
    guard, step = _GUARD_S * old, _CHUNK_S * old
    held: list[Samples] = []
    length = skipped = 0
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        while length >= skipped + step + guard:
            joined = np.concatenate(held)
            part = _resample_once(joined[: skipped + step + guard], old, new)
            start = skipped // old * new
            yield part[start : start + _CHUNK_S * new].copy()
            # A copy, so that what was converted can be let go.
            held = [joined[skipped + step - guard :].copy()]
            length, skipped = len(held[0]), guard
    if length > skipped:
        yield _resample_once(np.concatenate(held), old, new)[skipped // old * new :]


def require_sample_rate(signal: Signal, rate: int, *, reader: str) -> None:
    """Raise ``AudioError`` unless the signal has the sampling rate that its reader needs.

    Raises:
        AudioError: It has another; the message names both rates and the way out.
    """
    if signal.rate != rate:
        raise AudioError(
            f"the signal is at {signal.rate} Hz, and {reader} reads {rate} Hz; "
            f"use audio.resample(signal, {rate}) or audio.load_signal(path, rate={rate})"
        )


def require_samples(samples: Samples, name: str) -> None:
    """Raise ``AudioError`` unless a float32 array of any shape holds usable sound.

    Raises:
        AudioError: No samples, NaN, infinity, or samples far beyond full scale; the message calls
            the sound by ``name``.
    """
    if samples.size == 0:
        raise AudioError(
            f"{name} holds no samples; record it again, or leave it out", kind=RecordingFault.EMPTY
        )
    require_amplitude(samples, name)


def require_amplitude(samples: Samples, name: str) -> None:
    """Raise ``AudioError`` unless samples are finite and not far beyond full scale.

    Raises:
        AudioError: One is NaN, infinite, or above ``MAX_AMPLITUDE``; ``name`` has it.
    """
    # No absolute values, which of an hour would take 230 MB; NaN passes through both.
    peak = float(np.maximum(-samples.min(), samples.max()))
    if not math.isfinite(peak):
        raise AudioError(
            f"{name} holds NaN or infinite samples; export it again as 16-bit PCM, or leave it out",
            kind=RecordingFault.NOT_FINITE,
        )
    if peak > MAX_AMPLITUDE:
        raise AudioError(
            f"{name} peaks at {peak:.3g} where full scale is 1 and {MAX_AMPLITUDE:g} the limit; "
            "divide its samples by full scale (32768 for 16-bit)",
            kind=RecordingFault.TOO_LOUD,
        )


def require_rate(rate: object) -> int:
    """Require a sampling rate in Hz: a whole number above 0, at most ``MAX_RATE``.

    Returns:
        The rate as an integer.

    Raises:
        AudioError: It is another.

    Example:
        >>> require_rate(44_100.0)
        44100
    """
    try:
        whole = operator.index(rate)  # type: ignore[arg-type]
    except TypeError:
        whole = int(rate) if isinstance(rate, (float, np.floating)) and rate % 1 == 0 else 0
    if isinstance(rate, (bool, np.bool_)) or not 0 < whole <= MAX_RATE:
        raise AudioError(
            f"the rate is {rate!r} Hz; it must be above 0, a whole number, and at most {MAX_RATE}"
        )
    return whole


def _as_channels(samples: object, name: str) -> Samples:
    """Samples as float32 of shape (channels, samples)."""
    # Whoever passes a tensor has loaded torch.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(samples, torch.Tensor):
        values, channels_first = _from_tensor(samples), True
    elif isinstance(samples, np.ndarray):
        values, channels_first = np.array(samples, order="C"), False
    else:
        raise AudioError(
            f"{name} is a {type(samples).__name__}; need a tensor or a NumPy array of samples"
        )
    shape = values.shape
    if values.ndim == 1:
        values = values[None]
    elif values.ndim == 2 and 1 not in shape:
        values = values if channels_first else values.T
    elif values.ndim == 2:
        values = values if shape[0] == 1 else values.T
    else:
        raise AudioError(f"{name} has shape {shape}; need (samples,) or two axes, one for channels")
    if values.shape[0] > MAX_CHANNELS:
        raise AudioError(
            f"{name} of shape {shape} has {values.shape[0]} channels, {MAX_CHANNELS} may be; a "
            "tensor is (channels, samples), a NumPy array (samples, channels)"
        )
    return scale_samples(values, name)


def _from_tensor(samples: "Tensor") -> np.ndarray:
    """A tensor as an array in the same memory, floats in single precision."""
    values = samples.detach().cpu()
    # Some of torch's floats are unknown to NumPy.
    array: np.ndarray = (values.float() if values.is_floating_point() else values).numpy()
    return array


def scale_samples(values: np.ndarray, name: str) -> Samples:
    """Scale samples to float32 with full scale 1.

    Args:
        values: Floats, which keep their values, or whole numbers with the full scale of their type.
        name: What messages call the sound.

    Raises:
        AudioError: Numbers whose full scale is unknown.

    Example:
        >>> scale_samples(np.array([16_384, -32_768], dtype=np.int16), "the sound").tolist()
        [0.5, -1.0]
    """
    kind = values.dtype.name
    if kind in _FULL_SCALE:
        return (values.astype(np.float64) / _FULL_SCALE[kind]).astype(np.float32)
    if kind == "uint8":
        return (values.astype(np.float32) - np.float32(128)) / np.float32(128)
    if values.dtype.kind != "f":
        raise AudioError(
            f"{name} has {values.dtype} samples, whose full scale is unknown; need floats with "
            "full scale 1, int8, int16, int32 or uint8"
        )
    # float64 beyond the range of float32 becomes infinite, and is refused as such.
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False)


def _resample_once(samples: Samples, old: int, new: int) -> Samples:
    """Samples at another rate, in one pass."""
    divisor = math.gcd(new, old)
    old, new = old // divisor, new // divisor
    # The polyphase kernel grows with the product of both rates in lowest terms.
    if new * old > _LARGEST_KERNEL:
        return _by_fourier(samples, old, new)
    repeats = -(-_LEAST_OUTPUTS // new)
    kernel, reach = _polyphase_kernel(old, new, repeats)
    step, taps = old * repeats, len(kernel)
    wanted = -(-len(samples) * new // old)
    blocks = -(-wanted // kernel.shape[1])
    padded = np.pad(samples, (reach, max(0, blocks * step + taps - reach - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)[::step]
    converted = np.empty((blocks, kernel.shape[1]), dtype=np.float32)
    at_once = max(1, _MOST_INPUTS // taps)
    for first in range(0, blocks, at_once):
        last = min(blocks, first + at_once)
        np.matmul(np.ascontiguousarray(windows[first:last]), kernel, out=converted[first:last])
    return converted.reshape(-1)[:wanted]


@lru_cache(maxsize=2)
def _polyphase_kernel(old: int, new: int, repeats: int) -> tuple[Samples, int]:
    """Windowed sinc of each output in a block, (taps, outputs), and how far it reaches back.

    A block is ``repeats`` times ``new`` outputs, from ``repeats`` times ``old`` samples and their
    neighbours.
    """
    cutoff = min(old, new) * _ROLLOFF
    reach = math.ceil(_ZERO_CROSSINGS * old / cutoff)
    taps = np.arange(-reach, reach + old)
    times = (taps[:, None] / old - np.arange(new) / new) * cutoff
    one = np.zeros(times.shape, dtype=np.float32)
    inside = np.abs(times) < _ZERO_CROSSINGS
    times = times[inside]
    bell = np.i0(_KAISER_BETA * np.sqrt(1 - (times / _ZERO_CROSSINGS) ** 2)) / np.i0(_KAISER_BETA)
    one[inside] = np.sinc(times) * bell * (cutoff / old)
    kernel = np.zeros((len(taps) + old * (repeats - 1), new * repeats), dtype=np.float32)
    for part in range(repeats):
        kernel[part * old : part * old + len(taps), part * new : (part + 1) * new] = one
    return kernel, reach


def _by_fourier(samples: Samples, old: int, new: int) -> Samples:
    """Resample by old/new in lowest terms through one transform, padded to whole periods."""
    length = len(samples)
    # A quarter of silence behind keeps the wrap-around of the transform off the signal's ends.
    periods = math.ceil(length * 1.25 / old) + 1
    spectrum = np.fft.rfft(samples, n=periods * old)
    longer = np.fft.irfft(spectrum[: periods * new // 2 + 1], n=periods * new)
    resampled = longer[: math.ceil(length * new / old)] * np.float32(new / old)
    return np.ascontiguousarray(resampled, dtype=np.float32)
