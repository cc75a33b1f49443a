"""Example recordings: embedded voices, written as files that an app or a tutorial can read."""

import wave
from pathlib import Path
from typing import Final

from sottovoce.shared import validation
from sottovoce.shared.audio import SAMPLE_RATE, Signal
from sottovoce.simulations.corpora.synthetic import source_filter
from sottovoce.simulations.corpora.synthetic.synthetic_corpus import EMOTIONS, SyntheticUtterance

SAMPLE_EMOTIONS: Final = ("angry", *(name for name in EMOTIONS if name != "angry"))
"""Emotions of example recordings in order, an easy one first."""

_FULL_SCALE: Final = 32_767
_SILENCE_S: Final = 2.0


def write_sample(path: Path, *, emotion: str, seed: int, utterance: int = 0) -> None:
    """Write one recording of an embedded voice, mono 16-bit WAV at 16 kHz.

    Args:
        path: The file to write; its folder must exist.
        emotion: Emotion that the voice acts, one of :data:`SAMPLE_EMOTIONS`.
        seed: Decides whose voice it is, 0 or above.
        utterance: Which of the speaker's utterances it is, from 0.

    Raises:
        SettingError: Another emotion, or a seed or number below 0.

    >>> write_sample(Path("hello.wav"), emotion="angry", seed=1)
    >>> Path("hello.wav").stat().st_size > 16_000
    True
    """
    validation.require_one_of(EMOTIONS, emotion=emotion)
    validation.require_whole_number(seed=seed, utterance=utterance)
    statements = source_filter.STATEMENTS
    spoken = SyntheticUtterance(
        seed=seed,
        speaker=0,
        utterance=utterance,
        emotion=emotion,
        statement=statements[utterance % len(statements)],
    )
    write_wav(path, spoken.render())


def write_silence(path: Path, *, seconds: float = _SILENCE_S) -> None:
    """Write a silent recording, mono 16-bit WAV at 16 kHz.

    Args:
        path: The file to write; its folder must exist.
        seconds: Its length, above 0.

    >>> write_silence(Path("silence.wav"), seconds=0.5)
    """
    validation.require_positive(seconds=seconds)
    _write_pcm(path, bytes(2 * int(seconds * SAMPLE_RATE)), rate=SAMPLE_RATE)


def write_wav(path: Path, signal: Signal) -> None:
    """Write a mono signal as 16-bit WAV.

    Args:
        path: The file to write; its folder must exist.
        signal: Shape (1, samples), within -1 to 1; what lies outside is clipped.
    """
    samples = (signal.samples[0].clamp(-1.0, 1.0) * _FULL_SCALE).round().short()
    # WAV is little-endian, whatever this machine is.
    _write_pcm(path, samples.numpy().astype("<i2").tobytes(), rate=signal.rate)


def _write_pcm(path: Path, samples: bytes, *, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples)
