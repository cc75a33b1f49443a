"""Enrolling a user's recordings on a device that is there already."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.client.device import stored_clips
from sottovoce.client.device.consent import Purpose
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import UNKNOWN_LABEL, LabelledFeatures
from sottovoce.client.device.vault import FileVault
from sottovoce.client.personalisation import example_store, feedback
from sottovoce.shared.errors import SettingError
from sottovoce.shared.identity import find_name
from sottovoce.shared.models.examples import MAX_FRAMES, stack_utterances
from sottovoce.shared.validation import suggest_name

NEUTRAL = "neutral"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clip:
    """One recording to enrol, as features.

    Attributes:
        features: Shape (features,) or (frames, features), as an extractor gave them.
        emotion: What it is; "" where nobody knows, so that it enrols the voice alone.
        is_neutral: Whether it is known to be neutral speech.
    """

    features: Tensor
    emotion: str = ""
    is_neutral: bool = False


def enrol_clips(
    device: Device, vault: FileVault, clips: Sequence[Clip], *, extractor: str
) -> tuple[str, ...]:
    """Enrol recordings: they tell the user's voice, and those with an emotion fit head and model.

    Their features are sealed in the vault. The head is fitted on them when a recogniser is next
    opened, and the next run trains on them, with consent to contribute.

    Args:
        device: The user's.
        vault: The device's.
        clips: At least one.
        extractor: What computed the features.

    Returns:
        The recordings' names; one that is enrolled again keeps its name and gets the new emotion.

    Raises:
        ConsentError: The user does not consent to personalise.
        SettingError: An emotion that is none of the device's, or clips of another extractor than
            those that are there; nothing was enrolled.
        ModelError: Features that are not finite, or far too large; nothing was enrolled.
        PrivacyError: The vault cannot be read or written.
    """
    device.consent.require(Purpose.PERSONALISE)
    if not clips:
        raise SettingError("there are no recordings to enrol")
    labels = [find_label(device, clip.emotion) for clip in clips]
    for clip in clips:
        numbers = clip.features.flatten()  # of frames, too
        example_store.check_features(numbers, numbers.shape)
    known = torch.tensor([label != UNKNOWN_LABEL for label in labels])
    held = LabelledFeatures(
        examples=stack_utterances([clip.features for clip in clips], labels, max_frames=MAX_FRAMES),
        for_enrolment=torch.ones(len(clips), dtype=torch.bool),
        for_head=known,
        for_training=known,
        neutral=torch.tensor([clip.is_neutral for clip in clips]),
        extractor=extractor,
    )
    # The same recording twice would be two utterances: the last one counts.
    names = stored_clips.name_examples(held.examples)
    last = {name: index for index, name in enumerate(names)}
    chosen = torch.zeros(len(clips), dtype=torch.bool)
    chosen[list(last.values())] = True
    feedback.enrol_labelled(vault, held.select(chosen))
    return names


def find_label(device: Device, emotion: str) -> int:
    """Find the number of an emotion among a device's labels; ``UNKNOWN_LABEL`` for none.

    Raises:
        SettingError: The device has no such label.
    """
    if not emotion:
        return UNKNOWN_LABEL
    labels = device.profile.labels
    name = find_name(emotion, labels)
    if name is None:
        raise SettingError(
            f"the emotion is {emotion!r}{suggest_name(emotion, labels)}; the device knows "
            f"{', '.join(labels)}: nothing was enrolled"
        )
    return labels.index(name)
