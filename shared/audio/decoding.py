"""Decoding of recordings, with bounds on what a file may ask for."""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import soundfile

from sottovoce.shared.audio.containers import has_length_in_header, is_cut_short, mend_ogg_end
from sottovoce.shared.audio.signal import (
    MAX_CHANNELS,
    MAX_RATE,
    SAMPLE_RATE,
    ChannelLevels,
    RecordingDefect,
    Samples,
    Signal,
    mean_of_channels,
    require_amplitude,
    require_samples,
    resample,
    resample_pieces,
)
from sottovoce.shared.errors import AudioError, RecordingFault

MIN_RATE = 1_000
"""Lowest sampling rate of a file in Hz; below it no vowel can be told."""

_MOST_VALUES = 3_600 * 192_000
"""Most decoded values of a recording, all channels together: an hour at a studio's rate."""

_BLOCK_VALUES = 1 << 18
_FLAC_BLOCK = 4_096
"""Frames that are lost where a FLAC file breaks off: no more than one of its own blocks."""

ONE_PASS_SAMPLES = 1 << 22
"""Longest recording that is resampled after it was read; longer ones are while they are read."""
_MOST_MENDED_BYTES = 1 << 26
_LOST_S, _LOST_SHARE = 0.1, 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class _Format:
    """What a file's headers say, checked, and its bytes where its end had to be mended."""

    name: str
    rate: int
    channels: int
    frames: int
    longest: int
    mended: bytes | None

    @property
    def block(self) -> int:
        """Frames of a block that is decoded at once."""
        return _FLAC_BLOCK if self.name == "FLAC" else max(1, _BLOCK_VALUES // self.channels)


def load_signal(
    path: str | Path, *, rate: int = SAMPLE_RATE, max_duration_s: float = 3_600.0
) -> Signal:
    """Read a recording as mono audio at a common rate.

    Reads whatever libsndfile reads: WAV, FLAC, OGG Vorbis and Opus, MP3, AIFF, ... Channels are
    averaged, but for dead ones and those that cancel each other
    (:func:`~sottovoce.shared.audio.signal.mix_channels`). Of a file that breaks off, what can be
    read is read. Both stand in the signal's ``defects``. Nothing is trimmed, scaled or dithered.

    Args:
        path: The file.
        rate: Sampling rate of the result in Hz; the file may have any from ``MIN_RATE`` to
            ``MAX_RATE``.
        max_duration_s: Longest recording that is read, in seconds; longer ones are refused.

    Returns:
        The signal, float32.

    Guarantees:
        - Memory beside the result stays below 500 MB, whatever the file's headers say.
        - Whatever the bytes of the file, no other error than ``AudioError`` is raised.

    Raises:
        AudioError: The file is missing, unreadable, empty, too long, or holds NaN, infinity or
            samples far beyond full scale; its rate or its channels are beyond the limits.
    """
    path = Path(path)
    with _explained(path):
        return _decode(path, rate, max_duration_s)


def read_pieces(
    path: str | Path, *, max_duration_s: float = 86_400.0
) -> tuple[int, Iterator[Samples]]:
    """Read a recording of any length piece by piece, at its own rate.

    Args:
        path: The file; see :func:`load_signal`.
        max_duration_s: Longest recording that is read, in seconds.

    Returns:
        Its sampling rate in Hz, and consecutive pieces of shape (samples,), float32. Memory does
        not grow with the recording.

    Raises:
        AudioError: As :func:`load_signal`; for what lies further on, while the pieces are read.
    """
    path = Path(path)
    with _explained(path):
        is_cut = is_cut_short(path)
        described = _read_format(path, max_duration_s, mended=_mend(path) if is_cut else None)
        chosen, _ = _choose_channels(path, described)
    return described.rate, _iter_mono(path, described, chosen)


def _iter_mono(path: Path, described: _Format, chosen: tuple[int, ...]) -> Iterator[Samples]:
    """Pieces of the mean of the chosen channels, checked."""
    with _explained(path):
        for block in _read_blocks(path, described):
            piece = mean_of_channels(block, chosen)
            require_amplitude(piece, str(path))
            yield piece


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what decoders raise into one error with a way out."""
    try:
        if not path.is_file():
            raise AudioError(f"{path} is not a file; check the path, or the manifest that names it")
        yield
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, RuntimeError) as error:
        raise AudioError(
            f"{path} cannot be read as audio ({error}); "
            "convert it to WAV, FLAC or OGG, or leave it out",
            kind=RecordingFault.NOT_AUDIO,
        ) from error


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


def _decode(path: Path, rate: int, max_duration_s: float) -> Signal:
    """Decode a file once; twice where it has several channels, to see how they relate."""
    is_cut = is_cut_short(path)
    described = _read_format(path, max_duration_s, mended=_mend(path) if is_cut else None)
    chosen, defects = _choose_channels(path, described)
    samples, frames = _read_mono(path, described, chosen, rate)
    if is_cut or _breaks_off(path, described, frames):
        defects |= RecordingDefect.CUT_SHORT
        if not frames:
            raise AudioError(
                f"{path} is cut short: it ends before any sound; copy it again, or leave it out",
                kind=RecordingFault.EMPTY,
            )
    require_samples(samples, str(path))
    is_converted = frames > ONE_PASS_SAMPLES
    signal = Signal(samples, rate if is_converted else described.rate, defects=defects)
    return resample(signal, rate)


def _choose_channels(path: Path, described: _Format) -> tuple[tuple[int, ...], RecordingDefect]:
    """Which channels are averaged, and what is wrong with them; decodes a file with several."""
    if described.channels == 1:
        return (0,), RecordingDefect(0)
    levels = ChannelLevels(described.channels)
    for block in _read_blocks(path, described):
        require_amplitude(block, str(path))
        levels.add(block)
    return levels.choose_channels()


def _mend(path: Path) -> bytes | None:
    """A file that is cut short as decoders read it; None for those that they read as it is."""
    with path.open("rb") as file:
        is_ogg = file.read(4) == b"OggS"
        if not is_ogg or path.stat().st_size > _MOST_MENDED_BYTES:
            return None
        file.seek(0)
        return mend_ogg_end(file.read())


def _open_file(path: Path, mended: bytes | None) -> soundfile.SoundFile:
    # As bytes: a name that is not UTF-8 is a name all the same.
    return soundfile.SoundFile(os.fsencode(path) if mended is None else io.BytesIO(mended))


def _read_format(path: Path, max_duration_s: float, *, mended: bytes | None) -> _Format:
    """Read what the headers say, and refuse what is beyond the limits before anything is decoded.

    Raises:
        AudioError: A rate or a number of channels that no recording of speech has.
    """
    with _open_file(path, mended) as file:
        rate, channels = int(file.samplerate), int(file.channels)
        name, frames = str(file.format), int(file.frames)
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(
            f"{path} has a sampling rate of {rate} Hz; it must be from {MIN_RATE} to {MAX_RATE}: "
            "export it again at 16000 Hz or more, or leave it out",
            kind=RecordingFault.BAD_FORMAT,
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            f"{path} has {channels} channels, {MAX_CHANNELS} may be; export one of them, or "
            "leave it out",
            kind=RecordingFault.BAD_FORMAT,
        )
    longest = min(int(max_duration_s * rate), _MOST_VALUES // channels)
    return _Format(
        name=name, rate=rate, channels=channels, frames=frames, longest=longest, mended=mended
    )


def _read_blocks(path: Path, described: _Format) -> Iterator[np.ndarray]:
    """Decode block by block, shape (frames, channels), float32, up to where the file breaks off.

    Raises:
        AudioError: More frames than the limit; what was decoded counts, for headers can lie.
    """
    read = 0
    with _open_file(path, described.mended) as file:
        while True:
            try:
                block = file.read(described.block, dtype="float32", always_2d=True)
            except soundfile.SoundFileError:
                if not read:
                    raise
                return
            if not len(block):
                return
            read += len(block)
            if read > described.longest:
                raise AudioError(
                    f"{path} is longer than {described.longest / described.rate:.0f} s; "
                    "cut it into utterances first",
                    kind=RecordingFault.TOO_LONG,
                )
            yield block


def _read_mono(
    path: Path, described: _Format, chosen: tuple[int, ...], rate: int
) -> tuple[Samples, int]:
    """Decode the mean of the chosen channels, and how many frames that took.

    Recordings of more than ``ONE_PASS_SAMPLES`` come at the new rate already, for the memory.
    """
    frames = 0
    held: list[Samples] = []
    blocks = _read_blocks(path, described)

    def pieces() -> Iterator[Samples]:
        nonlocal frames
        for block in blocks:
            frames += len(block)
            piece = mean_of_channels(block, chosen)
            require_amplitude(piece, str(path))
            yield piece

    stream = pieces()
    for piece in stream:
        held.append(piece)
        if frames > ONE_PASS_SAMPLES:
            whole = chain(held, stream)
            return _join(resample_pieces(whole, described.rate, rate)), frames
    return _join(held), frames


def _join(pieces: Iterable[Samples]) -> Samples:
    return np.concatenate([np.zeros(0, dtype=np.float32), *pieces])


def _breaks_off(path: Path, described: _Format, frames: int) -> bool:
    """Whether a FLAC or MP3 file that gave so many frames holds less than its headers promise."""
    missing = described.frames - frames
    if described.name == "FLAC":
        return missing > 0
    if described.name in {"MP3", "MPEG"}:
        lost = missing > max(_LOST_S * described.rate, _LOST_SHARE * described.frames)
        return lost and has_length_in_header(path)
    return False
