"""Signals: audio with its sampling rate, decoding of files, and resampling."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional
from torch import Tensor

from sottovoce.shared.errors import AudioError, RecordingFault

SAMPLE_RATE = 16_000
"""Sampling rate of every built-in extractor, in Hz."""

MAX_AMPLITUDE = 100.0
"""Largest sample accepted as audio; full scale is 1. Integers stored as floats lie above."""

_BLOCK = 1 << 18
_LARGEST_KERNEL = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Signal:
    """Mono audio with its sampling rate.

    Attributes:
        samples: Shape (1, samples), float32, full scale is 1; finite, at least one sample.
        rate: Samples a second, above 0.

    Raises:
        AudioError: The samples are not such a tensor, or the rate is not above 0.
    """

    samples: Tensor
    rate: int

    def __post_init__(self) -> None:
        _require_samples(self.samples, "the signal")
        if not self.rate > 0:
            raise AudioError(f"the signal's rate is {self.rate} Hz; it must be above 0")

    @property
    def duration_s(self) -> float:
        """Duration of the signal in seconds.

        Example:
            >>> Signal(torch.zeros(1, 8_000), 16_000).duration_s
            0.5
        """
        return self.samples.shape[1] / self.rate


def load_signal(
    path: str | Path, *, rate: int = SAMPLE_RATE, max_duration_s: float = 3_600.0
) -> Signal:
    """Read a recording as mono audio at a common rate.

    Reads whatever libsndfile reads: WAV, FLAC, OGG Vorbis and Opus, MP3, AIFF, ... Channels are
    averaged. Nothing is trimmed, scaled or dithered.

    Args:
        path: The file.
        rate: Sampling rate of the result in Hz; the file may have any other.
        max_duration_s: Longest recording that is read, in seconds; longer ones are refused.

    Returns:
        The signal, samples of shape (1, samples), float32.

    Raises:
        AudioError: The file is missing, unreadable, empty, too long, or holds NaN, infinity or
            samples far beyond full scale.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path} is not a file; check the path, or the manifest that names it")
    try:
        with soundfile.SoundFile(path) as file:
            own_rate = int(file.samplerate)
            # The limit counts decoded samples, so a small compressed file cannot fill the memory.
            samples = _mono(file, path, longest=int(max_duration_s * own_rate))
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        raise AudioError(
            f"{path} cannot be read as audio ({error}); "
            "convert it to WAV, FLAC or OGG, or leave it out",
            kind=RecordingFault.NOT_AUDIO,
        ) from error
    _require_samples(samples, str(path))
    return resample(Signal(samples, own_rate), rate)


def resample(signal: Signal, rate: int) -> Signal:
    """Convert a signal to another sampling rate.

    A Kaiser-windowed sinc of 64 zero crossings (the "kaiser best" of resampy, after J. O. Smith,
    Digital Audio Resampling, 2002). Rates without a usable common divisor would need a kernel of
    gigabytes and go through one Fourier transform of the whole signal instead.

    Args:
        signal: Any signal.
        rate: Samples a second wanted, above 0.

    Returns:
        A signal of ceil(samples * rate / signal.rate) samples; the same object where the rate
        already fits.

    Raises:
        AudioError: The rate is not above 0.

    Example:
        >>> resample(Signal(torch.zeros(1, 44_100), 44_100), 16_000).samples.shape
        torch.Size([1, 16000])
    """
    if not rate > 0:
        raise AudioError(f"the rate asked for is {rate} Hz; it must be above 0")
    if rate == signal.rate:
        return signal
    divisor = math.gcd(rate, signal.rate)
    # The polyphase kernel grows with the product of both rates in lowest terms.
    if (rate // divisor) * (signal.rate // divisor) > _LARGEST_KERNEL:
        return Signal(_by_fourier(signal.samples, signal.rate // divisor, rate // divisor), rate)
    samples = torchaudio.functional.resample(
        signal.samples,
        signal.rate,
        rate,
        # The parameters of resampy's "kaiser_best" filter.
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )
    return Signal(samples, rate)


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


def hash_file(path: str | Path) -> str:
    """Hash a file's bytes with SHA-256: 64 hexadecimal digits.

    Raises:
        AudioError: The file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AudioError(
            f"{path} cannot be read ({error.strerror}); check the path and its permissions",
            kind=RecordingFault.UNREADABLE,
        ) from error


def _mono(file: soundfile.SoundFile, path: Path, *, longest: int) -> Tensor:
    """Channels averaged block by block, so that a header that lies cannot fill the memory."""
    blocks: list[np.ndarray] = []
    read = 0
    # Lengths in headers can lie; only what was read counts.
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        read += len(block)
        if read > longest:
            raise AudioError(
                f"{path} is longer than {longest / file.samplerate:.0f} s; "
                "cut it into utterances first",
                kind=RecordingFault.TOO_LONG,
            )
        blocks.append(block.mean(axis=1, dtype=np.float32))
    joined = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
    return torch.from_numpy(joined)[None]


def _require_samples(samples: Tensor, name: str) -> None:
    """Raise ``AudioError`` unless a tensor holds the samples of a signal; ``name`` has them."""
    if samples.dtype != torch.float32 or samples.dim() != 2 or samples.shape[0] != 1:
        raise AudioError(
            f"{name} has {samples.dtype} of shape {tuple(samples.shape)}; need float32 (1, samples)"
        )
    if samples.shape[1] == 0:
        raise AudioError(
            f"{name} holds no samples; record it again, or leave it out", kind=RecordingFault.EMPTY
        )
    peak = float(samples.abs().amax())
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


def _by_fourier(samples: Tensor, old: int, new: int) -> Tensor:
    """Resample by old/new in lowest terms through one transform, padded to whole periods."""
    length = samples.shape[1]
    # A quarter of silence behind keeps the wrap-around of the transform off the signal's ends.
    periods = math.ceil(length * 1.25 / old) + 1
    spectrum = torch.fft.rfft(samples, n=periods * old)
    longer = torch.fft.irfft(spectrum[:, : periods * new // 2 + 1], n=periods * new)
    resampled: Tensor = longer[:, : math.ceil(length * new / old)] * (new / old)
    return resampled.contiguous()
