"""A device's part in a round: train, and take part in secure sums. No Flower in here."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from sottovoce.client.device.device import Device, PreparedRelease, Randomness
from sottovoce.client.federation import own_contribution, participation_spacing, secure_sums
from sottovoce.client.training.local_trainer import TrainingSettings, compute_local_update
from sottovoce.client.training.per_example_gradients import rebind_weights
from sottovoce.shared import crypto
from sottovoce.shared.errors import MessageError
from sottovoce.shared.memo import LastValueCache
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.parameters import check_finite, unflatten_parameters
from sottovoce.shared.models.projection import normalise_and_mask
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.release import Release
from sottovoce.shared.protocol.messages import SecureSumRequest, TrainRequest
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker import normalisation
from sottovoce.shared.speaker.normalisation import SpeakerStatistics


def train_round(device: Device, request: TrainRequest) -> Tensor:
    """Train for one round, privately, and release the update.

    Args:
        device: The user's device, enrolled.
        request: The round's request.

    Returns:
        The update, shape (params,), float32.

    Raises:
        BudgetSpent: This round would pass the budget.
        MessageError: Another plan, a round that the plan does not have, or numbers that do not fit.
        PrivacyError: A round too near one that the device took part in, where noise is correlated.
    """
    agreed = agreed_plan(device, request.plan_hash)
    agreed.scheme.require_open_replies(agreed, "this plan's updates")
    prepared = prepare_round(device, request)
    booking = _DeviceBooking(device=device, prepared=prepared, plan_hash=request.plan_hash)
    return agreed.scheme.release_round(agreed, booking)


@dataclass(frozen=True, kw_only=True, slots=True)
class _DeviceBooking:
    """The ways in which a device lets a prepared update leave, each booked first."""

    device: Device
    prepared: PreparedRelease
    plan_hash: str

    def book_and_release(self) -> Tensor:
        """Book this round, then release it."""
        one = self.prepared
        return self.device.book_and_release(one.name, one.request_digest, one.release, one.compute)

    def release_booked(self, all_rounds: Release) -> Tensor:
        """Release it once, where enrolment booked the record of all rounds."""
        self.device.require_booked("schedule", self.plan_hash, all_rounds)
        return self.device.answer_once(self.prepared)

    def release_if_separated(self, banded_noise: BandedNoise) -> Tensor:
        """Book and release it, if it is far enough from the device's other rounds."""
        return participation_spacing.release_if_spaced(self.device, self.prepared, banded_noise)


def prepare_round(device: Device, request: TrainRequest) -> PreparedRelease:
    """Prepare one round of local training, which waits to be booked; see :func:`train_round`."""
    agreed = agreed_plan(device, request.plan_hash)
    if request.round > agreed.rounds:
        raise MessageError(
            f"round {request.round} of a plan of {agreed.rounds}; nothing was trained"
        )
    model = model_with_weights(agreed, request.weights)
    check_centre(agreed, request.centre)
    agreed_request = _REQUEST.get(
        (agreed, request, device.isolate_examples),
        lambda: _agree_request(agreed, request, isolate_examples=device.isolate_examples),
    )
    examples = _training_examples(device, agreed, request.plan_hash, request.centre)

    def make(random: Randomness) -> Tensor:
        update = compute_local_update(
            model,
            examples,
            agreed_request.training,
            random.noise_source,
            random.torch_generator,
            initial_weights=request.weights,
            sampler=random.poisson_sampler,
        )
        sent = agreed.scheme.clip_update(agreed, update.vector, request.clip_norm)
        # What was sent, noise included: the exact update would be a secret in later answers.
        own_contribution.record_update(device, agreed, request, sent)
        return sent

    return PreparedRelease(
        name=f"round-{request.round}",
        request_digest=agreed_request.request_digest,
        release=agreed_request.release,
        compute=make,
    )


def secure_sum_step(
    device: Device, request: SecureSumRequest, prepared: PreparedRelease | None
) -> bytes:
    """Take one step of a secure sum; see ``secure_sums.take_step``."""
    agreed = agreed_plan(device, request.plan_hash)
    return secure_sums.take_step(
        device,
        agreed,
        name=request.name,
        step=request.step,
        body=request.body,
        prepared=prepared,
    )


def public_identity_key(device: Device, plan: Plan) -> bytes:
    """Public half of the user's identity, 32 bytes, where the plan's sums are secure."""
    return plan.scheme.match_sums(
        plan,
        plain=lambda: b"",
        secure=lambda _: crypto.identity_public_key(device.identity_key),
    )


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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _AgreedRequest:
    """What follows from a round's request and the plan alone.

    Attributes:
        training: Settings of local training, with the round's denominator and class weights.
        request_digest: SHA-256 of the request.
        release: What the ledger will say of the answer.
    """

    training: TrainingSettings
    request_digest: str
    release: Release


_REQUEST, _MODEL, _TEMPLATE = (
    LastValueCache[_AgreedRequest](),
    LastValueCache[Network](),
    LastValueCache[Network](),
)
"""Of the newest request: where one process answers for many devices, all are asked the same."""


def _agree_request(plan: Plan, request: TrainRequest, *, isolate_examples: bool) -> _AgreedRequest:
    """Check a request against the plan."""
    _check_class_weights(plan, request.class_weights)
    # repr gives every digit of a float: two requests that differ at all have two digests.
    facts = f"{request.plan_hash} {request.round} {request.denominator!r} {request.clip_norm!r}"
    return _AgreedRequest(
        training=TrainingSettings(
            local_training=replace(plan.training, denominator=request.denominator),
            mechanism=plan.mechanism,
            class_weights=request.class_weights,
            isolate_examples=isolate_examples,
        ),
        request_digest=digest_request(
            facts, (request.weights, request.class_weights, request.centre)
        ),
        release=plan.gradient_release(request.round),
    )


def digest_request(facts: str, tensors: Sequence[Tensor]) -> str:
    """Hash a request (SHA-256): its facts and its numbers, float32, in their order."""
    content = hashlib.sha256(facts.encode())
    for tensor in tensors:
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def model_with_weights(plan: Plan, weights: Tensor) -> Network:
    """Return the shared model with these weights; it is cached and must not be modified."""
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
    # Less the released centre: what remains is short, so that less of it is clipped.
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
    """Load the speaker statistics of public corpora that enrolment stored."""
    return SpeakerStatistics.from_tensors(device.vault.get_tensors("population"))


def prepare_examples(tensors: dict[str, Tensor], name: str, mean: Tensor) -> Examples:
    """Prepare projected clips as the model's input: subtract a mean, scale and mask."""
    frames, row_norm = tensors[f"{name}.frames"], float(tensors["length"])
    inputs = normalise_and_mask(tensors[f"{name}.projected"], mean, frames, row_norm=row_norm)
    return Examples(features=inputs, frames=frames, labels=tensors[f"{name}.labels"])
