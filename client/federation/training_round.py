"""A device's part in a round: train, and take part in secure sums. No Flower in here."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from sottovoce.client.device.device import Device, PreparedRelease, Randomness
from sottovoce.client.federation import own_contribution, participation_spacing, secure_sums
from sottovoce.client.training.local_trainer import compute_local_update
from sottovoce.client.training.per_example_gradients import rebind_weights
from sottovoce.shared import crypto
from sottovoce.shared.errors import MessageError
from sottovoce.shared.memo import LastValueCache
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.parameters import check_finite, unflatten_parameters
from sottovoce.shared.models.projection import normalise_and_mask
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy import clipping
from sottovoce.shared.privacy.release import Release
from sottovoce.shared.protocol.local_training import LocalTraining
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker import normalisation
from sottovoce.shared.speaker.normalisation import SpeakerStatistics


def train_round(
    device: Device,
    *,
    plan_hash: str,
    round_number: int,
    weights: Tensor,
    class_weights: Tensor,
    centre: Tensor,
    denominator: float,
    clip_norm: float = 1.0,
    update_scale: float = 0.0,
) -> Tensor:
    """Train for one round, privately, and release the update.

    Args:
        device: The user's device, enrolled.
        plan_hash: SHA-256 of the plan it enrolled for.
        round_number: The round, from 1.
        weights: The shared model, shape (params,), float32.
        class_weights: Shape (classes,), float32.
        centre: Where this population's voices lie, shape (inputs,), float32.
        denominator: Public expected batch size.
        clip_norm: The round's clip norm on a user's update, where the plan learns it.
        update_scale: What one unit of the update will move the weights by.

    Returns:
        The update, shape (params,), float32.

    Raises:
        BudgetSpent: This round would pass the budget.
        MessageError: Another plan, a round that the plan does not have, or numbers that do not fit.
        PrivacyError: A round too near one that the device took part in, where noise is correlated.
    """
    agreed = agreed_plan(device, plan_hash)
    if agreed.user and agreed.user.secure:
        raise MessageError("this plan's updates leave only in secure sums; nothing was trained")
    prepared = prepare_round(
        device,
        plan_hash=plan_hash,
        round_number=round_number,
        weights=weights,
        class_weights=class_weights,
        centre=centre,
        denominator=denominator,
        clip_norm=clip_norm,
        update_scale=update_scale,
    )
    if schedule := agreed.all_rounds_release():
        device.require_booked("schedule", plan_hash, schedule)
        return device.answer_once(prepared)
    if agreed.banded_noise:
        return participation_spacing.release_if_spaced(device, prepared, agreed.banded_noise)
    return device.book_and_release(
        prepared.name, prepared.request_digest, prepared.release, prepared.compute
    )


def prepare_round(
    device: Device,
    *,
    plan_hash: str,
    round_number: int,
    weights: Tensor,
    class_weights: Tensor,
    centre: Tensor,
    denominator: float,
    clip_norm: float = 1.0,
    update_scale: float = 0.0,
) -> PreparedRelease:
    """Prepare one round of local training, which waits to be booked; see :func:`train_round`."""
    agreed = agreed_plan(device, plan_hash)
    if not 1 <= round_number <= agreed.rounds:
        raise MessageError(
            f"round {round_number} of a plan of {agreed.rounds}; nothing was trained"
        )
    model = model_with_weights(agreed, weights)
    check_centre(agreed, centre)
    facts = (plan_hash, round_number, denominator, clip_norm)
    parsed = _REQUEST.get(
        (agreed, *facts, weights, class_weights, centre),
        lambda: _parse_request(agreed, facts, (weights, class_weights, centre)),
    )
    examples = _training_examples(device, agreed, plan_hash, centre)

    def make(random: Randomness) -> Tensor:
        update = compute_local_update(
            model,
            examples,
            class_weights,
            parsed.training,
            agreed.mechanism,
            random.noise_source,
            random.torch_generator,
            weights,
            sampler=random.poisson_sampler,
            isolate_examples=device.isolate_examples,
        )
        sent = _clip_update(agreed, update.vector, clip_norm)
        own_contribution.record_update(
            device, agreed, round_number, sent, clip_norm=clip_norm, update_scale=update_scale
        )
        return sent

    return PreparedRelease(
        name=f"round-{round_number}",
        request_digest=parsed.request_digest,
        release=parsed.release,
        compute=make,
    )


def _clip_update(plan: Plan, update: Tensor, clip_norm: float) -> Tensor:
    """Clip what one user adds to a sum whose noise hides users.

    Where utterances are hidden too, what was noised here was bounded before; a bound on the noised
    vector would only spoil it.
    """
    if plan.user is None or plan.utterance_level:
        return update
    if plan.user.adaptive:
        return plan.user.adaptive.pack_update(update, clip_norm).float()
    return clipping.clip_to_norm(update, plan.user.update.clip_norm)


def secure_sum_step(
    device: Device,
    *,
    plan_hash: str,
    name: str,
    step: str,
    body: bytes,
    prepared: PreparedRelease | None,
) -> bytes:
    """Take one step of a secure sum; see ``secure_sums.take_step``."""
    agreed = agreed_plan(device, plan_hash)
    return secure_sums.take_step(device, agreed, name=name, step=step, body=body, prepared=prepared)


def public_identity_key(device: Device, plan: Plan) -> bytes:
    """Public half of the user's identity, 32 bytes, where the plan's sums are secure."""
    if plan.user is None or plan.user.secure is None:
        return b""
    return crypto.identity_public_key(device.identity_key)


def agreed_plan(device: Device, plan_hash: str) -> Plan:
    """Read the plan that the device enrolled for, if it is the one meant."""
    if not device.vault.has_blob("plan"):
        raise MessageError("this device has not enrolled for the run; enrol first")
    plan, own = _read_plan(device.vault.get("plan").decode())
    if own != plan_hash:
        raise MessageError("the request belongs to another plan than this device enrolled for")
    return plan


@lru_cache(maxsize=16)
def _read_plan(text: str) -> tuple[Plan, str]:
    """Parse a plan and hash it; every round asks for them again."""
    plan = Plan.from_json(text)
    return plan, plan.content_hash()


def load_model_and_examples(
    device: Device, plan: Plan, weights: Tensor, centre: Tensor
) -> tuple[Network, Examples]:
    """Build a model of these weights, and normalise the training clips as training did.

    Raises:
        MessageError: A centre of another width.
        BudgetSpent: The mean was not released yet, and would pass the budget.
    """
    model = model_with_weights(plan, weights).eval()
    check_centre(plan, centre)
    return model, _training_examples(device, plan, plan.content_hash(), centre)


@dataclass(frozen=True, slots=True, eq=False)
class _RoundRequest:
    """A round's request, parsed: what follows from it alone.

    Attributes:
        training: Steps and rates, with the round's denominator.
        request_digest: SHA-256 of the request.
        release: What the ledger will say of the answer.
    """

    training: LocalTraining
    request_digest: str
    release: Release


_REQUEST, _MODEL, _TEMPLATE = (
    LastValueCache[_RoundRequest](),
    LastValueCache[Network](),
    LastValueCache[Network](),
)
"""Of the newest request: where one process answers for many devices, all are asked the same."""


def _parse_request(
    plan: Plan, facts: tuple[str, int, float, float], tensors: Sequence[Tensor]
) -> _RoundRequest:
    """Parse a request's facts (plan, round, denominator, clip norm) and numbers."""
    plan_hash, round_number, denominator, clip_norm = facts
    _check_class_weights(plan, tensors[1])
    return _RoundRequest(
        training=replace(plan.training, denominator=denominator),
        request_digest=digest_request(
            f"{plan_hash} {round_number} {denominator!r} {clip_norm!r}", tensors
        ),
        release=plan.gradient_release(round_number),
    )


def digest_request(facts: str, tensors: Sequence[Tensor]) -> str:
    """Hash a request (SHA-256): its facts and its numbers, float32, in their order."""
    content = hashlib.sha256(facts.encode())
    for tensor in tensors:
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def model_with_weights(plan: Plan, weights: Tensor) -> Network:
    """Build the shared model with these weights; nobody may change it."""
    return _MODEL.get((plan.model, weights), lambda: _build_model(plan, weights))


def _build_model(plan: Plan, weights: Tensor) -> Network:
    """Build a model that reads these very weights."""
    spec = plan.model
    check_finite(weights)
    template = _TEMPLATE.get((spec,), lambda: build_network(spec, seed=0))
    return rebind_weights(template, unflatten_parameters(template, weights))


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
    """Read the training clips as the model does: less a mean that is a booked release."""
    key = (digest, centre.numpy().tobytes())
    return device.training_cache.get(
        key, lambda: _normalised_examples(device, plan, digest, centre)
    )


def _normalised_examples(device: Device, plan: Plan, digest: str, centre: Tensor) -> Examples:
    """Normalise the training clips."""
    tensors = device.vault.get_tensors("projected")
    settings, release = plan.normaliser, plan.normaliser_release()
    if settings is None:
        return prepare_examples(tensors, "training", centre)
    projected, frames = tensors["training.projected"], tensors["training.frames"]
    rows = normalisation.average_frames(projected, frames) - centre
    if release is None:  # the whole update is bounded, whatever mean shaped it
        return prepare_examples(tensors, "training", centre + (rows.mean(0) if len(rows) else 0))
    mean = device.book_and_release(
        "normaliser",
        hashlib.sha256(digest.encode() + centre.numpy().tobytes()).hexdigest(),
        release,
        lambda random: normalisation.release_mean(
            rows, settings, load_speaker_statistics(device), random.noise_source
        ),
    )
    return prepare_examples(tensors, "training", centre + mean)


def load_speaker_statistics(device: Device) -> SpeakerStatistics:
    """Read how speakers differ, by public corpora, as enrolment stored it."""
    return SpeakerStatistics.from_tensors(device.vault.get_tensors("population"))


def prepare_examples(tensors: dict[str, Tensor], name: str, mean: Tensor) -> Examples:
    """Subtract a mean from projected clips, and scale and mask them, as the model reads them."""
    frames, row_norm = tensors[f"{name}.frames"], float(tensors["length"])
    inputs = normalise_and_mask(tensors[f"{name}.projected"], mean, frames, row_norm=row_norm)
    return Examples(features=inputs, frames=frames, labels=tensors[f"{name}.labels"])
