"""What this device gave to the shared model, and the model without part of it.

Clips that a model was trained on look too easy to it. With plain averaging the final weights are
the start plus every device's updates in its share, so a device that remembers its own can take them
back. They are the updates that left: noised and booked where utterances are hidden.
"""

from typing import Final

import torch
from torch import Tensor

from sottovoce.client.device import Device
from sottovoce.shared import calibration
from sottovoce.shared.plan import Plan

_NAME: Final = "given"


def keep(
    device: Device, plan: Plan, number: int, sent: Tensor, *, clip: float, share: float
) -> None:
    """Remember what one round's update was worth to the weights, sealed.

    Args:
        device: The user's device.
        plan: The run's public facts; where it asks nothing of calibration nothing is kept.
        number: The round, from 1; each counts once.
        sent: The update as it leaves, noise included.
        clip: The round's clip norm, where the plan learns it.
        share: What one unit of the update moves the shared weights by.
    """
    if plan.calibration is None or not plan.calibration.taken_back:
        return
    update = sent.double()
    if plan.user and plan.user.adaptive:
        update, _ = plan.user.adaptive.unpacked(update, clip)
    given, last = _given(device, plan, len(update))
    if number > last:
        stamp = torch.frombuffer(bytearray.fromhex(plan.digest()), dtype=torch.uint8)
        kept = {"sum": given + share * update, "round": torch.tensor(number)}
        device.vault.put_tensors(_NAME, {**kept, "plan": stamp}, durable=False)


def weights_without(device: Device, plan: Plan, weights: Tensor) -> Tensor:
    """The final weights less the plan's part of what this device gave, (params,), float32."""
    if plan.calibration is None:
        return weights
    given, _ = _given(device, plan, len(weights))
    return calibration.taken_back(weights, given, plan.calibration.taken_back)


def _given(device: Device, plan: Plan, params: int) -> tuple[Tensor, int]:
    """What the updates of this plan came to, shape (params,), and the last round among them."""
    if device.vault.has(_NAME):
        kept = device.vault.get_tensors(_NAME)
        same = bytes(kept["plan"].tolist()).hex() == plan.digest()
        if same and len(kept["sum"]) == params:
            return kept["sum"], int(kept["round"])
    return torch.zeros(params, dtype=torch.float64), 0
