"""What a device does when it joins a run: what rounds read is kept, its first sums are told."""

import math

import torch
from torch import Tensor

from sottovoce.client import labeller, secure
from sottovoce.client.device import Device
from sottovoce.client.owner import Clips
from sottovoce.shared import normaliser
from sottovoce.shared.errors import MessageError
from sottovoce.shared.front import Front
from sottovoce.shared.newest import Newest
from sottovoce.shared.normaliser import Population
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy import bound


def enrol(
    device: Device, plan: Plan, front: Front, population: Population, *, tells: bool = True
) -> Tensor | None:
    """Join a run: learn the user's normaliser, prepare what training and prediction read.

    Args:
        device: The user's device.
        plan: The run's public facts; kept for its rounds.
        front: The public front.
        population: Public statistics of speakers.
        tells: Whether the server asks for label counts and centre; a run that is under way knows
            them already.

    Returns:
        Noised label counts (classes,) and share of the centre (inputs,) as one float32 vector,
        nothing of them where they leave in a secure sum or are not asked for, or None where the
        device only receives models.

    Guarantees:
        - Where coins decide who joins which sum, all sums of the plan are booked before the first
          answer, those that the device is not asked for included.

    Raises:
        BudgetSpent: The run's first releases would pass the device's budget.
        MessageError: The plan lacks a label that the device's clips carry.
    """
    clips, rows = prepare(device, plan, front, population)
    if not device.facts.contributes:
        return None
    if plan.user and plan.user.secure:
        secure.keep_enrolment(device, plan, _label_counts(plan, clips), rows[clips.trains])
        return torch.zeros(0)
    schedule = plan.schedule_release()
    if schedule:
        device.prepay("schedule", plan.digest(), schedule)
    if not tells:
        _prepay_enrolment(device, plan)
        return torch.zeros(0)
    counts = _released_counts(device, plan, _label_counts(plan, clips))
    return torch.cat([counts, _centre_share(device, plan, rows[clips.trains])])


def prepare(
    device: Device, plan: Plan, front: Front, population: Population
) -> tuple[Clips, Tensor]:
    """Keep what rounds and predictions read; nothing is released. Arguments as for :func:`enrol`.

    Returns:
        The clips with labels in the plan's order, and their rows in front space, shape
        (utterances, inputs).
    """
    clips = _relabel(device, plan)
    projected = _projected(front, clips.examples.features, apart=device.apart)
    rows = normaliser.summarise(projected, clips.examples.frames)
    statistics = {name: getattr(population, name) for name in Population.__dataclass_fields__}
    device.vault.put("plan", plan.to_json().encode())
    device.vault.put_tensors("population", statistics)
    tensors = {"enrolled": rows[clips.enrols], "length": torch.tensor(front.length)}
    kept = {
        "training": (clips.examples.take(clips.trains), projected[clips.trains]),
        "calibration": (clips.examples.take(clips.calibrates), projected[clips.calibrates]),
    }
    for name, (part, shown) in kept.items():
        parts = {"projected": shown, "frames": part.frames, "labels": part.labels}
        tensors |= {f"{name}.{key}": value for key, value in parts.items()}
    device.vault.put_tensors("projected", tensors)
    if len(labeller.kept(device.vault, plan.extractor, plan.labels, len(front.mean))):
        labeller.keep_front(device.vault, front)
    device.training = Newest()
    return clips, rows


def _projected(front: Front, features: Tensor, *, apart: bool) -> Tensor:
    """Features behind the front; with ``apart``, each utterance's as if there were no other."""
    if not apart or len(features) == 0:
        return front.project(features)
    return torch.cat([front.project(one[None]) for one in features])


def _prepay_enrolment(device: Device, plan: Plan) -> None:
    """Book the sums of enrolment where others than this device may have been asked for them.

    Who was is the server's secret: whoever does not know must take it to be anybody.
    """
    if not plan.sampled:
        return
    for name, release in (
        ("label-counts", plan.counts_release()),
        ("centre", plan.centre_release()),
    ):
        if release:
            device.prepay(name, plan.digest(), release)


def _relabel(device: Device, plan: Plan) -> Clips:
    """The device's clips with labels in the plan's order."""
    clips = device.clips()
    missing = [label for label in device.facts.labels if label not in plan.labels]
    if missing:
        raise MessageError(f"the plan has no class for {', '.join(missing)}, which this user gave")
    return clips.relabelled(device.facts.labels, plan.labels)


def _label_counts(plan: Plan, clips: Clips) -> Tensor:
    """How many clips of each class training uses, bounded, shape (classes,), float64."""
    labels = clips.examples.labels[clips.trains]
    counts = torch.bincount(labels, minlength=len(plan.labels)).double()
    return bound.project(counts, plan.user.counts.clip_norm) if plan.user else counts


def _released_counts(device: Device, plan: Plan, counts: Tensor) -> Tensor:
    """The label counts, noised, shape (classes,), float32."""
    return device.release(
        "label-counts",
        plan.digest(),
        plan.counts_release(),
        lambda random: (counts + random.noise.normal((len(counts),), plan.count_noise)).float(),
    )


def _centre_share(device: Device, plan: Plan, rows: Tensor) -> Tensor:
    """The device's share of the population's centre, noised, shape (inputs,), float32."""
    settings, release = plan.centre, plan.centre_release()
    if settings is None or release is None:
        return torch.zeros(rows.shape[1])
    user = plan.user.centre.clip_norm if plan.user and plan.user.centre else math.inf
    if plan.unit == "user":
        rows = secure.mean_row(rows)
    return device.release(
        "centre",
        plan.digest(),
        release,
        lambda random: normaliser.released_sum(rows, settings, random.noise, most=user),
    )
