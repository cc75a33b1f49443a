"""Joining a run on a device: store what rounds read, and release the first sums."""

from functools import partial

import torch
from torch import Tensor

from sottovoce.client.device import stored_clips
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import LabelledFeatures
from sottovoce.client.federation import secure_sums
from sottovoce.client.federation.training_set import load_training_set
from sottovoce.client.personalisation import feedback
from sottovoce.shared.memo import LastValueCache
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.privacy.user_level import SecureSumConfigs
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker import normalisation
from sottovoce.shared.speaker.normalisation import SpeakerStatistics


def enrol_device(
    device: Device,
    plan: Plan,
    projection: PublicProjection,
    speaker_statistics: SpeakerStatistics,
    *,
    requests_sums: bool = True,
) -> Tensor | None:
    """Join a run: learn the user's normaliser, prepare what training and prediction read.

    Args:
        device: The user's device.
        plan: The run's public facts; kept for its rounds.
        projection: The public projection.
        speaker_statistics: Public statistics of speakers.
        requests_sums: Whether the server asks for label counts and centre; a run that is under
            way knows them already.

    Returns:
        Noised label counts (classes,) and share of the centre (inputs,) as one float32 vector,
        nothing of them where they leave in a secure sum or are not asked for, or None where the
        device only receives models.

    Guarantees:
        - Whether a device enrols does not depend on its clips. A clip whose label the plan does not
          know trains nothing and fits no head, and nobody learns of it.
        - Where users are sampled, all sums of the plan are booked before the first answer, those
          that the device is not asked for included.

    Raises:
        BudgetSpent: The run's first releases would pass the device's budget.
        PrivacyError: Its secure sums are below the owner's floor, see ``secure_sums.check_floor``;
            nothing was stored.
    """
    if device.contributes:
        plan.scheme.match_sums(
            plan,
            plain=lambda: None,
            secure=lambda configs: secure_sums.check_floor(device.profile, configs),
        )
    clips, rows = store_projected_features(device, plan, projection, speaker_statistics)
    # What predictions read is stored by now; nothing of this device's leaves.
    if not device.contributes:
        return None
    counts, rows = _label_counts(plan, clips), rows[clips.for_training]

    def store(_: SecureSumConfigs) -> Tensor:
        secure_sums.store_enrolment(device, plan, counts, rows)
        return torch.zeros(0)

    return plan.scheme.match_sums(
        plan,
        plain=partial(_release_sums, device, plan, counts, rows, requests_sums=requests_sums),
        secure=store,
    )


def _release_sums(
    device: Device, plan: Plan, counts: Tensor, rows: Tensor, *, requests_sums: bool
) -> Tensor:
    """Book what the plan has booked in advance, and release the sums that the server asks for."""
    schedule = plan.all_rounds_release()
    if schedule:
        device.book_in_advance("schedule", plan.content_hash(), schedule)
    if not requests_sums:  # others may have been asked: who was is the server's secret
        for name, release in plan.scheme.releases_in_advance(plan).items():
            device.book_in_advance(name, plan.content_hash(), release)
        return torch.zeros(0)
    return torch.cat([_released_counts(device, plan, counts), _centre_share(device, plan, rows)])


def store_projected_features(
    device: Device, plan: Plan, projection: PublicProjection, speaker_statistics: SpeakerStatistics
) -> tuple[LabelledFeatures, Tensor]:
    """Store what rounds and predictions read; nothing is released.

    Arguments as for :func:`enrol_device`.

    Returns:
        The clips with labels in the plan's order, and their projected rows, shape
        (utterances, inputs).
    """
    clips = load_training_set(device, plan, len(projection.mean))
    projected = _project_features(
        projection, clips.examples.features, isolate_examples=device.isolate_examples
    )
    rows = normalisation.average_frames(projected, clips.examples.frames)
    device.vault.put("plan", plan.to_json().encode())
    device.vault.put_tensors("population", speaker_statistics.to_tensors())
    tensors = {"enrolled": rows[clips.for_enrolment], "length": torch.tensor(projection.row_norm)}
    subsets = {
        "training": (clips.examples.select(clips.for_training), projected[clips.for_training]),
        "calibration": (clips.examples.select(clips.for_head), projected[clips.for_head]),
    }
    for name, (part, inputs) in subsets.items():
        parts = {"projected": inputs, "frames": part.frames, "labels": part.labels}
        # Heads are fitted on labels: the votes are for training alone.
        if part.votes is not None and name == "training":
            parts["votes"] = part.votes
        tensors |= {f"{name}.{key}": value for key, value in parts.items()}
    # Names cost a hash of every clip; of a simulated device's clips nobody forgets one.
    if device.isolate_examples or feedback.list_labelled(device.vault):
        tensors |= _names_of_subsets(clips)
    device.vault.put_tensors("projected", tensors)
    if len(feedback.load_examples(device.vault, plan.extractor, plan.labels, len(projection.mean))):
        feedback.store_projection(device.vault, projection)
    device.training_cache = LastValueCache()
    return clips, rows


def _names_of_subsets(clips: LabelledFeatures) -> dict[str, Tensor]:
    """Names of the recordings in each subset, by which a forgotten one is found in it."""
    masks = {
        "enrolled": clips.for_enrolment,
        "training": clips.for_training,
        "calibration": clips.for_head,
    }
    return {
        f"{subset}.names": stored_clips.pack_names(clips.examples.select(mask))
        for subset, mask in masks.items()
    }


def _project_features(
    projection: PublicProjection, features: Tensor, *, isolate_examples: bool
) -> Tensor:
    """Project features; with ``isolate_examples``, each utterance's as if there were no other."""
    if not isolate_examples or len(features) == 0:
        return projection.project_features(features)
    return torch.cat([projection.project_features(one[None]) for one in features])


def _label_counts(plan: Plan, labelled: LabelledFeatures) -> Tensor:
    """Count the training clips of each class, clipped, shape (classes,), float64.

    A clip counts once, for the class of its majority: votes, which may be soft targets, are not
    looked at, so that one clip more or less moves one count by 1.
    """
    labels = labelled.examples.labels[labelled.for_training]
    counts = torch.bincount(labels, minlength=len(plan.labels)).double()
    return plan.scheme.clip_counts(plan, counts)


def _released_counts(device: Device, plan: Plan, counts: Tensor) -> Tensor:
    """Release the label counts, noised, shape (classes,), float32."""
    return device.book_and_release(
        "label-counts",
        plan.content_hash(),
        plan.counts_release(),
        lambda random: random.noise_source.add_noise(counts, plan.count_noise).float(),
    )


def _centre_share(device: Device, plan: Plan, rows: Tensor) -> Tensor:
    """Release the device's share of the population's centre, noised, (inputs,), float32."""
    settings, release = plan.centre, plan.centre_release()
    if settings is None or release is None:
        return torch.zeros(rows.shape[1])
    rows, max_norm = plan.scheme.device_rows(rows), plan.scheme.centre_bound(plan)
    return device.book_and_release(
        "centre",
        plan.content_hash(),
        release,
        lambda random: normalisation.release_sum(
            rows, settings, random.noise_source, max_norm=max_norm
        ),
    )
