"""What a device trains on in a run: enrolled clips, and what its user labelled since.

The set is read once, where the device enrols for the run, so every round of the run sees the same.
"""

from dataclasses import replace

import torch

from sottovoce.client.device import stored_clips
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import UNKNOWN_LABEL, LabelledFeatures
from sottovoce.client.personalisation import feedback
from sottovoce.shared.models.examples import complete_votes, concatenate_examples
from sottovoce.shared.printable import get_logger
from sottovoce.shared.protocol.training_plan import Plan

LOG = get_logger("sottovoce.client")


def load_training_set(device: Device, plan: Plan, width: int) -> LabelledFeatures:
    """Load a device's clips for a run, labels in the plan's order, corrections applied.

    Args:
        device: The user's device.
        plan: Names the extractor, and the classes in their order.
        width: How many features the plan's projection reads.

    Votes of raters come along where the plan trains on them; whoever labels a recording anew is its
    only rater.

    Guarantees:
        - A recording counts once: a label that the user gave later replaces that of the clip as it
          was enrolled. So one recording more or less is one training example more or less, and
          nothing else changes.
        - Clips of another extractor, and those whose label the plan has no class for, train nothing
          and fit no head. Nobody learns of them: a refusal would tell the server that there are.
    """
    clips = device.load_features()
    if not clips.fits(plan.extractor, width):
        LOG.info("%s: clips of another extractor train nothing", device.profile.user)
        clips = _without_clips(plan, width)
    clips = clips.with_label_order(device.profile.labels, plan.labels)
    known = clips.examples.labels != UNKNOWN_LABEL
    if not known.all():
        LOG.info("%s: clips without a label of this plan train nothing", device.profile.user)
    # A clip without a label of the plan still enrols its user, as one without a label does.
    clips = clips.restrict(known)
    if not plan.model.reads_frames:  # recordings are labelled for models that read a vector each
        clips = _with_labelled(clips, device, plan, width)
    # Votes of all clips or of none: whether a clip has some must not change how others are trained.
    votes = complete_votes(clips.examples, len(plan.labels)) if plan.training.reads_votes else None
    return replace(clips, examples=replace(clips.examples, votes=votes))


def _with_labelled(
    clips: LabelledFeatures, device: Device, plan: Plan, width: int
) -> LabelledFeatures:
    """Let what the user labelled since train, too, in place of the same recordings as enrolled."""
    clips = stored_clips.supersede_clips(clips, feedback.list_labelled(device.vault))
    labelled = feedback.load_examples(device.vault, plan.extractor, plan.labels, width)
    if not len(labelled) or not device.contributes:
        return clips
    yes = torch.ones(len(labelled), dtype=torch.bool)
    return replace(
        clips,
        examples=concatenate_examples([clips.examples, labelled]),
        for_enrolment=torch.cat([clips.for_enrolment, ~yes]),
        # The head reads them from where they are kept, so that forgetting one is exact.
        for_head=torch.cat([clips.for_head, ~yes]),
        for_training=torch.cat([clips.for_training, yes]),
        neutral=None,
    )


def _without_clips(plan: Plan, width: int) -> LabelledFeatures:
    """No clips, of the shape that the plan's model reads."""
    none = LabelledFeatures.without_recordings(width=width)
    if not plan.model.reads_frames:
        return none
    features = torch.zeros(0, 1, width)
    return replace(none, examples=replace(none.examples, features=features))
