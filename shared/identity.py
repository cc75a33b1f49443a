"""Comparison of names: of speakers, users, labels and columns, however they are written.

One name has many spellings that look the same: é as one code point or as two, a space that does
not break, a zero-width character that a web page left behind, wide Latin letters, a typographic
apostrophe. Were they several identities, one voice would train and test, and one person would
have several privacy budgets. Names are therefore *stored* tidied and *compared* by a key.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

_JOINERS = "\u200c\u200d"
"""Zero-width joiners, without which Persian, Hindi and emoji are misspelt."""
# Default_Ignorable_Code_Point of Unicode, less the format characters (category Cf).
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
_PUNCTUATION = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
    | dict.fromkeys("\u2018\u2019\u201b\u02bc\u00b4`", "'")
)


def tidy_name(name: str) -> str:
    r"""Tidy a name for storing and showing: it reads as it was written.

    Unicode's composed form (NFC), without invisible and control characters, but with the
    zero-width joiners inside words; runs of white space become one space.

    Args:
        name: As somebody wrote it.

    Example:
        >>> tidy_name("  Jose\u0301\u200b\u00a0 Luis ")
        'José Luis'
    """
    if name.isascii() and name.isprintable():
        return " ".join(name.split())
    seen = "".join(letter for letter in name if not _is_invisible(letter) or letter.isspace())
    return unicodedata.normalize("NFC", " ".join(seen.split())).strip(_JOINERS)


@lru_cache(maxsize=65_536)
def identity_key(name: str) -> str:
    r"""The key by which names are compared: equal keys are one identity.

    Unicode's form for caseless identifiers (NFKC_Casefold, UAX 31) of the tidied name, with one
    hyphen and one apostrophe. Merging is the safe side: two people with one key share a budget
    and a side of every split, while one person under two names would escape both.

    Args:
        name: As somebody wrote it.

    Example:
        >>> identity_key("Jose\u0301 O\u2019Brien") == identity_key(" JOSÉ  O'BRIEN\u200b")
        True
        >>> identity_key("José") == identity_key("Jose")
        False
    """
    if name.isascii() and name.isprintable():
        return " ".join(name.split()).lower().replace("`", "'")
    bare = "".join(letter for letter in tidy_name(name) if letter not in _JOINERS).translate(
        _PUNCTUATION
    )
    bare = _IGNORABLE.sub("", bare)
    # Twice: folding can undo the normal form, and normalising can bring back a capital.
    for _ in range(2):
        bare = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", bare).casefold())
    return " ".join(bare.split())


def choose_spellings(names: Iterable[str]) -> dict[str, str]:
    """Choose one spelling for each identity: the most frequent one, then the first by alphabet.

    Args:
        names: As often as they occur.

    Returns:
        By identity key, the tidied name.

    Example:
        >>> choose_spellings(["ana", "Ana", "Ben", "Ana"])
        {'ana': 'Ana', 'ben': 'Ben'}
    """
    counts = Counter(tidy_name(name) for name in names)
    chosen: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        chosen.setdefault(identity_key(name), name)
    return dict(sorted(chosen.items()))


def find_name(name: str, names: Iterable[str]) -> str | None:
    r"""Find the name that is the same identity, as it is written there; None where there is none.

    Args:
        name: As somebody wrote it.
        names: Different identities.

    Example:
        >>> find_name("Za\u0308rtlich", ["neutral", "zärtlich"])
        'zärtlich'
    """
    key = identity_key(name)
    return next((other for other in names if identity_key(other) == key), None)


def _is_invisible(letter: str) -> bool:
    return letter not in _JOINERS and unicodedata.category(letter) in ("Cc", "Cf")
