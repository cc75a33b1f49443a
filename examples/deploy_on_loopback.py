"""Deploy on this machine: an operator's job, two users' devices, one process each.

``python examples/deploy_on_loopback.py FOLDER`` prepares all of it in an empty folder and runs it
over the loopback interface, without TLS: it shows the parts, not how to operate them. The data are
made up; ``python -m sottovoce.simulations.engines.loopback`` does the same with speech.
"""

import sys
from pathlib import Path

import torch

from sottovoce import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.server.federation.checkpoint import load_released_model
from sottovoce.server.planning.demo_job import build_demo_job
from sottovoce.shared import demo_data
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.simulations.engines.deployed import run_apps

CHECKOUT = Path(__file__).resolve().parent.parent
USERS = ("ada", "ben")


def create_device(folder: Path, user: str, number: int) -> Path:
    """Create a user's real device: its noise comes from the operating system."""
    features, labels = demo_data.draw_features(number)
    clips = torch.arange(len(labels))
    for_head = clips % 8 == 0
    recordings = LabelledFeatures(
        examples=Examples(features=features, frames=torch.ones_like(labels), labels=labels),
        for_enrolment=torch.ones_like(for_head),
        for_head=for_head,
        for_training=~for_head,
    )
    profile = DeviceProfile(
        user=user, budgets=(PrivacyBudget(epsilon=8.0, delta=1e-5),), labels=demo_data.LABELS
    )
    Device.create(folder, profile, recordings)
    return folder


if __name__ == "__main__":
    home = Path(sys.argv[1]).resolve()
    job = build_demo_job(f"loopback-{home.name}")
    (home / "job").mkdir(parents=True)
    job.save(home / "job")
    devices = [create_device(home / user, user, number) for number, user in enumerate(USERS)]

    run_apps(
        config={"job": str(home / "job"), "devices": ""},
        devices=devices,
        app=CHECKOUT,
        home=home / "flower",
        timeout_s=600,
        on_message=print,
    )

    tensors, _ = load_released_model(home / "job")
    print(f"model       sha256 {job.plan.hash_model(tensors['weights'])}")
    for folder in devices:
        device = Device.open(folder, read_only=True)
        budget = device.profile.budgets[0]
        spent = device.ledger.charged_epsilon(budget)
        print(f"{device.profile.user:<11} epsilon {spent:.2f} of {budget.epsilon:g} spent")
