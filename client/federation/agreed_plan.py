"""The plan that a device enrolled for, and what each of its requests must agree with."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.shared.errors import MessageError
from sottovoce.shared.protocol.training_plan import Plan


def read_agreed_plan(device: Device, plan_hash: str) -> Plan:
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


def check_centre(plan: Plan, centre: Tensor) -> None:
    """Refuse a centre of another width before anything is booked."""
    if centre.shape != (plan.model.inputs,):
        raise MessageError(
            f"the centre is {tuple(centre.shape)}; the plan's model reads {plan.model.inputs} "
            "inputs: nothing was trained"
        )


def digest_request(facts: str, tensors: Sequence[Tensor]) -> str:
    """Hash a request (SHA-256): its facts and its numbers, float32, in their order."""
    content = hashlib.sha256(facts.encode())
    for tensor in tensors:
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()
