"""A device's clips as its vault holds them; the ledger is not touched, for nothing leaves.

A recording is known by its name: a hash of its features. So the same recording has one name
wherever it lies, enrolled or labelled later, and counts once.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sottovoce.client.device import profile_seal
from sottovoce.client.device.profile import PROFILE_FILE, UNKNOWN_LABEL, LabelledFeatures
from sottovoce.client.device.vault import FileVault, Vault
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.speaker import normalisation

_CLIPS: Final = "clips"
_PROJECTED: Final = "projected"
_NORMALISER: Final = "normaliser"
"""The mean as the last run left it, of the clips that enrolled the user then."""

_CHANGES: Final = "run-set"
"""What says that a recording left the set that a run trains on: its newest name."""

_NAME_BYTES: Final = 16
_NAME: Final = re.compile(f"[0-9a-f]{{{2 * _NAME_BYTES}}}")


def name_recording(features: Tensor) -> str:
    """Name a recording by a hash of its features, 32 hexadecimal digits.

    Args:
        features: Shape (features,) or (frames, features); real frames only.

    Example:
        >>> name_recording(torch.zeros(2)) == name_recording(torch.zeros(2).double())
        True
    """
    # Frames are kept in half precision: the name must be the same before and after.
    kept = features.detach().half() if features.dim() == 2 else features.detach()
    row = kept.float().contiguous()
    return hashlib.sha256(row.numpy().tobytes()).hexdigest()[: 2 * _NAME_BYTES]


def name_examples(examples: Examples) -> tuple[str, ...]:
    """Name each of several recordings; of frames, those that are padding do not count."""
    rows, frames = examples.features, examples.frames.tolist()
    if rows.dim() == 2:
        return tuple(map(name_recording, rows))
    return tuple(name_recording(row[:count]) for row, count in zip(rows, frames, strict=True))


def load_clips(vault: Vault) -> LabelledFeatures:
    """Load all clips that a device has enrolled.

    Args:
        vault: The device's.
    """
    return LabelledFeatures.from_tensors(vault.get_tensors(_CLIPS))


def add_clips(vault: FileVault, clips: LabelledFeatures) -> tuple[str, ...]:
    """Add clips to those that are enrolled; one that is there already gets the new label and uses.

    Args:
        vault: The device's.
        clips: Of the extractor of those that are there.

    Returns:
        The clips' names.

    Raises:
        SettingError: Those that are there are of another extractor.
        PrivacyError: The vault cannot be read or written; what was there is there still.
    """
    names = name_examples(clips.examples)
    with vault.lock_blob(_CLIPS):
        there = load_clips(vault)
        rest = there.select(_mask_without(there, names))
        vault.delete(_NORMALISER)  # until a run learns it again, the mean is computed when needed
        vault.put_tensors(_CLIPS, rest.extend(clips).choose_enrolment().to_tensors())
    return names


def forget_clip(vault: FileVault, name: str) -> bool:
    """Forget a recording wherever it was enrolled, and take it out of the set of a run under way.

    Args:
        vault: The device's.
        name: Of the recording; another changes nothing.

    Returns:
        Whether it was enrolled.

    Guarantees:
        - It may be repeated: killed on the way, a second call finishes the first.

    Raises:
        PrivacyError: The vault cannot be read or written.
    """
    leave_run(vault, name)
    with vault.lock_blob(_CLIPS):
        there = load_clips(vault)
        rest = _mask_without(there, (name,))
        if bool(rest.all()):
            return False
        vault.delete(_NORMALISER)  # before: killed in between, the mean knows nothing of the clip
        vault.put_tensors(_CLIPS, there.select(rest).choose_enrolment().to_tensors())
    return True


def load_enrolment_features(folder: Path, vault: Vault) -> tuple[Tensor, bool]:
    """Read the features that enrol a user, and whether they are known to be neutral.

    Args:
        folder: An existing device; its ledger is not touched.
        vault: The device's.

    Returns:
        Shape (utterances, features), one row an utterance; of frames, their mean.
    """
    clips = load_clips(vault)
    enrolling = clips.examples.select(clips.for_enrolment)
    rows = normalisation.average_frames(enrolling.features, enrolling.frames)
    profile, _ = profile_seal.read_bound_profile(folder / PROFILE_FILE, vault)
    return rows, profile.neutral_enrolment or clips.has_neutral_enrolment


def load_head_examples(
    folder: Path, vault: Vault, labels: Sequence[str], *, superseded: Collection[str] = ()
) -> Examples:
    """Read the enrolled clips that a head is fitted on.

    Args:
        folder: An existing device; its ledger is not touched.
        vault: The device's.
        labels: A model's emotions, in the order of its classes; clips of others are left out.
        superseded: Names of recordings that got another label since, which are left out, too.
    """
    profile, _ = profile_seal.read_bound_profile(folder / PROFILE_FILE, vault)
    clips = load_clips(vault)
    # The model may have other emotions, or the same in another order.
    numbered = clips.with_label_order(profile.labels, labels).examples
    chosen = clips.for_head & (numbered.labels != UNKNOWN_LABEL)
    return numbered.select(chosen & _mask_without(clips, superseded))


def supersede_clips(clips: LabelledFeatures, names: Collection[str]) -> LabelledFeatures:
    """Leave recordings that got another label since out of training and of the head.

    Args:
        clips: As they were enrolled.
        names: Of the recordings; without any the clips come back unchanged.
    """
    return clips.restrict(_mask_without(clips, names)) if names else clips


def pack_names(examples: Examples) -> Tensor:
    """Pack the names of recordings into a tensor, shape (utterances, 16), uint8."""
    packed = bytearray(b"".join(bytes.fromhex(name) for name in name_examples(examples)))
    if not packed:
        return torch.zeros(0, _NAME_BYTES, dtype=torch.uint8)
    return torch.frombuffer(packed, dtype=torch.uint8).reshape(-1, _NAME_BYTES)


def run_set_version(vault: Vault) -> bytes:
    """Version of the set that a run under way trains on; it changes when one is forgotten."""
    return vault.get(_CHANGES) if vault.has_blob(_CHANGES) else b""


def leave_run(vault: Vault, name: str) -> None:
    """Take a recording out of the set that a run under way trains on.

    Args:
        vault: The device's.
        name: Of the recording; another changes nothing.
    """
    if not vault.has_blob(_PROJECTED) or not _NAME.fullmatch(name):
        return
    tensors = vault.get_tensors(_PROJECTED)
    wanted = torch.frombuffer(bytearray(bytes.fromhex(name)), dtype=torch.uint8)
    changed = False
    for part in ("enrolled", "training", "calibration"):
        names = tensors.get(f"{part}.names")
        if names is None:  # of a run before there were names, or of a simulation
            continue
        rest = (names != wanted).any(1)
        changed |= not bool(rest.all())
        fields = [key for key in tensors if key == part or key.startswith(f"{part}.")]
        tensors |= {key: tensors[key][rest] for key in fields}
    if changed:
        vault.put_tensors(_PROJECTED, tensors)
        vault.put(_CHANGES, bytes.fromhex(name))


def _mask_without(clips: LabelledFeatures, names: Collection[str]) -> Tensor:
    """Mask of the clips that have none of these names, shape (utterances,), bool."""
    if not names:
        return torch.ones(len(clips.examples), dtype=torch.bool)
    unwanted = set(names)
    found = [name not in unwanted for name in name_examples(clips.examples)]
    return torch.tensor(found, dtype=torch.bool)
