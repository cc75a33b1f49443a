"""What a device does in a round: train, and take part in secure sums. No Flower in here."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from sottovoce.client import given, secure, turns
from sottovoce.client.device import Device, Pending, Randomness
from sottovoce.client.training.gradients import twin
from sottovoce.client.training.trainer import local_update
from sottovoce.shared import crypto, normaliser
from sottovoce.shared.errors import MessageError
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import finish
from sottovoce.shared.models.flat import check_finite, unflatten
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.spec import build
from sottovoce.shared.newest import Newest
from sottovoce.shared.normaliser import Population
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.release import Release
from sottovoce.shared.training import LocalTraining


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
        MessageError: Another plan, a round that the plan does not have, or numbers that do not fit.
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
    if schedule := agreed.schedule_release():
        device.check_paid("schedule", plan, schedule)
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
    model = model_of(agreed, weights)
    check_centre(agreed, centre)
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
            coins=random.coins,
            apart=device.apart,
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
    model = model_of(plan, weights).eval()
    check_centre(plan, centre)
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
    _check_class_weights(plan, tensors[1])
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


def model_of(plan: Plan, weights: Tensor) -> Network:
    """The shared model with these weights; nobody may change it."""
    return _MODEL.of((plan.model, weights), lambda: _built(plan, weights))


def _built(plan: Plan, weights: Tensor) -> Network:
    """A model that reads these very weights."""
    spec = plan.model
    check_finite(weights)
    bare = _BARE.of((spec,), lambda: build(spec, seed=0))
    return twin(bare, unflatten(bare, weights))


def check_centre(plan: Plan, centre: Tensor) -> None:
    """Refuse a centre of another width before anything is booked."""
    if centre.shape != (plan.model.inputs,):
        raise MessageError(
            f"the centre is {tuple(centre.shape)}; the plan's model reads {plan.model.inputs} "
            "inputs: nothing was trained"
        )


def _check_class_weights(plan: Plan, class_weights: Tensor) -> None:
    """Refuse class weights that training would refuse, before anything is booked."""
    numbers = class_weights.tolist()
    if len(numbers) != plan.model.classes or not all(0 <= one < math.inf for one in numbers):
        raise MessageError(
            f"the class weights are {numbers}; there must be {plan.model.classes}, finite and 0 or "
            "above: nothing was trained"
        )


def _training_examples(device: Device, plan: Plan, digest: str, centre: Tensor) -> Examples:
    """The training clips as the model reads them: behind a mean that is a booked release."""
    key = (digest, centre.numpy().tobytes())
    return device.training.of(key, lambda: _behind_mean(device, plan, digest, centre))


def _behind_mean(device: Device, plan: Plan, digest: str, centre: Tensor) -> Examples:
    """The training clips, made ready."""
    kept = device.vault.get_tensors("projected")
    settings, release = plan.normaliser, plan.normaliser_release()
    if settings is None:
        return finished(kept, "training", centre)
    projected, frames = kept["training.projected"], kept["training.frames"]
    rows = normaliser.summarise(projected, frames) - centre
    if release is None:  # the whole update is bounded, whatever mean shaped it
        return finished(kept, "training", centre + (rows.mean(0) if len(rows) else 0))
    mean = device.release(
        "normaliser",
        hashlib.sha256(digest.encode() + centre.numpy().tobytes()).hexdigest(),
        release,
        lambda random: normaliser.released_mean(
            rows, settings, population_of(device), random.noise
        ),
    )
    return finished(kept, "training", centre + mean)


def population_of(device: Device) -> Population:
    """What public corpora say of how speakers differ."""
    return Population(**device.vault.get_tensors("population"))


def finished(kept: dict[str, Tensor], name: str, mean: Tensor) -> Examples:
    """Projected clips with a mean taken off, as the model reads them."""
    frames, length = kept[f"{name}.frames"], float(kept["length"])
    inputs = finish(kept[f"{name}.projected"], mean, frames, length=length)
    return Examples(features=inputs, frames=frames, labels=kept[f"{name}.labels"])
