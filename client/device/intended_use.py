"""What a device is for, as its owner declares: some uses are forbidden by law and refused here.

Article 5(1)(f) of Regulation (EU) 2024/1689, the Artificial Intelligence Act, forbids since
February 2025 to infer emotions of people at work and in education, but for medical or safety
reasons. A declaration is no legal advice: other law, and other Articles, hold as well.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NotRequired, TypedDict

from sottovoce.shared.errors import SettingError
from sottovoce.shared.printable import clean_text
from sottovoce.shared.validation import suggest_name

MAX_DESCRIPTION: Final = 500
"""Most characters of a description."""


class IntendedPurpose(StrEnum):
    """Use that a device can be declared for."""

    SELF_REFLECTION = "self-reflection"
    COMPANION = "companion"
    ACCESSIBILITY = "accessibility"
    ENTERTAINMENT = "entertainment"
    RESEARCH = "research"
    HEALTH = "health"
    SAFETY = "safety"


PURPOSE_TEXTS: Final = {
    IntendedPurpose.SELF_REFLECTION: "people look at their own emotions, as in a diary",
    IntendedPurpose.COMPANION: "an assistant answers its own user with regard to how they sound",
    IntendedPurpose.ACCESSIBILITY: "help for those to whom emotions are hard to hear or to show",
    IntendedPurpose.ENTERTAINMENT: "games and art, for those who play",
    IntendedPurpose.RESEARCH: "a study whose participants agreed to it",
    IntendedPurpose.HEALTH: "medical reasons, such as therapy or care",
    IntendedPurpose.SAFETY: "safety reasons, such as a driver's fatigue",
}
"""By purpose, what it means."""

_ARTICLE: Final = (
    "Article 5(1)(f) of the EU AI Act (Regulation 2024/1689) forbids to infer emotions of people {}"
    ", but for medical or safety reasons"
)
_AT_WORK, _IN_EDUCATION = "at work", "in education"
_FORBIDDEN: Final = {
    "work": _AT_WORK,
    "workplace": _AT_WORK,
    "hiring": _AT_WORK,
    "recruitment": _AT_WORK,
    "education": _IN_EDUCATION,
    "school": _IN_EDUCATION,
    "university": _IN_EDUCATION,
}
"""Names of purposes that no device can be declared for, and where they would be."""

_EXEMPT: Final = frozenset({IntendedPurpose.HEALTH, IntendedPurpose.SAFETY})

_SETTINGS: Final = (
    (
        _AT_WORK,
        re.compile(
            r"\b(employ\w*|work(place|force|er|ers)|at work|staff|recruit\w*|hiring|"
            r"(job )?(applicant|interview|candidate)\w*|colleague\w*|call[- ]?cent(er|re)\w*|"
            r"human resources)\b",
            re.IGNORECASE,
        ),
    ),
    (
        _IN_EDUCATION,
        re.compile(
            r"\b(pupil|student|learner|school|class(room|mate)|lesson|exam|lecture|teach|"
            r"universit|universities|kindergarten|educat)\w*",
            re.IGNORECASE,
        ),
    ),
)
"""Words of a description that name people at work or in education."""


class IntendedUseRecord(TypedDict):
    """JSON object of an intended use."""

    purpose: str
    description: NotRequired[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class IntendedUse:
    """Declaration of what a device is for.

    Attributes:
        purpose: One of a closed list.
        description: The same in the owner's words, at most ``MAX_DESCRIPTION`` characters.

    Raises:
        SettingError: A description that is too long, or one of people at work or in education
            where the purpose is neither medical nor safety.

    Example:
        >>> IntendedUse(purpose=IntendedPurpose.RESEARCH, description="mood of our employees")
        Traceback (most recent call last):
        ...
        sottovoce.shared.errors.SettingError: the intended use says 'employees': Article 5(1)(f) ...
    """

    purpose: IntendedPurpose
    description: str = ""

    def __post_init__(self) -> None:
        if len(self.description) > MAX_DESCRIPTION:
            raise SettingError(
                f"the intended use has {len(self.description)} characters; at most "
                f"{MAX_DESCRIPTION}"
            )
        for setting, words in () if self.purpose in _EXEMPT else _SETTINGS:
            if found := words.search(self.description):
                raise SettingError(
                    f"the intended use says {found.group()!r}: {_ARTICLE.format(setting)}. If that "
                    f"is not what this device is for, say it without the word; if the reasons are "
                    "medical or safety, declare the purpose health or safety"
                )

    def __str__(self) -> str:
        """Write the declaration as :func:`parse_intended_use` reads one."""
        return ": ".join(filter(None, (self.purpose.value, self.description)))

    def to_dict(self) -> IntendedUseRecord:
        """Convert to a JSON object."""
        return {"purpose": self.purpose.value, "description": self.description}

    @classmethod
    def from_dict(cls, record: IntendedUseRecord) -> "IntendedUse":
        """Read what :meth:`to_dict` gave; errors as for :func:`parse_intended_use`."""
        purpose = _parse_purpose(record["purpose"])
        return cls(purpose=purpose, description=record.get("description", ""))


def parse_intended_use(text: str) -> IntendedUse:
    """Read a declaration: a purpose of the list and, behind a colon, the owner's own words.

    Args:
        text: Such as ``self-reflection`` or ``research: a study of moods``.

    Raises:
        SettingError: A purpose that is forbidden or unknown, or a description that names people at
            work or in education.

    Example:
        >>> parse_intended_use("self-reflection: a diary of moods").description
        'a diary of moods'
    """
    name, _, description = text.partition(":")
    return IntendedUse(
        purpose=_parse_purpose(name.strip().lower()),
        description=clean_text(description.strip(), max_length=None),
    )


def describe_purposes() -> str:
    """List all purposes and what they mean, in one line."""
    return "; ".join(f"{purpose.value} ({text})" for purpose, text in PURPOSE_TEXTS.items())


def _parse_purpose(name: str, *, forbidden: Mapping[str, str] = _FORBIDDEN) -> IntendedPurpose:
    """Read a purpose; a forbidden one is refused with the reason."""
    if name in forbidden:
        raise SettingError(f"the intended use is {name!r}: {_ARTICLE.format(forbidden[name])}")
    known = [purpose.value for purpose in IntendedPurpose]
    if name not in known:
        raise SettingError(
            f"the intended use is {name!r}{suggest_name(name, known)}; choose one, and add your own"
            f" words behind a colon if you like: {describe_purposes()}"
        )
    return IntendedPurpose(name)
