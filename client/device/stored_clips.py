"""A device's clips as its vault holds them; the ledger is not touched, for nothing leaves."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from sottovoce.client.device import profile_seal
from sottovoce.client.device.profile import PROFILE_FILE, UNKNOWN_LABEL, LabelledFeatures
from sottovoce.client.device.vault import Vault
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.speaker import normalisation


def load_enrolment_features(folder: Path, vault: Vault) -> tuple[Tensor, bool]:
    """Read the features that enrol a user, and whether they are known to be neutral.

    Args:
        folder: An existing device; its ledger is not touched.
        vault: The device's.

    Returns:
        Shape (utterances, features), one row an utterance; of frames, their mean.
    """
    tensors = vault.get_tensors("clips")
    features, frames = tensors["features"][tensors["enrols"]], tensors["frames"][tensors["enrols"]]
    rows = normalisation.average_frames(features.float(), frames)
    profile, _ = profile_seal.read_bound_profile(folder / PROFILE_FILE, vault)
    return rows, profile.neutral_enrolment


def load_head_examples(folder: Path, vault: Vault, labels: Sequence[str]) -> Examples:
    """Read the clips that a head is fitted on, as stored when the device was set up.

    Args:
        folder: An existing device; its ledger is not touched.
        vault: The device's.
        labels: A model's emotions, in the order of its classes; clips of others are left out.
    """
    profile, _ = profile_seal.read_bound_profile(folder / PROFILE_FILE, vault)
    clips = LabelledFeatures.from_tensors(vault.get_tensors("clips"))
    # The model may have other emotions, or the same in another order.
    numbered = clips.with_label_order(profile.labels, labels).examples
    return numbered.select(clips.for_head & (numbered.labels != UNKNOWN_LABEL))
