"""A device's part in the secure sums of a run, one message at a time. No Flower in here."""

import math
from collections.abc import Callable, Mapping
from typing import NoReturn

import torch
from torch import Tensor

from sottovoce.client.device.device import Device, PreparedRelease
from sottovoce.client.device.profile import DeviceProfile
from sottovoce.client.device.randomness import Randomness
from sottovoce.client.federation.secagg_client import DeviceRound
from sottovoce.shared.errors import MessageError, ModelError, PrivacyError
from sottovoce.shared.printable import get_logger
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.privacy.user_level import (
    ENROLMENT_SUM,
    SecureSumConfigs,
    secure_sum_kind,
)
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.discrete_gaussian import RandomWords
from sottovoce.shared.secure_aggregation.quantisation import Floats
from sottovoce.shared.speaker import normalisation

LOG = get_logger("sottovoce.client")

_ROUND, _VALUE = "secure-sum", "secure-enrolment"


def check_floor(profile: DeviceProfile, configs: SecureSumConfigs) -> None:
    """Refuse secure sums below what the device's owner asks for.

    How few devices a sum may have, and how many of them side with the server, is what the whole
    promise of a secure sum rests on; a plan is the server's word.

    Args:
        profile: Of the device; its ``min_cohort`` and ``min_dishonest_share`` are the floor.
        configs: Of the plan's sums.

    Raises:
        PrivacyError: A sum's quorum is smaller, or fewer of its devices are taken to be dishonest.
    """
    way_out = (
        "Nothing was sent. The server can invite more devices or count on more dishonest ones; the "
        "device's owner can lower {} in device.json and run `sottovoce device confirm`"
    )
    for one in configs.all_configs():
        if one.quorum < profile.min_cohort:
            raise PrivacyError(
                f"a secure sum may be of {one.quorum} devices, and min_cohort is "
                f"{profile.min_cohort}. {way_out.format('min_cohort')}"
            )
        # Rounded as plans round it: a share of 10 % of 10 devices is one, not two.
        least = math.ceil(one.devices * profile.min_dishonest_share - 1e-9)
        if configs.dishonest < least:
            raise PrivacyError(
                f"of a secure sum's {one.devices} devices {configs.dishonest} are taken to side "
                f"with the server, and min_dishonest_share is {profile.min_dishonest_share:g}, "
                f"which is {least}. {way_out.format('min_dishonest_share')}"
            )


def store_enrolment(device: Device, plan: Plan, counts: Tensor, rows: Tensor) -> None:
    """Store what enrolment adds to its secure sum, in the units of its parts, until then.

    Args:
        device: The user's device.
        plan: The run's public facts.
        counts: Label counts within their bound, shape (classes,).
        rows: The training clips' projected rows, shape (utterances, inputs).
    """
    parts = [counts / plan.scheme.sum_unit(plan, SumKind.LABEL_COUNTS)]
    if plan.centre:
        total = normalisation.sum_rows(
            plan.scheme.device_rows(rows),
            plan.centre,
            max_norm=plan.scheme.centre_bound(plan),
        )
        parts.append(total / plan.scheme.sum_unit(plan, SumKind.CENTRE))
    device.vault.put_tensors(_VALUE, {"value": torch.cat(parts)})


def take_step(
    device: Device,
    plan: Plan,
    *,
    name: str,
    step: str,
    body: bytes,
    prepared: PreparedRelease | None,
) -> bytes:
    """Take one step of a secure sum.

    Args:
        device: The user's device, enrolled.
        plan: What it enrolled for; the sum's settings are the plan's, never a message's.
        name: Which sum, unique over all runs: ``PLAN/enrolment...``, ``PLAN/round-N...`` or
            ``PLAN/head-statistics...``.
        step: ``advertise``, ``share``, ``mask``, ``agree`` or ``unmask``.
        body: The step's message.
        prepared: What is added, at ``mask`` in a sum of updates or of head statistics.

    Returns:
        The step's answer.

    Guarantees:
        - What is masked is booked before, in every sum that asks for it; an update and an answer of
          clips before they are computed.
        - Only what can be masked is booked: a step that comes twice, too early or with encrypted
          shares that do not open costs nothing.
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
        PrivacyError: The plan's sums are below the owner's floor, see :func:`check_floor`.
    """
    # At each step, as enrolment did: the owner may have raised the floor since.
    plan.scheme.match_sums(
        plan, plain=_refuse, secure=lambda configs: check_floor(device.profile, configs)
    )
    with device.vault.lock_blob(_ROUND):
        return _take_locked_step(device, plan, name=name, step=step, body=body, prepared=prepared)


def _take_locked_step(
    device: Device,
    plan: Plan,
    *,
    name: str,
    step: str,
    body: bytes,
    prepared: PreparedRelease | None,
) -> bytes:
    """Take one step while the device takes no other one."""
    arguments = {
        "user": device.profile.user,
        "identity": device.identity_key,
        "roster": device.pinned_roster,
        "settings": _settings(plan, name),
        "round_name": name,
    }
    device_round = _resume_round(device, step, arguments)
    steps: Mapping[str, Callable[[bytes], bytes]] = {
        "advertise": device_round.advertise,
        "share": device_round.share,
        "mask": lambda request: device_round.mask(
            request, lambda: _masked_input(device, plan, name, prepared)
        ),
        "agree": device_round.agree,
        "unmask": device_round.unmask,
    }
    try:
        return steps[step](body)
    finally:
        # In finally: a refused step is taken too, and a server cannot try other requests on it.
        durable = device.profile.simulated_seed is None
        device.vault.put(_ROUND, device_round.to_bytes(), durable=durable)


def _resume_round(device: Device, step: str, arguments: Mapping[str, object]) -> DeviceRound:
    """Resume the round as the step before left it."""
    if step == "advertise":
        return DeviceRound(**arguments)  # type: ignore[arg-type]
    if not device.vault.has_blob(_ROUND):
        raise MessageError(f"asked to {step} in a sum that this device never began")
    return DeviceRound.from_bytes(device.vault.get(_ROUND), **arguments)  # type: ignore[arg-type]


def _masked_input(
    device: Device, plan: Plan, name: str, prepared: PreparedRelease | None
) -> tuple[Floats, RandomWords]:
    """Compute what this device adds, booked, and the source of its noise."""
    value, random = _book_input(device, plan, name, prepared)
    return value.double().numpy(), random.random_words


def _book_input(
    device: Device, plan: Plan, name: str, prepared: PreparedRelease | None
) -> tuple[Tensor, Randomness]:
    """Book and compute what this device adds."""
    if secure_sum_kind(plan.content_hash(), name) == ENROLMENT_SUM:
        value = device.vault.get_tensors(_VALUE)["value"]
        random = device.book_release("label-counts", plan.content_hash(), plan.counts_release())
        centre = plan.centre_release()
        if centre:
            # One vector under one noise, but the ledger holds two releases, each with its bound.
            device.book_release("centre", plan.content_hash(), centre)
        return value, random
    if prepared is None or secure_sum_kind(plan.content_hash(), name) != prepared.name:
        raise MessageError(f"the sum {name} came without its request; nothing was masked")
    random = device.book_release(prepared.name, prepared.request_digest, prepared.release)
    size = _settings(plan, name).parameters
    return _compute_or_zeros(prepared, random, size), random


def _compute_or_zeros(prepared: PreparedRelease, random: Randomness, size: int) -> Tensor:
    """Compute what a request asks for, shape (size,); zeros where the result is no number.

    Whether training overflows depends on the clips: a refusal would tell of them.
    """
    try:
        return prepared.compute(random)
    except ModelError as error:
        LOG.warning("%s of this device counts as zeros: %s", prepared.name, error)
        return torch.zeros(size)


def _settings(plan: Plan, name: str) -> SecureAggregationConfig:
    """Settings of a sum, by the plan."""
    configs = plan.scheme.match_sums(plan, plain=_refuse, secure=lambda configs: configs)
    return configs.config_for(secure_sum_kind(plan.content_hash(), name))


def _refuse() -> NoReturn:
    """Refuse a secure sum of a plan that has none."""
    raise MessageError("the plan that this device enrolled for has no secure sums")
