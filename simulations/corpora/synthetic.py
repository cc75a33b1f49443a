"""The embedded corpus: seeded voices, made when they are heard and never stored.

Every clip is decided by (seed, speaker, utterance), so that populations of any size need no disk
and any worker can make any clip.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from sottovoce.shared import audio, check, seeds
from sottovoce.shared.errors import SettingError
from sottovoce.simulations.corpora import profiles, voice
from sottovoce.simulations.corpora.clips import Clip, Corpus

EMOTIONS = tuple(profiles.PROFILES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the embedded corpus holds.

    Attributes:
        speakers: How many people, at least 1; women and men alternate.
        clips: Utterances of each, at least 1; emotions take turns.
        seed: Decides who they are and how they speak.
    """

    speakers: int = 24
    clips: int = 30
    seed: int = 7

    def __post_init__(self) -> None:
        check.at_least(1, speakers=self.speakers, clips=self.clips)
        check.not_negative(seed=self.seed)


def parse(text: str) -> Options:
    """Options from ``speakers=24,clips=30,seed=7``; what is not named keeps its default.

    Raises:
        SettingError: An unknown name, or a value that is not a whole number in its range.
    """
    values: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in Options.__slots__ or not value.isdigit():
            raise SettingError(
                f"synthetic option {item!r} is not understood; write speakers=24,clips=30,seed=7"
            )
        values[name] = int(value)
    return Options(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class VoiceSpec:
    """All that decides one synthetic utterance; small, and can be sent to a worker.

    Attributes:
        seed: The population's.
        speaker: Index within the population.
        utterance: Index among the speaker's utterances.
        emotion: One of ``EMOTIONS``.
        statement: What is said, as in ``voice.STATEMENTS``.
    """

    seed: int
    speaker: int
    utterance: int
    emotion: str
    statement: str

    def render(self) -> audio.Signal:
        """The utterance, mono at 16 kHz; the same on every call."""
        person = profiles.speaker(self.seed, self.speaker)
        rng = seeds.numpy_rng(self.seed, "synthetic utterance", self.speaker, self.utterance)
        manner = profiles.manner(person, self.emotion, rng)
        samples = voice.speak(person, manner, self.statement, rng)
        return audio.Signal(samples=torch.from_numpy(samples)[None], rate=voice.RATE)

    def key(self) -> str:
        """SHA-256 of the settings and of the code that renders them, as 64 hex digits."""
        return hashlib.sha256(f"{_code_digest()} {self!r}".encode()).hexdigest()


@cache
def _code_digest() -> str:
    """SHA-256 of the code that makes the sound: another code makes another recording."""
    sources = [Path(str(module.__file__)) for module in (profiles, voice)]
    text = b"".join(path.read_bytes() for path in (*sources, Path(__file__)))
    return hashlib.sha256(text + np.__version__.encode()).hexdigest()


def open_synthetic(text: str = "") -> Corpus:
    """The embedded corpus.

    Args:
        text: Options as ``parse`` reads them.
    """
    options = parse(text)
    clips = [clip for index in range(options.speakers) for clip in _clips(options, index)]
    return Corpus(
        name="synthetic",
        clips=tuple(clips),
        mapping={clip.label: clip.emotion for clip in clips},
        clips_found=len(clips),
    )


def _clips(options: Options, index: int) -> list[Clip]:
    """One speaker's clips."""
    person = profiles.speaker(options.seed, index)
    name = f"voice_{index:04d}"
    specs = [_spec(options.seed, index, utterance) for utterance in range(options.clips)]
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


def _spec(seed: int, speaker: int, utterance: int) -> VoiceSpec:
    """Emotions take turns, and so do statements within each emotion."""
    turn, which = divmod(utterance, len(EMOTIONS))
    statement = voice.STATEMENTS[(turn + which + speaker) % len(voice.STATEMENTS)]
    emotion = EMOTIONS[which]
    return VoiceSpec(
        seed=seed, speaker=speaker, utterance=utterance, emotion=emotion, statement=statement
    )
