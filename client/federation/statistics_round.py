"""Head statistics of a training device, in one noised answer for all of its clips.

The guarantee rests on what an answer depends on beside a clip itself: the final weights, the
updates that this device noised, booked and sent, and the noised mean that training used. All of
them are paid for. So one utterance more or less changes one row of the answer, and no other. The
exact mean, which prediction uses, must not be used here: with it every row would move.
"""

import torch
from torch import Tensor

from sottovoce.client.device.device import Device, PreparedRelease
from sottovoce.client.device.randomness import Randomness
from sottovoce.client.federation import model_inputs, own_contribution
from sottovoce.client.federation.agreed_plan import digest_request, read_agreed_plan
from sottovoce.client.training.poisson_batch import Batch
from sottovoce.shared.calibration import head_statistics
from sottovoce.shared.errors import MessageError
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.protocol.messages import HeadStatisticsRequest


def release_head_statistics(device: Device, request: HeadStatisticsRequest) -> Tensor:
    """Measure how right the final model is on the clips that it learned from.

    Args:
        device: The user's device, enrolled.
        request: The final model, and what is asked of every clip.

    Returns:
        Summed answers of all clips, noised, shape (STATISTICS_SIZE,), float32.

    Guarantees:
        - Before noise, one utterance more or less moves it by at most ``SENSITIVITY`` in L2: each
          clip is judged by what was released before, and by itself.
        - Where users are hidden, one user adds at most the plan's bound.
        - No clips give noise alone; one that is no number to the model adds zeros.

    Raises:
        BudgetSpent: This would pass the budget.
        MessageError: Another plan, or one that asks for no head statistics.
    """
    plan = read_agreed_plan(device, request.plan_hash)
    plan.scheme.require_open_replies(plan, "this plan's answers")
    prepared = prepare_head_statistics(device, request)
    return device.book_and_release(
        prepared.name, prepared.request_digest, prepared.release, prepared.compute
    )


def prepare_head_statistics(device: Device, request: HeadStatisticsRequest) -> PreparedRelease:
    """Prepare a device's answer, which waits to be booked; see :func:`release_head_statistics`."""
    plan = read_agreed_plan(device, request.plan_hash)
    release = plan.calibration_release()
    if release is None:
        raise MessageError("the plan asks for no head statistics; nothing was sent")
    model, examples = model_inputs.load_model_and_examples(
        device,
        plan,
        own_contribution.subtract_contribution(device, plan, request.weights),
        request.centre,
    )

    def make(random: Randomness) -> Tensor:
        with torch.no_grad():
            parts = Batch(examples, None).split(
                1 if device.isolate_examples else max(len(examples), 1)
            )
            # Isolated, clip by clip: in a batch, other rows can change how a row is rounded.
            logits = torch.cat([model(*part.model_inputs()) for part in parts])
        rows = head_statistics.compute_statistics(logits, examples.labels, request.query)
        total = plan.scheme.clip_statistics(plan, rows)
        # None where a secure sum noises it as it is masked.
        noise_std = plan.scheme.device_noise(plan, SumKind.HEAD_STATISTICS)
        return random.noise_source.add_noise(total, noise_std).float()

    return PreparedRelease(
        name="head-statistics",
        request_digest=_digest_request(request),
        release=release,
        compute=make,
    )


def _digest_request(request: HeadStatisticsRequest) -> str:
    """Hash a request (SHA-256)."""
    query = request.query
    facts = f"{request.plan_hash} {query.log_temperature!r} {query.curvature!r}"
    tensors = (request.weights, request.centre, query.edges, query.shares)
    return digest_request(facts, tensors)
