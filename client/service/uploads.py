"""Recordings as they are uploaded: decoded in memory, within the bounds that files have."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sottovoce.client.service.problems import ProblemError
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.audio import Signal, load_signal
from sottovoce.shared.errors import AudioError

MEDIA_TYPES: Final = (
    "application/octet-stream",
    "audio/flac",
    "audio/ogg",
    "audio/wav",
    "audio/wave",
    "audio/x-flac",
    "audio/x-wav",
)
"""Media types of recordings; what a recording is, its own bytes say."""


def require_media_type(header: str | None) -> None:
    """Refuse a body that does not call itself a recording, by a problem.

    Example:
        >>> require_media_type("audio/wav; codecs=1")
    """
    name = (header or "").partition(";")[0].strip().lower()
    if name not in MEDIA_TYPES:
        raise ProblemError(
            415,
            "unknown-media-type",
            f"the body is {name or 'of no stated type'}, which is no recording",
            value=name,
            limit=", ".join(MEDIA_TYPES),
            way_out="convert the recording to WAV, FLAC or Ogg, and say so in Content-Type",
        )


def decode_upload(data: bytes, *, max_duration_s: float) -> Signal:
    """Decode an uploaded recording.

    Args:
        data: WAV, FLAC, Ogg, or whatever else libsndfile reads.
        max_duration_s: Longest recording that is decoded, in seconds.

    Raises:
        AudioError: No sound in it that can be used; see ``load_signal``.
    """
    with _as_file(data) as path:
        try:
            return load_signal(path, max_duration_s=max_duration_s)
        except AudioError as error:
            # The name is of our making, and would tell nobody anything.
            words = str(error).replace(str(path), "the recording")
            raise AudioError(words, kind=error.kind) from None


@contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    """Bytes as a file in memory; where the system has none, in a private file that is removed."""
    if hasattr(os, "memfd_create"):  # sound is never written to a disk
        handle = os.memfd_create("recording")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            yield Path(f"/proc/self/fd/{handle}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        replace_file(path, data, durable=False, secret=True)
        yield path
