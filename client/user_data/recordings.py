"""The recordings that a device keeps, by name: never sound, only features."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sottovoce.client.device import stored_clips
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import UNKNOWN_LABEL
from sottovoce.client.device.vault import FileVault
from sottovoce.client.personalisation import feedback, speaker_adapter
from sottovoce.client.personalisation.example_store import read_stores
from sottovoce.client.personalisation.feedback import FeedbackStore
from sottovoce.client.personalisation.speaker_adapter import SpeakerAdapter


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRecording:
    """One recording that something was learned from.

    Attributes:
        name: By which it is forgotten.
        emotion: What its user says it was; "" where nothing was said.
        extractor: What computed its features; "" where that is not known.
        uses: What it serves: ``voice``, ``head``, ``training``.
    """

    name: str
    emotion: str
    extractor: str
    uses: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON object."""
        return {
            "name": self.name,
            "emotion": self.emotion or None,
            "extractor": self.extractor or None,
            "uses": list(self.uses),
        }


def list_recordings(device: Device) -> tuple[StoredRecording, ...]:
    """List the recordings that a device keeps: enrolled, labelled and learned from.

    Args:
        device: The user's.

    Returns:
        One entry a recording; the newest label counts.

    Raises:
        PrivacyError: The vault is damaged.
    """
    found: dict[str, StoredRecording] = {}
    for one in (*_enrolled(device), *_labelled(device), *_learned(device)):
        earlier = found.get(one.name, one)
        found[one.name] = StoredRecording(
            name=one.name,
            emotion=one.emotion or earlier.emotion,
            extractor=one.extractor or earlier.extractor,
            uses=tuple(sorted({*earlier.uses, *one.uses})),
        )
    return tuple(found.values())


def forget_recording(device: Device, vault: FileVault, name: str) -> bool:
    """Forget a recording wherever it lies, where no model is at hand to fit the head again.

    Args:
        device: The user's.
        vault: The device's.
        name: As :func:`list_recordings` has it; another is ignored, so that a call that was killed
            can be repeated.

    Returns:
        Whether the head was let go: the population's stands in until a model fits it again.

    Raises:
        PrivacyError: The vault cannot be read or written.
    """
    if name in speaker_adapter.list_utterances(device.folder, vault=vault):
        speaker_adapter.forget_utterance(device.folder, name, vault=vault)
    return feedback.forget_recording(device.folder, name, vault=vault)


def _enrolled(device: Device) -> Iterator[StoredRecording]:
    """Clips as they were enrolled."""
    clips = stored_clips.load_clips(device.vault)
    labels = clips.examples.labels.tolist()
    masks = {
        "voice": clips.for_enrolment.tolist(),
        "head": clips.for_head.tolist(),
        "training": clips.for_training.tolist(),
    }
    for index, name in enumerate(stored_clips.name_examples(clips.examples)):
        label = labels[index]
        yield StoredRecording(
            name=name,
            emotion="" if label == UNKNOWN_LABEL else device.profile.labels[label],
            extractor=clips.extractor,
            uses=tuple(use for use, chosen in masks.items() if chosen[index]),
        )


def _labelled(device: Device) -> Iterator[StoredRecording]:
    """Recordings that the user labelled since."""
    for store in read_stores(device.vault, FeedbackStore.blob_name):
        for name, emotion in zip(store.names, store.emotions, strict=True):
            yield StoredRecording(
                name=name, emotion=emotion, extractor=store.extractor, uses=("head", "training")
            )


def _learned(device: Device) -> Iterator[StoredRecording]:
    """Recordings that the voice was learned from."""
    for store in read_stores(device.vault, SpeakerAdapter.blob_name):
        for name in store.names:
            yield StoredRecording(name=name, emotion="", extractor=store.extractor, uses=("voice",))
