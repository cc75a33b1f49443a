"""This device's own contribution to the shared model, and the model without part of it.

Clips that a model was trained on look too easy to it. With plain averaging the final weights are
the start plus every device's updates in its share, so a device that remembers its own can subtract
them. They are the updates that left: noised and booked where utterances are hidden.
"""

from typing import Final

import torch
from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.shared.calibration import head_statistics
from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.protocol.messages import TrainRequest
from sottovoce.shared.protocol.training_plan import Plan

_NAME: Final = "given"


def record_update(device: Device, plan: Plan, request: TrainRequest, sent_update: Tensor) -> None:
    """Remember how far one round's update moved the weights, sealed.

    Args:
        device: The user's device.
        plan: The run's public facts; where it asks for no head statistics nothing is kept.
        request: The round's request; each round counts once.
        sent_update: The update as it leaves, noise included.
    """
    if plan.calibration is None or not plan.calibration.subtracted_share:
        return
    update = sent_update.double()
    update, _ = plan.scheme.unpack_update(plan, update, request.clip_norm)
    contribution, last = _stored_contribution(device, plan, len(update))
    # A round that is answered again moved the weights once.
    if request.round > last:
        stamp = torch.frombuffer(bytearray.fromhex(plan.content_hash()), dtype=torch.uint8)
        tensors = {
            "sum": contribution + request.update_scale * update,
            "round": torch.tensor(request.round),
            "plan": stamp,
        }
        # Not synced: what is lost costs accuracy of the statistics, and no privacy.
        device.vault.put_tensors(_NAME, tensors, durable=False)


def subtract_contribution(device: Device, plan: Plan, weights: Tensor) -> Tensor:
    """Subtract the plan's share of this device's contribution, (params,), float32."""
    if plan.calibration is None:
        return weights
    contribution, _ = _stored_contribution(device, plan, len(weights))
    return head_statistics.subtract_own_contribution(
        weights, contribution, plan.calibration.subtracted_share
    )


def _stored_contribution(device: Device, plan: Plan, params: int) -> tuple[Tensor, int]:
    """Read the summed updates of this plan, shape (params,), and the last round among them."""
    nothing = torch.zeros(params, dtype=torch.float64), 0
    if device.vault.has_blob(_NAME):
        try:
            tensors = device.vault.get_tensors(_NAME)
        except PrivacyError:  # cut off by a power cut: as good as lost
            return nothing
        same = bytes(tensors["plan"].tolist()).hex() == plan.content_hash()
        if same and len(tensors["sum"]) == params:
            return tensors["sum"], int(tensors["round"])
    return nothing
