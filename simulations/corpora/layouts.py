"""Layouts of the public corpora: the meaning of their file names.

A layout reads one relative path. Folders around it do not matter, so a copy that was unpacked
into one more folder, or twice, is read all the same.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sottovoce.simulations.corpora import label_map
from sottovoce.simulations.corpora.corpus import Clip

PathParser = Callable[[PurePosixPath, Path], tuple[str, Clip] | None]
"""From a relative path and its folder to the recording's official name and the clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """File names of a public corpus and their meaning.

    Attributes:
        title: Its description, in a line.
        pattern: How its file names look, for messages.
        source_url: Where to get it.
        parse_path: Reads a file name; None when the file is no part of the corpus.
    """

    title: str
    pattern: str
    source_url: str
    parse_path: PathParser


def _clip(path: PurePosixPath, folder: Path, *, speaker: str, label: str, language: str) -> Clip:
    """A clip of a layout, without what only some layouts know."""
    return Clip(
        clip_id=str(path),
        path=folder / path,
        speaker=speaker,
        label=label,
        emotion=label_map.harmonise_label(label),
        language=language,
    )


_RAVDESS = re.compile(r"03-01-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)")
_RAVDESS_EMOTIONS = (
    "neutral",
    "calm",
    "happy",
    "sad",
    "angry",
    "fearful",
    "disgust",
    "surprised",
)
_RAVDESS_TEXT = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}


def _ravdess(path: PurePosixPath, folder: Path) -> tuple[str, Clip] | None:
    """Modality-channel-emotion-intensity-statement-repetition-actor; odd actors are men."""
    match = _RAVDESS.fullmatch(path.stem)
    if not match:
        return None
    emotion, intensity, statement, _, actor = match.groups()
    return path.stem, replace(
        _clip(
            path,
            folder,
            speaker=f"ravdess_{actor}",
            label=_RAVDESS_EMOTIONS[int(emotion) - 1],
            language="en",
        ),
        gender="male" if int(actor) % 2 else "female",
        intensity="strong" if intensity == "02" else "normal",
        statement=_RAVDESS_TEXT[statement],
    )


# The last X? covers one widespread copy that cut a final XX to X.
_CREMAD = re.compile(r"(1\d{3})_([A-Z]{3})_(ANG|DIS|FEA|HAP|NEU|SAD)_(LO|MD|HI|XX?)")
_CREMAD_EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
_CREMAD_LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified"}
_CREMAD_TEXT = {
    "DFA": "Don't forget a jacket",
    "IEO": "It's eleven o'clock",
    "IOM": "I'm on my way to the meeting",
    "ITH": "I think I have a doctor's appointment",
    "ITS": "I think I've seen this before",
    "IWL": "I would like a new alarm clock",
    "IWW": "I wonder what this is about",
    "MTI": "Maybe tomorrow it will be cold",
    "TAI": "The airplane is almost full",
    "TIE": "That is exactly what happened",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}


def _cremad(path: PurePosixPath, folder: Path) -> tuple[str, Clip] | None:
    """Actor_sentence_emotion_level; a last X stands for XX in one widespread copy."""
    match = _CREMAD.fullmatch(path.stem)
    if not match:
        return None
    actor, sentence, emotion, level = match.groups()
    level = "XX" if level == "X" else level
    return f"{actor}_{sentence}_{emotion}_{level}", replace(
        _clip(
            path, folder, speaker=f"cremad_{actor}", label=_CREMAD_EMOTIONS[emotion], language="en"
        ),
        intensity=_CREMAD_LEVELS[level],
        statement=_CREMAD_TEXT.get(sentence, sentence),
    )


_EMODB = re.compile(r"(\d\d)([ab]\d\d)([WLEAFTN])([a-z])")
_EMODB_EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
# Gender and age from the database's own table of speakers.
_EMODB_SPEAKERS = {
    "03": ("male", 31),
    "08": ("female", 34),
    "09": ("female", 21),
    "10": ("male", 32),
    "11": ("male", 26),
    "12": ("male", 30),
    "13": ("female", 32),
    "14": ("female", 35),
    "15": ("male", 25),
    "16": ("female", 31),
}


def _emodb(path: PurePosixPath, folder: Path) -> tuple[str, Clip] | None:
    """Speaker, text, the German emotion's first letter, version."""
    match = _EMODB.fullmatch(path.stem)
    # Ten speakers are known; a name with another number is no file of this database.
    if not match or match[1] not in _EMODB_SPEAKERS:
        return None
    gender, age = _EMODB_SPEAKERS[match[1]]
    return path.stem, replace(
        _clip(
            path,
            folder,
            speaker=f"emodb_{match[1]}",
            label=_EMODB_EMOTIONS[match[3]],
            language="de",
        ),
        gender=gender,
        age=age,
        statement=match[2],
    )


_SAVEE = re.compile(r"(sa|su|[adfhn])(\d\d)")
_SAVEE_EMOTIONS = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}
_SAVEE_SPEAKERS = ("DC", "JE", "JK", "KL")


def _savee(path: PurePosixPath, folder: Path) -> tuple[str, Clip] | None:
    """``DC_a01`` in one folder, or ``a01`` in a folder ``DC``; four men."""
    # The name has a speaker in one distribution; the folder is the speaker in the other.
    speaker, _, code = path.stem.rpartition("_")
    speaker = speaker or path.parent.name
    match = _SAVEE.fullmatch(code)
    if not match or speaker not in _SAVEE_SPEAKERS:
        return None
    return f"{speaker}_{code}", replace(
        _clip(
            path, folder, speaker=f"savee_{speaker}", label=_SAVEE_EMOTIONS[match[1]], language="en"
        ),
        gender="male",
        statement=code,
    )


# One official file is named OA_bite_neutral instead of OAF_bite_neutral.
_TESS = re.compile(r"(OAF?|YAF)_([a-z]+)_(angry|disgust|fear|happy|neutral|ps|sad)", re.IGNORECASE)
_TESS_AGES = {"OAF": 64, "YAF": 26}


def _tess(path: PurePosixPath, folder: Path) -> tuple[str, Clip] | None:
    """Older or younger actress, target word, emotion; ``ps`` is pleasant surprise."""
    match = _TESS.fullmatch(path.stem)
    if not match:
        return None
    speaker = "YAF" if match[1].upper() == "YAF" else "OAF"
    word, emotion = match[2].lower(), match[3].lower()
    return f"{speaker}_{word}_{emotion}", replace(
        _clip(
            path,
            folder,
            speaker=f"tess_{speaker}",
            label="pleasant_surprise" if emotion == "ps" else emotion,
            language="en",
        ),
        gender="female",
        age=_TESS_AGES[speaker],
        statement=f"Say the word {word}",
    )


LAYOUTS: Mapping[str, Layout] = {
    "ravdess": Layout(
        title="RAVDESS speech: 24 actors, 8 emotions, English (Livingstone & Russo 2018)",
        pattern="Actor_01/03-01-01-01-01-01-01.wav",
        source_url="https://zenodo.org/records/1188976",
        parse_path=_ravdess,
    ),
    "cremad": Layout(
        title="CREMA-D: 91 actors, 6 emotions, English (Cao et al. 2014)",
        pattern="AudioWAV/1001_DFA_ANG_XX.wav",
        source_url="https://github.com/CheyneyComputerScience/CREMA-D",
        parse_path=_cremad,
    ),
    "emodb": Layout(
        title="EMO-DB: 10 actors, 7 emotions, German (Burkhardt et al. 2005)",
        pattern="wav/03a01Fa.wav",
        source_url="http://emodb.bilderbar.info",
        parse_path=_emodb,
    ),
    "savee": Layout(
        title="SAVEE: 4 men, 7 emotions, English (Haq & Jackson 2010)",
        pattern="DC_a01.wav or DC/a01.wav",
        source_url="http://kahlan.eps.surrey.ac.uk/savee/",
        parse_path=_savee,
    ),
    "tess": Layout(
        title="TESS: 2 women, 7 emotions, English (Pichora-Fuller & Dupuis 2020)",
        pattern="OAF_angry/OAF_back_angry.wav",
        source_url="https://doi.org/10.5683/SP2/E8H2MF",
        parse_path=_tess,
    ),
}
"""The known layouts by name."""
