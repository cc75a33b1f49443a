"""The embedded corpus: seeded voices, rendered on demand and never stored.

Every clip is decided by (seed, speaker, utterance), so that populations of any size need no disk
and any worker can make any clip.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sottovoce.shared import audio, seeding, validation
from sottovoce.shared.errors import SettingError
from sottovoce.simulations.corpora.corpus import Clip, Corpus
from sottovoce.simulations.corpora.synthetic import source_filter, speakers

EMOTIONS = tuple(speakers.PROFILES)
MAX_CLIPS = 100_000
"""Most clips of the embedded corpus; a population draws users from the voices instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticOptions:
    """Size and seed of the embedded corpus.

    Attributes:
        speakers: How many people, at least 1; women and men alternate.
        clips: Utterances of each, at least 1; emotions alternate.
        seed: Decides who they are and how they speak.
        forms: In which forms they express emotions, one of ``speakers.FORMS``: voices of one and of
            the other show the same anger hot and cold, so that who knows one mistakes the other.
    """

    speakers: int = 24
    clips: int = 30
    seed: int = 7
    forms: str = "usual"

    def __post_init__(self) -> None:
        validation.require_count(1, MAX_CLIPS, speakers=self.speakers, clips=self.clips)
        validation.require_count(0, validation.MAX_SEED, seed=self.seed)
        validation.require_one_of(speakers.FORMS, forms=self.forms)
        # Refused before the first clip is made: all of them are listed in memory.
        if self.speakers * self.clips > MAX_CLIPS:
            raise SettingError(
                f"synthetic speakers={self.speakers},clips={self.clips} are "
                f"{self.speakers * self.clips:,} clips; they must be at most {MAX_CLIPS:,}: ask "
                "for fewer, or for a population of users, with --users and --cohort"
            )


def parse_options(text: str) -> SyntheticOptions:
    """Parse options as in ``speakers=24,clips=30,seed=7``; others have their default.

    Raises:
        SettingError: An unknown name, a value that is not a whole number in its range, or forms
            that there are not.

    Example:
        >>> parse_options("speakers=3, clips=5")
        SyntheticOptions(speakers=3, clips=5, seed=7, forms='usual')
    """
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        known = SyntheticOptions.__slots__
        if name not in known:
            raise SettingError(
                f"synthetic option {validation.format_value(item)} is not understood"
                f"{validation.suggest_name(name, known)}; write speakers=24,clips=30,seed=7"
            )
        if name != "forms" and not re.fullmatch("[0-9]{1,19}", value):
            raise SettingError(
                f"synthetic option {name} is {validation.format_value(value)}; it must be a whole "
                "number of at most 19 digits, as in speakers=24,clips=30,seed=7"
            )
        if name in values:
            raise SettingError(f"synthetic option {name} stands there twice; write it once")
        values[name] = value if name == "forms" else int(value)
    return SyntheticOptions(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticUtterance:
    """All that decides one synthetic utterance; small, and can be sent to a worker.

    Attributes:
        seed: The population's.
        speaker: Index within the population.
        utterance: Index among the speaker's utterances.
        emotion: One of ``EMOTIONS``.
        statement: What is said, as in ``source_filter.STATEMENTS``.
        forms: One of ``speakers.FORMS``.
    """

    seed: int
    speaker: int
    utterance: int
    emotion: str
    statement: str
    forms: str = "usual"

    def render(self) -> audio.Signal:
        """Render the utterance, mono at 16 kHz; the same on every call."""
        person = speakers.make_speaker(self.seed, self.speaker)
        rng = seeding.numpy_rng(self.seed, "synthetic utterance", self.speaker, self.utterance)
        manner = speakers.draw_style(person, speakers.FORMS[self.forms][self.emotion], rng)
        samples = source_filter.synthesise_utterance(person, manner, self.statement, rng)
        return audio.Signal(samples=torch.from_numpy(samples)[None], rate=source_filter.SAMPLE_RATE)

    def content_key(self) -> str:
        """Hash the settings and the code that renders them: SHA-256, as 64 hex digits."""
        return hashlib.sha256(f"{_code_digest()} {self!r}".encode()).hexdigest()


@cache
def _code_digest() -> str:
    """SHA-256 of the code that makes the sound: another code makes another recording."""
    sources = [Path(str(module.__file__)) for module in (speakers, source_filter)]
    text = b"".join(path.read_bytes() for path in (*sources, Path(__file__)))
    return hashlib.sha256(text + np.__version__.encode()).hexdigest()


def open_synthetic(text: str = "") -> Corpus:
    """Open the embedded corpus of synthetic voices.

    Args:
        text: Options as :func:`parse_options` reads them.

    Example:
        >>> corpus = open_synthetic("speakers=2,clips=6")
        >>> corpus.speakers, len(corpus.clips)
        (('voice_0000', 'voice_0001'), 12)
    """
    options = parse_options(text)
    clips = [clip for index in range(options.speakers) for clip in _clips(options, index)]
    return Corpus(
        name="synthetic",
        clips=tuple(clips),
        mapping={clip.label: clip.emotion for clip in clips},
        clips_found=len(clips),
    )


def _clips(options: SyntheticOptions, index: int) -> list[Clip]:
    """One speaker's clips."""
    person = speakers.make_speaker(options.seed, index)
    name = f"voice_{index:04d}"
    specs = [_spec(options, index, utterance) for utterance in range(options.clips)]
    return [
        Clip(
            clip_id=f"{name}/{spec.utterance:03d}_{spec.emotion}",
            speaker=name,
            emotion=spec.emotion,
            label=spec.emotion,
            voice=spec,
            gender=person.gender,
            age=person.age,
            language=person.accent,
            statement=spec.statement,
        )
        for spec in specs
    ]


def _spec(options: SyntheticOptions, speaker: int, utterance: int) -> SyntheticUtterance:
    """Emotions alternate, and so do statements within each emotion."""
    turn, which = divmod(utterance, len(EMOTIONS))
    statement = source_filter.STATEMENTS[(turn + which + speaker) % len(source_filter.STATEMENTS)]
    emotion = EMOTIONS[which]
    return SyntheticUtterance(
        seed=options.seed,
        speaker=speaker,
        utterance=utterance,
        emotion=emotion,
        statement=statement,
        forms=options.forms,
    )
