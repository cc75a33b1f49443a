"""What a training device tells of calibration, in one answer for all of its clips.

The guarantee rests on what an answer depends on beside a clip itself: the final weights, the
updates that this device noised, booked and sent, and the noised mean that training used. All of
them are paid for. So one utterance more or less changes one row of the answer, and no other. The
exact mean, which prediction uses, must not be used here: with it every row would move.
"""

import torch
from torch import Tensor

from sottovoce.client import given, participant
from sottovoce.client.device import Device, Pending, Randomness
from sottovoce.client.training.batch import Batch
from sottovoce.shared import calibration
from sottovoce.shared.calibration import SENSITIVITY
from sottovoce.shared.errors import MessageError
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy import bound
from sottovoce.shared.wire import CalibrateRequest


def calibrate(device: Device, request: CalibrateRequest) -> Tensor:
    """How right the final model is on the clips that it learned from.

    Args:
        device: The user's device, enrolled.
        request: The final model, and what is asked of every clip.

    Returns:
        Summed answers of all clips, noised, shape (WIDTH,), float32.

    Guarantees:
        - Before noise, one utterance more or less moves it by at most ``SENSITIVITY`` in L2: each
          clip is judged by what was released before, and by itself.
        - Where users are hidden, one user adds at most the plan's bound.
        - No clips give noise alone; one that is no number to the model adds zeros.

    Raises:
        BudgetSpent: This would pass the budget.
        MessageError: Another plan, or one that asks nothing.
    """
    plan = participant.plan_of(device, request.plan)
    if plan.user and plan.user.secure:
        raise MessageError("this plan's answers leave only in secure sums; nothing was told")
    pending = answer(device, request)
    return device.release(pending.name, pending.content, pending.release, pending.make)


def answer(device: Device, request: CalibrateRequest) -> Pending:
    """A device's answer that waits to be booked; see :func:`calibrate`."""
    plan = participant.plan_of(device, request.plan)
    settings, release = plan.calibration, plan.calibration_release()
    if settings is None or release is None:
        raise MessageError("the plan asks nothing of calibration; nothing was told")
    model, examples = participant.as_trained(
        device, plan, given.weights_without(device, plan, request.weights), request.centre
    )

    def make(random: Randomness) -> Tensor:
        with torch.no_grad():
            parts = Batch(examples, None).split(1 if device.apart else max(len(examples), 1))
            logits = torch.cat([model(*part.read()) for part in parts])
        rows = calibration.answers(logits, examples.labels, request.question)
        told = _together(plan, rows)
        spread = SENSITIVITY * settings.noise_multiplier
        return (told + random.noise.normal(tuple(told.shape), spread)).float()

    return Pending(name="head-statistics", content=_content(request), release=release, make=make)


def _together(plan: Plan, rows: Tensor) -> Tensor:
    """A device's clips together, before noise, within what hides its user; (WIDTH,), float64.

    Where users alone are hidden it is the mean over clips, so that everybody counts as one.
    """
    total = rows.sum(0)
    if plan.user is None or plan.user.calibration is None:
        return total
    if plan.unit == "user":
        total = total / max(len(rows), 1)
    return bound.project(total, plan.user.calibration.clip_norm)


def _content(request: CalibrateRequest) -> str:
    """SHA-256 of what is asked."""
    asked = request.question
    facts = f"{request.plan} {asked.log_temperature!r} {asked.bend!r}"
    tensors = (request.weights, request.centre, asked.edges, asked.shares)
    return participant.content_of(facts, tensors)
