"""A simulated device of made-up data, for a node of a run that names neither job nor devices."""

import torch

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.shared import demo_data
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy.ledger import PrivacyBudget

_EVERY_FOR_HEAD = 8  # a head is fitted on clips that training has not seen


def open_demo_device(run_id: int, index: int) -> Device:
    """Open a demo run's device, made when it is first asked for.

    Args:
        run_id: Flower's.
        index: The node's partition, from 0.

    Returns:
        A simulated device: its noise can be repeated and protects nobody.
    """
    # Under the run's id: two runs of the demo must not share ledgers.
    folder = demo_data.demo_folder(run_id) / "devices" / f"{index:06d}"
    if Device.exists(folder):
        return Device.open(folder)
    features, labels = demo_data.draw_features(index)
    for_head = torch.arange(len(labels)) // len(demo_data.LABELS) % _EVERY_FOR_HEAD == 0
    examples = Examples(
        features=features, frames=torch.ones(len(labels), dtype=torch.int64), labels=labels
    )
    return Device.create(
        folder,
        DeviceProfile(
            user=f"demo-{index}",
            budgets=(PrivacyBudget(epsilon=8.0, delta=1e-5),),
            labels=demo_data.LABELS,
            simulated_seed=demo_data.SEED,
        ),
        LabelledFeatures(
            examples=examples,
            for_enrolment=torch.ones(len(labels), dtype=torch.bool),
            for_head=for_head,
            for_training=~for_head,
        ),
    )
