"""Registry of feature extractors by name.

========================= ================== ====================================================
name                      gives              what it is
========================= ================== ====================================================
whisper-tiny-en           (2304,)            mean and std of encoder layers 1 to 3; no download
whisper-tiny-en-frames    (frames, 768)      layers 2 and 3, 10 frames a second
descriptors               (476,)             statistics of the descriptor set
log-mel                   (frames, 64)       normalised spectrogram, 50 frames a second
wav2vec2-base, ...        (2 x width,)       torchaudio's pipelines, once their weights are added
pipeline:/folder/file.pt  (2 x width,)       the same from a file
first+second              (sum of widths,)   vectors of several, side by side
your own                  as you like        what :func:`register_extractor` was given
========================= ================== ====================================================
"""

import re
from collections.abc import Callable

from sottovoce.shared.errors import SettingError
from sottovoce.shared.features import encoder_store, pretrained
from sottovoce.shared.features.descriptors import Descriptors
from sottovoce.shared.features.extractor import Extractor, Fusion
from sottovoce.shared.features.log_mel import LogMel
from sottovoce.shared.features.whisper import WhisperFrames, WhisperStatistics
from sottovoce.shared.validation import suggest_name

__all__ = [
    "DEFAULT_EXTRACTOR",
    "Extractor",
    "create_extractor",
    "extractor_names",
    "is_registered",
    "register_extractor",
]

DEFAULT_EXTRACTOR = "whisper-tiny-en"

_BUILT_IN: dict[str, Callable[[], Extractor]] = {
    "whisper-tiny-en": WhisperStatistics,
    "whisper-tiny-en-frames": WhisperFrames,
    "descriptors": Descriptors,
    "log-mel": LogMel,
}
_REGISTERED: dict[str, Callable[[], Extractor]] = {}
_MAX_PARTS = 8
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def extractor_names() -> tuple[str, ...]:
    """All names of single extractors; ``pipeline:`` paths and names joined by ``+`` come on top.

    Example:
        >>> extractor_names()[:2]
        ('whisper-tiny-en', 'whisper-tiny-en-frames')
    """
    return (*_BUILT_IN, *_REGISTERED, *pretrained.PIPELINES)


def register_extractor(name: str, factory: Callable[[], Extractor]) -> None:
    """Register an extractor of your own under a name for scenarios and models.

    It is known in this process only, so its features are computed here and not by worker
    processes. Register it again wherever a model that reads its features is used.

    Args:
        name: Lower-case letters, digits, ``.``, ``_`` and ``-``.
        factory: Makes the extractor; called often, so it must be cheap. Read weights when the
            extractor is first used.

    Raises:
        SettingError: A name that is taken, or has other characters.

    Example:
        >>> from sottovoce.shared.features.descriptors import Descriptors
        >>> register_extractor("my-descriptors", Descriptors)
        >>> "my-descriptors" in extractor_names()
        True
    """
    if not _NAME.fullmatch(name):
        raise SettingError(
            f"extractor name is {name!r}; it must be of lower-case letters, digits, '.', '_' and "
            "'-', such as my-encoder"
        )
    # The same factory again is no other extractor: a module may be imported twice.
    if name in extractor_names() and _REGISTERED.get(name) is not factory:
        raise SettingError(f"there is an extractor {name!r} already; register yours as another")
    _REGISTERED[name] = factory


def is_registered(name: str) -> bool:
    """Whether a name, or a part of it, is one that :func:`register_extractor` made known.

    >>> is_registered("descriptors")
    False
    """
    return any(part in _REGISTERED for part in name.split("+"))


def create_extractor(name: str) -> Extractor:
    """Create the extractor of a name; weights are read when it is first used.

    Args:
        name: As in the table of this module; parts joined by ``+`` must give vectors. A path
            behind ``pipeline:`` may not hold a ``+`` or ``@``.

    Returns:
        The extractor; cheap to make, equal settings give equal fingerprints.

    Raises:
        SettingError: The name, or a part of it, is not known or cannot be joined.

    Example:
        >>> create_extractor("whisper-tiny-en+descriptors").is_framewise
        False
    """
    if name.count("+") >= _MAX_PARTS:
        raise SettingError(
            f"extractor {name[:80]!r}... joins {name.count('+') + 1} others; at most {_MAX_PARTS}"
        )
    parts = [_create_single(part) for part in name.split("+")]
    return parts[0] if len(parts) == 1 else Fusion(parts)


def require_installed_encoders(name: str) -> None:
    """Refuse an extractor whose weights this machine's owner has not installed.

    For names that a model file chose: it decides neither what is downloaded nor what is read.

    Raises:
        FeatureError: A pipeline, or a file, that was not installed; it was not looked at.

    Example:
        >>> require_installed_encoders("descriptors+whisper-tiny-en")  # both are packaged
    """
    for part in name.split("+"):
        source = part.partition("@")[0]
        if source in pretrained.PIPELINES or source.startswith(pretrained.FILE_PREFIX):
            encoder_store.require_installed(source)


def _create_single(name: str) -> Extractor:
    """The extractor of a name without ``+``."""
    factory = _BUILT_IN.get(name) or _REGISTERED.get(name)
    if factory:
        return factory()
    source = name.partition("@")[0]
    if source in pretrained.PIPELINES or source.startswith(pretrained.FILE_PREFIX):
        return pretrained.parse_name(name)
    raise SettingError(
        f"extractor is {name[:200]!r}{suggest_name(name, extractor_names())}; it must be one of "
        f"{', '.join(extractor_names())}, "
        f"{pretrained.FILE_PREFIX}FILE, or several joined by +"
    )
