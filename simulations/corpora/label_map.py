"""One name for each emotion, from the names that corpora use.

The table is explicit, so that a mapping can be printed and argued with. It joins spellings and
languages, never shades of meaning: ``calm`` is not ``neutral``, ``excited`` is not ``happy``. A
label that is not in the table stays a class of its own.
"""

import unicodedata
from collections.abc import Iterable

# An order of our own, so that columns of the same classes mean the same in every run.
CANONICAL_EMOTIONS = (
    "neutral",
    "calm",
    "happy",
    "sad",
    "angry",
    "fearful",
    "disgust",
    "surprised",
    "bored",
    "contempt",
    "excited",
    "frustrated",
)
"""Our words, in the order in which classes are always listed; others follow by alphabet."""

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

_NO_LABEL = frozenset({"", "nan", "n/a", "null", "?", "xxx"})


def _plain(label: str) -> str:
    """A label without case, accents or the sort of space between its words."""
    # NFKD parts a letter from its accent; combining marks are then dropped.
    decomposed = unicodedata.normalize("NFKD", label.strip().casefold())
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return "_".join(bare.replace("-", " ").replace("_", " ").split())


_TABLE = {
    word: emotion
    for emotion, words in _SYNONYMS.items()
    for word in (emotion, *(_plain(word) for word in words.split()))
}


def harmonise_label(label: str) -> str:
    """Translate a corpus's label into ours; an unknown label comes back in lower case.

    Case, accents, hyphens and underscores do not matter: ``Colère`` and ``colere`` are ``angry``.

    Example:
        >>> [harmonise_label(label) for label in ("Freude", "colère", "Boredom", "Sarcasm")]
        ['happy', 'angry', 'bored', 'sarcasm']
    """
    plain = _plain(label)
    return _TABLE.get(plain, plain)


def is_missing(label: str) -> bool:
    """Tell whether a cell means "not labelled" (empty, ``nan``, ``n/a``, ``xxx`` ...).

    Example:
        >>> is_missing(" NaN "), is_missing("neutral")
        (True, False)
    """
    return label.strip().casefold() in _NO_LABEL


def sort_emotions(emotions: Iterable[str]) -> tuple[str, ...]:
    """Sort distinct emotions: the canonical ones in their order, then the others by alphabet.

    Example:
        >>> sort_emotions(["sarcasm", "sad", "neutral", "sad"])
        ('neutral', 'sad', 'sarcasm')
    """
    present = set(emotions)
    known = [emotion for emotion in CANONICAL_EMOTIONS if emotion in present]
    return (*known, *sorted(present.difference(CANONICAL_EMOTIONS)))
