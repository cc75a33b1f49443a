"""A device's part in a round: train, and take part in secure sums. No Flower in here."""

import math
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from sottovoce.client.device.device import Device, PreparedRelease
from sottovoce.client.device.randomness import Randomness
from sottovoce.client.federation import own_contribution, participation_spacing, secure_sums
from sottovoce.client.federation.agreed_plan import check_centre, digest_request, read_agreed_plan
from sottovoce.client.federation.model_inputs import load_training_examples, model_with_weights
from sottovoce.client.training.local_trainer import (
    TrainingSettings,
    compute_gradient_sum,
    compute_local_update,
    compute_update_or_zeros,
)
from sottovoce.shared import crypto
from sottovoce.shared.errors import MessageError
from sottovoce.shared.memo import LastValueCache
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.release import Release
from sottovoce.shared.protocol.messages import SecureSumRequest, TrainRequest
from sottovoce.shared.protocol.training_plan import Plan


def train_round(device: Device, request: TrainRequest) -> Tensor:
    """Train for one round, privately, and release the update.

    Args:
        device: The user's device, enrolled.
        request: The round's request.

    Returns:
        The update, shape (params,), float32.

    Guarantees:
        - An update whose training overflows counts as zeros and is answered as any other: whether a
          device answers does not tell of its clips.

    Raises:
        BudgetSpent: This round would pass the budget.
        MessageError: Another plan, a round that the plan does not have, or numbers that do not fit.
        PrivacyError: A round too near one that the device took part in, where noise is correlated.
    """
    agreed = read_agreed_plan(device, request.plan_hash)
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
    agreed = read_agreed_plan(device, request.plan_hash)
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
    examples = load_training_examples(device, agreed, request.plan_hash, request.centre)

    def make(random: Randomness) -> Tensor:
        if agreed.scheme.sends_gradients:
            return compute_gradient_sum(
                model,
                examples,
                agreed_request.training,
                random.torch_generator,
                initial_weights=request.weights,
                sampler=random.poisson_sampler,
            )
        train = partial(
            compute_local_update,
            model,
            examples,
            agreed_request.training,
            random.noise_source,
            random.torch_generator,
            initial_weights=request.weights,
            sampler=random.poisson_sampler,
        )
        # A refusal would tell of the clips, and change how many updates the server divides by.
        update = compute_update_or_zeros(train, request.weights)
        sent = agreed.scheme.clip_update(agreed, update, request.clip_norm)
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
    agreed = read_agreed_plan(device, request.plan_hash)
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


_REQUEST = LastValueCache[_AgreedRequest]()
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
            progress=plan.progress(request.round),
        ),
        request_digest=digest_request(
            facts, (request.weights, request.class_weights, request.centre)
        ),
        release=plan.gradient_release(request.round),
    )


def _check_class_weights(plan: Plan, class_weights: Tensor) -> None:
    """Refuse class weights that training would refuse, before anything is booked."""
    numbers = class_weights.tolist()
    if len(numbers) != plan.model.classes or not all(0 <= one < math.inf for one in numbers):
        raise MessageError(
            f"the class weights are {numbers}; there must be {plan.model.classes}, finite and 0 or "
            "above: nothing was trained"
        )
