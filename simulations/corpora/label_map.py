"""One name for each emotion, from the names that corpora use.

The table is explicit, so that a mapping can be printed and argued with. It joins spellings and
languages, never shades of meaning: ``calm`` is not ``neutral``, ``excited`` is not ``happy``. A
label that is not in the table stays a class of its own. A user's own map (``user_label_map``)
goes before it.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from sottovoce.shared.identity import identity_key, tidy_name
from sottovoce.shared.speaker.emotions import CANONICAL_EMOTIONS

_SYNONYMS = {
    "neutral": "neu neutrality no_emotion neutre neutro neutra neutrale neutralita neutralidad"
    " neutralite neutralitat neutraal 中立 中性",
    "calm": "calmness relaxed serene tender tenderness ruhe ruhig gelassen gelassenheit calme"
    " serein serenite calma calmo tranquilo tranquila tranquilidad serenidad tranquillo"
    " tranquillita serenita",
    "happy": "hap happiness joy joyful freude freudig freudvoll frohlich gluck glucklich joie"
    " joyeux joyeuse heureux heureuse content bonheur alegria alegre feliz felicidad felicidade"
    " contento gioia gioioso felice felicita allegria allegro blij blijdschap 快乐 高兴 开心",
    "sad": "sadness sorrow trauer traurig traurigkeit tristesse triste tristeza tristezza"
    " verdriet verdrietig 伤心 悲伤",
    "angry": "ang anger rage arger argerlich wut wutend zorn zornig colere fache fachee enerve"
    " enojo enojado enfado enfadado enfadada ira rabia colera rabbia arrabbiato arrabbiata"
    " collera raiva boos boosheid 生气 愤怒",
    "fearful": "fea fear fer afraid scared anxiety anxious angst angstlich furcht peur apeure"
    " apeuree effraye crainte miedo asustado asustada temor paura impaurito spaventato timore"
    " medo 恐惧 害怕",
    "disgust": "dis disgusted ekel degout degoute asco asqueado disgusto disgustato schifo nojo"
    " repugnancia walging 厌恶",
    "surprised": "sur surprise pleasant_surprise pleasant_surprised ps uberraschung uberrascht"
    " erstaunen erstaunt surpris etonne etonnement sorpresa sorprendido sorprendida sorpreso"
    " stupore surpresa verrast verrassing 惊喜 惊讶",
    "bored": "boredom langeweile gelangweilt ennui ennuye aburrimiento aburrido aburrida noia"
    " annoiato tedio",
    "contempt": "contemptuous verachtung verachtlich mepris desprecio disprezzo desprezo",
    "excited": "exc excitement aufgeregt aufregung excite excitation emocionado eccitato",
    "frustrated": "fru frustration frustriert frustre frustrado frustracion frustrato frustrazione",
}

_MISSING = frozenset({"", "nan", "n/a", "#n/a", "<na>", "null", "?"})
CODE_BOOKS: Mapping[str, tuple[Mapping[str, str], frozenset[str]]] = {
    "MSP-Podcast": (
        {
            "a": "angry",
            "s": "sad",
            "h": "happy",
            "u": "surprised",
            "f": "fearful",
            "d": "disgust",
            "c": "contempt",
            "n": "neutral",
            "o": "other",
            "x": "xxx",
        },
        frozenset("hs"),
    ),
    "EMO-DB": (
        {
            "w": "angry",
            "l": "bored",
            "e": "disgust",
            "a": "fearful",
            "f": "happy",
            "t": "sad",
            "n": "neutral",
        },
        frozenset("wt"),
    ),
}
"""One-letter codes of corpora, and the letters by which each is recognised.

``A`` is anger in one and fear (*Angst*) in the other: letters alone say nothing.
"""


def fold_label(label: str) -> str:
    """Fold a label for comparison with the table: no case, Latin accents, or kinds of space.

    Marks of other scripts stay: without them, Japanese, Hindi and Thai have other words.

    Example:
        >>> fold_label(" Très-Fâchée"), fold_label("がんき") == fold_label("かんき")
        ('tres_fachee', False)
    """
    letters: list[str] = []
    latin = False
    for letter in unicodedata.normalize("NFKD", identity_key(label)):
        if not unicodedata.combining(letter):
            latin = "LATIN" in unicodedata.name(letter, "")
        elif latin:
            continue
        letters.append(letter)
    return _join_words(unicodedata.normalize("NFC", "".join(letters)))


def _join_words(text: str) -> str:
    return "_".join(text.replace("-", " ").replace("_", " ").split())


def _fold_words(words: str) -> frozenset[str]:
    return frozenset(map(fold_label, words.split()))


_TABLE = {
    fold_label(word): emotion
    for emotion, words in _SYNONYMS.items()
    for word in (emotion, *words.split())
}

NO_AGREEMENT = _fold_words(
    "xxx no_agreement noagreement undecided unknown unk ambiguous mixed unbekannt inconnu"
    " desconocido desconhecido sconosciuto onbekend keine_übereinstimmung sans_accord"
    " sin_acuerdo nessun_accordo 未知 不一致"
)
"""Words for "the raters did not agree", or could not say; folded as labels are."""
OTHER = _fold_words(
    "oth other others andere anderes sonstige sonstiges autre autres otro otra otros altro altra"
    " altri outro outra overig anders 其他 其它 その他"
)
"""Words for "an emotion that the list does not have"; folded as labels are."""


def harmonise_label(label: str) -> str:
    """Translate a corpus's label into ours; an unknown label stays, in lower case.

    Case, accents, hyphens and underscores do not matter for finding a label in the table:
    ``Colère`` and ``colere`` are ``angry``. A label that is not there keeps its marks.

    Example:
        >>> [harmonise_label(label) for label in ("Freude", "colère", "Boredom", "Señales Mixtas")]
        ['happy', 'angry', 'bored', 'señales_mixtas']
    """
    known = _TABLE.get(fold_label(label))
    return known or name_class(label)


def name_class(label: str) -> str:
    """Name the class of a label that the table does not have.

    Example:
        >>> name_class("Zärtlich  gestimmt")
        'zärtlich_gestimmt'
    """
    # A title such as İ decomposes when it becomes small.
    small = unicodedata.normalize("NFC", tidy_name(label).lower())
    return _join_words(small) or small


def is_known(label: str) -> bool:
    """Tell whether the table has a label.

    Example:
        >>> is_known("Freude"), is_known("Sarcasm")
        (True, False)
    """
    return fold_label(label) in _TABLE


def is_missing(label: str) -> bool:
    """Tell whether a cell is empty, or what programs write for that (``nan``, ``n/a`` ...).

    Example:
        >>> is_missing(" NaN "), is_missing("neutral")
        (True, False)
    """
    return identity_key(label) in _MISSING


def is_missing_speaker(name: str) -> bool:
    """Tell whether a cell names nobody; Nan and Null are names of people.

    Example:
        >>> is_missing_speaker("NaN"), is_missing_speaker("Nan"), is_missing_speaker("Unknown")
        (True, False, True)
    """
    if tidy_name(name) in ("Nan", "Null"):
        return False
    return is_missing(name) or identity_key(name) in ("xxx", "unknown", "unk", "unbekannt")


def is_number(label: str) -> bool:
    """Tell whether a label is a number, or several, and so a rating or a code.

    Example:
        >>> is_number("3,5"), is_number("[2; 4]"), is_number("3 happy"), is_number("😡")
        (True, True, False, False)
    """
    return bool(_NUMBER.fullmatch(label)) and any(map(str.isdigit, label))


_NUMBER = re.compile(r"[\d\s.,;:/%+\-()\[\]]+")


def sort_emotions(emotions: Iterable[str]) -> tuple[str, ...]:
    """Sort distinct emotions: the canonical ones in their order, then the others by alphabet.

    Example:
        >>> sort_emotions(["sarcasm", "sad", "neutral", "sad"])
        ('neutral', 'sad', 'sarcasm')
    """
    present = set(emotions)
    known = [emotion for emotion in CANONICAL_EMOTIONS if emotion in present]
    return (*known, *sorted(present.difference(CANONICAL_EMOTIONS)))
