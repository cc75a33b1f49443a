"""What a device does when a run asks: enrol, train, become personal. No Flower in here."""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from sottovoce.client import given, labeller, secure, turns
from sottovoce.client.calibrator import Calibrator
from sottovoce.client.device import Device, Pending, Randomness
from sottovoce.client.gradients import twin
from sottovoce.client.owner import Clips
from sottovoce.client.trainer import local_update
from sottovoce.shared import crypto, heads, normaliser
from sottovoce.shared.errors import MessageError, SottovoceError
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import Front, finish
from sottovoce.shared.heads import HeadPrior, KeptHead, SealedHead
from sottovoce.shared.models.flat import check_finite, unflatten
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.spec import build
from sottovoce.shared.newest import Newest
from sottovoce.shared.normaliser import Population
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.release import Kind, Mechanism, Release
from sottovoce.shared.training import LocalTraining

LOG = logging.getLogger("sottovoce.client")


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
    projected = front.project(clips.examples.features)
    rows = normaliser.summarise(projected, clips.examples.frames)
    statistics = {name: getattr(population, name) for name in Population.__dataclass_fields__}
    device.vault.put("plan", plan.to_json().encode())
    device.vault.put_tensors("population", statistics)
    tensors = {"enrolled": rows[clips.enrols], "length": torch.tensor(front.length)}
    kept = {
        "training": (clips.examples.take(clips.trains), projected[clips.trains]),
        "calibration": _labelled(device, plan, front, clips, projected),
    }
    for name, (part, shown) in kept.items():
        parts = {"projected": shown, "frames": part.frames, "labels": part.labels}
        tensors |= {f"{name}.{key}": value for key, value in parts.items()}
    device.vault.put_tensors("projected", tensors)
    device.training = Newest()
    return clips, rows


def _labelled(
    device: Device, plan: Plan, front: Front, clips: Clips, projected: Tensor
) -> tuple[Examples, Tensor]:
    """What the head is fitted on, and behind the front: clips, and what the user labelled since."""
    given, shown = clips.examples.take(clips.calibrates), projected[clips.calibrates]
    since = labeller.kept(device.vault, plan.extractor, plan.labels, len(front.mean))
    if len(since) == 0 or given.features.dim() > 2:
        return given, shown
    both = {
        name: torch.cat([getattr(part, name) for part in (given, since)])
        for name in ("features", "frames", "labels")
    }
    return Examples(**both), torch.cat([shown, front.project(since.features)])


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


def train(
    device: Device,
    *,
    plan: str,
    number: int,
    weights: Tensor,
    class_weights: Tensor,
    centre: Tensor,
    denominator: float,
    clip: float = 1.0,
    share: float = 0.0,
) -> Tensor:
    """One round of private local training.

    Args:
        device: The user's device, enrolled.
        plan: SHA-256 of the plan it enrolled for.
        number: The round, from 1.
        weights: The shared model, shape (params,), float32.
        class_weights: Shape (classes,), float32.
        centre: Where this population's voices lie, shape (inputs,), float32.
        denominator: Public expected batch size.
        clip: The round's clip norm on a user's update, where the plan learns it.
        share: What one unit of the update will move the weights by.

    Returns:
        The update, shape (params,), float32.

    Raises:
        BudgetSpent: This round would pass the budget.
        MessageError: Another plan, or a round that the plan does not have.
        PrivacyError: A round too near one that the device took part in, where users take turns.
    """
    agreed = plan_of(device, plan)
    if agreed.user and agreed.user.secure:
        raise MessageError("this plan's updates leave only in secure sums; nothing was trained")
    pending = round_of(
        device,
        plan=plan,
        number=number,
        weights=weights,
        class_weights=class_weights,
        centre=centre,
        denominator=denominator,
        clip=clip,
        share=share,
    )
    if agreed.sampled:
        return device.answer(pending)
    if agreed.bands:
        return turns.release(device, pending, agreed.bands)
    return device.release(pending.name, pending.content, pending.release, pending.make)


def round_of(
    device: Device,
    *,
    plan: str,
    number: int,
    weights: Tensor,
    class_weights: Tensor,
    centre: Tensor,
    denominator: float,
    clip: float = 1.0,
    share: float = 0.0,
) -> Pending:
    """One round of local training that waits to be booked; see :func:`train`."""
    agreed = plan_of(device, plan)
    if not 1 <= number <= agreed.rounds:
        raise MessageError(f"round {number} of a plan of {agreed.rounds}; nothing was trained")
    model = _model(agreed, weights)
    _check_centre(agreed, centre)
    facts = (plan, number, denominator, clip)
    asked = _ASKED.of(
        (agreed, *facts, weights, class_weights, centre),
        lambda: _asked(agreed, facts, (weights, class_weights, centre)),
    )
    examples = _training_examples(device, agreed, plan, centre)

    def make(random: Randomness) -> Tensor:
        update = local_update(
            model,
            examples,
            class_weights,
            asked.training,
            agreed.mechanism,
            random.noise,
            random.generator,
            weights,
        )
        sent = _bounded(agreed, update.vector, clip)
        given.keep(device, agreed, number, sent, clip=clip, share=share)
        return sent

    return Pending(
        name=f"round-{number}",
        content=asked.content,
        release=asked.release,
        make=make,
    )


def _bounded(plan: Plan, update: Tensor, clip: float) -> Tensor:
    """What one user adds to a sum whose noise hides users.

    Where utterances are hidden too, what was noised here was bounded before; a bound on the noised
    vector would only spoil it.
    """
    if plan.user is None or plan.private:
        return update
    if plan.user.adaptive:
        return plan.user.adaptive.packed(update, clip).float()
    return bound.project(update, plan.user.update.clip_norm)


def add(
    device: Device, *, plan: str, name: str, step: str, body: bytes, update: Pending | None
) -> bytes:
    """One step of a secure sum; see ``secure.take_step``."""
    agreed = plan_of(device, plan)
    return secure.take_step(device, agreed, name=name, step=step, body=body, update=update)


def identity(device: Device, plan: Plan) -> bytes:
    """The public half of the user's identity, 32 bytes, where the plan's sums are secure."""
    if plan.user is None or plan.user.secure is None:
        return b""
    return crypto.identity_public(device.identity)


def personalise(
    device: Device,
    *,
    plan: str,
    weights: Tensor,
    centre: Tensor,
    prior: HeadPrior,
    offered: KeptHead | None = None,
) -> SealedHead:
    """Take the final model; learn the user's normaliser and head.

    Args:
        device: The user's device, enrolled.
        plan: SHA-256 of the plan it enrolled for.
        weights: The final model, shape (params,), float32.
        centre: Where this population's voices lie, shape (inputs,), float32.
        prior: Where heads start from.
        offered: What the server says is the user's newest head; nothing in it is trusted.

    Returns:
        The head sealed for the server.

    Guarantees:
        - An offered head that does not open under the user's key for the model and version that it
          is said to have, or that is older than what this device knows, is refused with a warning,
          and what is here stays. One of another model is never applied: a fit starts from it.
        - The version that leaves counts heads, whether or not there were clips to fit them on.
        - A head comes whatever the user has: without labelled clips it is the prior's mean, which
          nobody can tell from another by its ciphertext.
        - A clip that is no number to the model, or far too large a one, is left out: a refusal
          would tell that there is such a clip.
    """
    agreed = plan_of(device, plan)
    model = _model(agreed, weights).eval()
    _check_centre(agreed, centre)
    kept = device.vault.get_tensors("projected")
    own = _own_mean(device, agreed, kept["enrolled"], centre)
    # Bound to its front: behind another one the same numbers would mean nothing.
    front = torch.frombuffer(bytearray.fromhex(agreed.front), dtype=torch.uint8)
    device.vault.put_tensors("normaliser", {"mean": own, "front": front})
    calibrator = Calibrator(
        device.vault, model_hash=agreed.model_hash(weights), prior=prior, labels=agreed.labels
    )
    if offered:
        _take_back(calibrator, offered, device.facts.user)
    if not calibrator.fitted:
        calibrator.fit(*_heard(model, _finish(kept, "calibration", own), prior))
    _book_head(device, agreed, calibrator.version)
    return calibrator.sealed()


def _take_back(calibrator: Calibrator, offered: KeptHead, user: str) -> None:
    """Take what the server keeps where it is newer than what is here; refuse all else."""
    try:
        if offered.version != calibrator.version or calibrator.empty:
            calibrator.restore(offered.sealed())
    except SottovoceError as error:
        LOG.warning("%s refuses the head that the server says is theirs: %s", user, error)


def _heard(
    model: Network, examples: Examples, prior: HeadPrior
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits, labels and coordinates of those utterances that a head can be fitted on."""
    with torch.no_grad():
        vectors = model.vectors(examples.features, examples.frames)
        logits = model.head(vectors)
    places = prior.coordinates(vectors)
    sane = heads.usable(logits, places)
    return logits[sane], examples.labels[sane], None if places is None else places[sane]


def _book_head(device: Device, plan: Plan, version: int) -> None:
    """Ciphertext costs nothing, and is booked all the same: the ledger tells all that left."""
    name = f"{plan.run}/head-{version}"
    if not device.ledger.holds(name):
        release = Release(
            kind=Kind.SEALED_HEAD, mechanism=Mechanism.ENCRYPTION, run=plan.run, round=plan.rounds
        )
        device.ledger.book(name, release, device.facts.budgets)


def plan_of(device: Device, digest: str) -> Plan:
    """The plan that the device enrolled for, if it is the one meant."""
    if not device.vault.has("plan"):
        raise MessageError("this device has not enrolled for the run; enrol first")
    plan, own = _read_plan(device.vault.get("plan").decode())
    if own != digest:
        raise MessageError("the request belongs to another plan than this device enrolled for")
    return plan


@lru_cache(maxsize=16)
def _read_plan(text: str) -> tuple[Plan, str]:
    """A plan and its digest; every round asks for them again."""
    plan = Plan.from_json(text)
    return plan, plan.digest()


def as_trained(
    device: Device, plan: Plan, weights: Tensor, centre: Tensor
) -> tuple[Network, Examples]:
    """A model of these weights, and the training clips behind the mean that training used.

    Raises:
        MessageError: A centre of another width.
        BudgetSpent: The mean was not released yet, and would pass the budget.
    """
    model = _model(plan, weights).eval()
    _check_centre(plan, centre)
    return model, _training_examples(device, plan, plan.digest(), centre)


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What follows from a round's request alone.

    Attributes:
        training: Steps and rates, with the round's denominator.
        content: SHA-256 of the request.
        release: What the ledger will say of the answer.
    """

    training: LocalTraining
    content: str
    release: Release


_ASKED, _MODEL, _BARE = Newest[_Asked](), Newest[Network](), Newest[Network]()
"""Of the newest request: where one process answers for many devices, all are asked the same."""


def _asked(plan: Plan, facts: tuple[str, int, float, float], tensors: Sequence[Tensor]) -> _Asked:
    """Read a request's facts (plan, round, denominator, clip) and numbers."""
    digest, number, denominator, clip = facts
    return _Asked(
        training=replace(plan.training, denominator=denominator),
        content=content_of(f"{digest} {number} {denominator!r} {clip!r}", tensors),
        release=plan.gradient_release(number),
    )


def content_of(facts: str, tensors: Sequence[Tensor]) -> str:
    """SHA-256 of a request: of its facts and its numbers, float32, in their order."""
    content = hashlib.sha256(facts.encode())
    for tensor in tensors:
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def _model(plan: Plan, weights: Tensor) -> Network:
    """The shared model with these weights; nobody may change it."""
    return _MODEL.of((plan.model, weights), lambda: _built(plan, weights))


def _built(plan: Plan, weights: Tensor) -> Network:
    """A model that reads these very weights."""
    spec = plan.model
    check_finite(weights)
    bare = _BARE.of((spec,), lambda: build(spec, seed=0))
    return twin(bare, unflatten(bare, weights))


def _check_centre(plan: Plan, centre: Tensor) -> None:
    """Refuse a centre of another width before anything is booked."""
    if centre.shape != (plan.model.inputs,):
        raise MessageError(
            f"the centre is {tuple(centre.shape)}; the plan's model reads {plan.model.inputs} "
            "inputs: nothing was trained"
        )


def _relabel(device: Device, plan: Plan) -> Clips:
    """The device's clips with labels in the plan's order."""
    clips = device.clips()
    missing = [label for label in device.facts.labels if label not in plan.labels]
    if missing:
        raise MessageError(f"the plan has no class for {', '.join(missing)}, which this user gave")
    order = torch.tensor([plan.labels.index(label) for label in device.facts.labels])
    known = clips.examples.labels.clamp(min=0)
    labels = torch.where(clips.examples.labels >= 0, order[known], clips.examples.labels)
    return replace(clips, examples=replace(clips.examples, labels=labels))


def _own_mean(device: Device, plan: Plan, rows: Tensor, centre: Tensor) -> Tensor:
    """The user's mean for prediction, shape (inputs,): it never leaves the device."""
    if plan.centre is None:  # a model that reads voices as they are
        return centre
    neutral = device.facts.neutral_enrolment
    own = (rows - centre)[rows.isfinite().all(1)]
    return centre + normaliser.estimate(own, _population(device), neutral=neutral)


def _training_examples(device: Device, plan: Plan, digest: str, centre: Tensor) -> Examples:
    """The training clips as the model reads them: behind a mean that is a booked release."""
    key = (digest, centre.numpy().tobytes())
    return device.training.of(key, lambda: _behind_mean(device, plan, digest, centre))


def _behind_mean(device: Device, plan: Plan, digest: str, centre: Tensor) -> Examples:
    """The training clips, made ready."""
    kept = device.vault.get_tensors("projected")
    settings, release = plan.normaliser, plan.normaliser_release()
    if settings is None:
        return _finish(kept, "training", centre)
    projected, frames = kept["training.projected"], kept["training.frames"]
    rows = normaliser.summarise(projected, frames) - centre
    if release is None:  # the whole update is bounded, whatever mean shaped it
        return _finish(kept, "training", centre + (rows.mean(0) if len(rows) else 0))
    mean = device.release(
        "normaliser",
        hashlib.sha256(digest.encode() + centre.numpy().tobytes()).hexdigest(),
        release,
        lambda random: normaliser.released_mean(rows, settings, _population(device), random.noise),
    )
    return _finish(kept, "training", centre + mean)


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


def _population(device: Device) -> Population:
    """What public corpora say of how speakers differ."""
    return Population(**device.vault.get_tensors("population"))


def _finish(kept: dict[str, Tensor], name: str, mean: Tensor) -> Examples:
    """Projected clips with a mean taken off, as the model reads them."""
    frames, length = kept[f"{name}.frames"], float(kept["length"])
    inputs = finish(kept[f"{name}.projected"], mean, frames, length=length)
    return Examples(features=inputs, frames=frames, labels=kept[f"{name}.labels"])
