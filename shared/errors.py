"""Everything that can go wrong, as one small tree.

SottovoceError
├── SettingError        a setting or an argument that cannot be used (exit status 2)
├── CorpusError         a corpus that cannot be used as it is
│   └── AudioError      one recording that cannot be used; its ``kind`` says why
├── FeatureError        features that cannot be computed, or a cache that cannot be used
├── ModelError          a model, its weights or a checkpoint that is damaged or does not fit
├── PrivacyError        a promise that would be broken
│   ├── BudgetSpent     the next release would pass the budget
│   ├── LedgerError     a ledger that cannot be trusted
│   ├── ConsentError    what a user has not consented to, or consents to no more
│   │   └── ConsentWithdrawn  a device that its owner has withdrawn
│   └── AggregationError  a secure sum that cannot be made, or that somebody tampers with
├── StorageError        a file that the disk refuses to take
│   ├── FileChangedError  a file that another program changed since it was read
│   └── FolderInUseError  a folder that another process works in
├── MessageError        a message that breaks the schema
└── EngineError         an engine that failed to run the apps

Messages hold the name, the value, the limit and the way out. They are for people: programs go by
the class, and of a recording by its :class:`RecordingFault`.
"""

from enum import StrEnum


class RecordingFault(StrEnum):
    """Reason why a recording cannot be used; reports count recordings by reason."""

    UNREADABLE = "cannot be read"
    NOT_AUDIO = "cannot be read as audio"
    BAD_FORMAT = "has a rate or channels beyond the limits"
    EMPTY = "holds no samples"
    NOT_FINITE = "holds NaN or infinite samples"
    TOO_LONG = "is longer than"
    TOO_LOUD = "peaks at"
    SILENT = "silent"
    TOO_SHORT = "too short"
    NO_SPEECH = "no speech was found"
    BAD_FEATURES = "values that are not finite"
    OTHER = "cannot be used"


class SottovoceError(Exception):
    """Base of all errors raised on purpose; its text is fit for a user."""


class SettingError(SottovoceError):
    """A setting or an argument that cannot be used."""


class CorpusError(SottovoceError):
    """A corpus that cannot be used as it is."""


class AudioError(CorpusError):
    """One recording that cannot be used.

    Args:
        message: What is wrong, fit for a user.
        kind: Why the recording cannot be used, for programs.

    Example:
        >>> AudioError("a.wav holds no samples", kind=RecordingFault.EMPTY).kind.value
        'holds no samples'
    """

    def __init__(self, message: str, *, kind: RecordingFault = RecordingFault.OTHER) -> None:
        super().__init__(message)
        self.kind = kind


class FeatureError(SottovoceError):
    """Features that cannot be computed, or a cache that cannot be used."""


class ModelError(SottovoceError):
    """A model, its weights or a checkpoint that is damaged or does not fit."""


class PrivacyError(SottovoceError):
    """A promise that would be broken."""


class BudgetSpent(PrivacyError):  # noqa: N818  (a state of affairs, not a fault)
    """The next release would pass the budget."""


class LedgerError(PrivacyError):
    """A ledger that cannot be trusted."""


class ConsentError(PrivacyError):
    """Something that the user has not consented to, or consents to no more."""


class ConsentWithdrawn(ConsentError):  # noqa: N818  (a state of affairs, not a fault)
    """A device that its owner has withdrawn: nothing is trained or sent."""


class AggregationError(PrivacyError):
    """A secure sum that cannot be made, or that somebody tampers with."""


class StorageError(SottovoceError):
    """A file that the disk refuses to take."""


class FileChangedError(StorageError):
    """A file that another program changed since it was read."""


class FolderInUseError(StorageError):
    """A folder that another process works in."""


class MessageError(SottovoceError):
    """A message that breaks the schema."""


class EngineError(SottovoceError):
    """An engine that failed to run the apps."""
