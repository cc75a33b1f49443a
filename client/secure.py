"""A device's part in the secure sums of a run, one message at a time. No Flower in here."""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sottovoce.client.device import Device, Pending, Randomness
from sottovoce.client.secagg import DeviceRound
from sottovoce.shared.errors import MessageError, ModelError
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.users import ENROLMENT, SecureSums, UserPromise, sum_kind
from sottovoce.shared.secagg.discrete import RandomWords
from sottovoce.shared.secagg.quantise import Floats
from sottovoce.shared.secagg.settings import SecureAggregation

LOG = logging.getLogger("sottovoce.client")

_ROUND, _VALUE = "secure-sum", "secure-enrolment"


def mean_row(rows: Tensor) -> Tensor:
    """A user's mean as the only row, shape (1, inputs), however many clips it is of."""
    return rows.mean(0, keepdim=True) if len(rows) else rows


def keep_enrolment(device: Device, plan: Plan, counts: Tensor, rows: Tensor) -> None:
    """Keep what enrolment adds to its secure sum, each part within 1, until the sum asks for it.

    Args:
        device: The user's device.
        plan: The run's public facts.
        counts: Label counts within their bound, shape (classes,).
        rows: The training clips in front space, shape (utterances, inputs).
    """
    user, _ = _promise(plan)
    parts = [counts / user.counts.clip_norm]
    if user.centre:
        limit = user.centre.clip_norm
        parts.append(bound.project(mean_row(rows).sum(0).double(), limit) / limit)
    device.vault.put_tensors(_VALUE, {"value": torch.cat(parts)})


def take_step(
    device: Device, plan: Plan, *, name: str, step: str, body: bytes, update: Pending | None
) -> bytes:
    """One step of a secure sum.

    Args:
        device: The user's device, enrolled.
        plan: What it enrolled for; the sum's settings are the plan's, never a message's.
        name: Which sum, unique over all runs: ``PLAN/enrolment...``, ``PLAN/round-N...`` or
            ``PLAN/head-statistics...``.
        step: ``advertise``, ``share``, ``mask``, ``agree`` or ``unmask``.
        body: The step's message.
        update: What is added, at ``mask`` in a sum of updates or of head statistics.

    Returns:
        The step's answer.

    Guarantees:
        - What is masked is booked before, in every sum that asks for it; an update and an answer of
          clips before they are computed.
        - Only what can be masked is booked: a step that comes twice, too early or with parcels that
          do not open costs nothing.
        - An update or answer with a NaN or an infinity, or whose training overflows, counts as
          zeros and gets noise as any other: whether a device answers does not tell of its clips.
        - The state is kept, sealed, before the answer leaves, also where the step is refused: no
          step is taken twice.
        - Steps of one device are taken one after the other, also by several programs: the slower
          one finds the step taken, and is refused.

    Raises:
        BudgetSpent: The release would pass the budget; nothing was masked.
        MessageError: A malformed message, or a sum that the plan does not have.
        AggregationError: What :class:`DeviceRound` refuses.
    """
    with device.vault.alone(_ROUND):
        return _taken(device, plan, name=name, step=step, body=body, update=update)


def _taken(
    device: Device, plan: Plan, *, name: str, step: str, body: bytes, update: Pending | None
) -> bytes:
    """One step of a device that takes no other one meanwhile."""
    at = {
        "user": device.facts.user,
        "identity": device.identity,
        "roster": device.roster,
        "settings": _settings(plan, name),
        "round_name": name,
    }
    taken = _begun(device, step, at)
    steps: Mapping[str, Callable[[bytes], bytes]] = {
        "advertise": taken.advertise,
        "share": taken.share,
        "mask": lambda asked: taken.mask(asked, lambda: _value(device, plan, name, update)),
        "agree": taken.agree,
        "unmask": taken.unmask,
    }
    try:
        return steps[step](body)
    finally:
        durable = device.facts.simulated_seed is None
        device.vault.put(_ROUND, taken.to_bytes(), durable=durable)


def _begun(device: Device, step: str, at: Mapping[str, object]) -> DeviceRound:
    """The round as the step before left it."""
    if step == "advertise":
        return DeviceRound(**at)  # type: ignore[arg-type]
    if not device.vault.has(_ROUND):
        raise MessageError(f"asked to {step} in a sum that this device never began")
    return DeviceRound.restore(device.vault.get(_ROUND), **at)  # type: ignore[arg-type]


def _value(
    device: Device, plan: Plan, name: str, update: Pending | None
) -> tuple[Floats, RandomWords]:
    """What this device adds, booked, and where its noise comes from."""
    value, random = _booked(device, plan, name, update)
    return value.double().numpy(), random.words


def _booked(
    device: Device, plan: Plan, name: str, update: Pending | None
) -> tuple[Tensor, Randomness]:
    """What this device adds, once it is booked."""
    if sum_kind(plan.digest(), name) == ENROLMENT:
        value = device.vault.get_tensors(_VALUE)["value"]
        random = device.book("label-counts", plan.digest(), plan.counts_release())
        centre = plan.centre_release()
        if centre:
            device.book("centre", plan.digest(), centre)
        return value, random
    if update is None or sum_kind(plan.digest(), name) != update.name:
        raise MessageError(f"the sum {name} came without its request; nothing was masked")
    random = device.book(update.name, update.content, update.release)
    size = _settings(plan, name).parameters
    return _made(update, random, size), random


def _made(update: Pending, random: Randomness, size: int) -> Tensor:
    """What a request asks for, shape (size,); zeros where what was computed is no number.

    Whether training overflows depends on the clips: a refusal would tell of them.
    """
    try:
        return update.make(random)
    except ModelError as error:
        LOG.warning("%s of this device counts as zeros: %s", update.name, error)
        return torch.zeros(size)


def _settings(plan: Plan, name: str) -> SecureAggregation:
    """The plan's settings of a sum."""
    _, secure = _promise(plan)
    return secure.of(sum_kind(plan.digest(), name))


def _promise(plan: Plan) -> tuple[UserPromise, SecureSums]:
    """What the plan promises users by secure sums."""
    if plan.user is None or plan.user.secure is None:
        raise MessageError("the plan that this device enrolled for has no secure sums")
    return plan.user, plan.user.secure
