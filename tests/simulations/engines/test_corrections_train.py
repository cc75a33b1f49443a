"""What a user corrects trains the shared model of the next run, by the apps and their messages.

Ada speaks in a style of her own: her emotions show in a feature in which nobody else's do.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from sottovoce.cli.main import main
from sottovoce.client.app import app as product
from sottovoce.client.device.consent import Purpose
from sottovoce.client.device.device import Device
from sottovoce.client.device.vault import FileVault
from sottovoce.client.personalisation import feedback
from sottovoce.client.personalisation.feedback import FeedbackStore
from sottovoce.client.user_data.enrolment import Clip, enrol_clips
from sottovoce.server.federation.training_job import Job
from sottovoce.shared import calibration, seeding
from sottovoce.shared.calibration import HeadPrior
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.parameters import unflatten_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy.release import ReleaseKind
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining

CORRECTIONS = 24
FEATURES, CLASSES = 6, 3


@pytest.fixture(scope="module")
def make_run(make_federation_at: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes federations of little noise, so that a few recordings can be seen to train."""

    def make(name: str) -> Any:
        folder = tmp_path_factory.mktemp(name)
        federation = make_federation_at(folder, rounds=6, epsilon=90.0)
        job = Job.load(folder / "server")
        plan = replace(
            job.plan,
            mechanism=ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=0.7),
            training=LocalTraining(
                steps=4, sample_rate=0.5, learning_rate=4.0, denominator=1.0, momentum=0.0
            ),
        )
        replace(job, plan=plan).save(folder / "server")
        return federation

    return make


def style_of_ada(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Recordings as Ada speaks, and what they were."""
    labels = torch.arange(clips) % CLASSES
    rows = 0.3 * torch.randn(clips, FEATURES, generator=seeding.torch_rng(seed, "style"))
    rows[:, 3:] += 3 * torch.nn.functional.one_hot(labels, CLASSES)
    return rows, labels


def correct(federation: Any, user: str = "ada") -> tuple[str, ...]:
    """Label recordings on a user's device, as an app does; returns their names."""
    job = Job.load(federation.folder / "server")
    package = ModelPackage(
        labels=job.plan.labels,
        extractor=job.plan.extractor,
        spec=job.plan.model,
        weights=job.weights,
        projection=job.projection,
        centre=torch.zeros(job.plan.model.inputs),
        speaker_statistics=job.speaker_statistics,
        prior=HeadPrior(mean=calibration.identity_head(CLASSES)),
        subtracts_user_mean=True,
        model_hash="ab" * 32,
    )
    own = FeedbackStore(federation.device(user).folder, package)
    rows, labels = style_of_ada(CORRECTIONS, seed=1)
    return tuple(
        own.add_label(row, package.labels[label], package.centre)
        for row, label in zip(rows, labels.tolist(), strict=True)
    )


class OwnDevice(ClientApp):
    """The product's client, on whose first node Ada's own device answers, as on her machine."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __call__(self, message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 0:
            context.node_config["device"] = str(self.folder)
        return product(message, context)


def test_a_device_made_by_command_gives_what_its_user_enrolled_until_consent_is_withdrawn(
    make_run: Any, tmp_path: Path
) -> None:
    folder, federation = tmp_path / "ada", make_run("own")
    words = ["--user", "ada", "--use", "research", "--epsilon", "90"]
    assert main(["device", "create", str(folder), *words]) == 0
    consents = ["device", "consent", str(folder)]
    assert main([*consents, "--grant", "personalise", "--grant", "contribute"]) == 0
    rows, labels = style_of_ada(CORRECTIONS, seed=1)
    plan = Job.load(federation.folder / "server").plan
    device = Device.open(folder, read_only=True)
    clips = [
        Clip(features=row, emotion=plan.labels[label])
        for row, label in zip(rows, labels.tolist(), strict=True)
    ]
    enrol_clips(device, FileVault.open(folder / "vault"), clips, extractor=plan.extractor)

    federation.run(client=OwnDevice(folder))

    device = Device.open(folder)
    booked = [one.kind for one in device.ledger.releases]
    assert booked.count(ReleaseKind.GRADIENT) == plan.rounds
    assert set(booked) >= {ReleaseKind.LABEL_COUNTS, ReleaseKind.CENTRE, ReleaseKind.NORMALISER}
    assert len(device.vault.get_tensors("projected")["training.labels"]) == CORRECTIONS

    assert main([*consents, "--withdraw", "contribute"]) == 0
    again = make_run("again")
    again.run(client=OwnDevice(folder))

    after = [one.kind for one in Device.open(folder).ledger.releases]
    assert [one for one in after if one is not ReleaseKind.SEALED_HEAD] == [
        one for one in booked if one is not ReleaseKind.SEALED_HEAD
    ]


def uar_on_the_style(federation: Any) -> float:
    """Unweighted average recall of the shared model on other recordings of Ada's."""
    job = Job.load(federation.folder / "server")
    network = build_network(job.plan.model, seed=0)
    network.load_state_dict(unflatten_parameters(network, federation.released()))
    rows, labels = style_of_ada(60, seed=2)
    one = torch.ones(len(rows), dtype=torch.int64)
    inputs = job.projection.prepare_inputs(rows, job.projection.project_features(rows).mean(0), one)
    with torch.no_grad():
        guessed = network(inputs, one).argmax(1)
    recalls = [(guessed[labels == label] == label).double().mean() for label in range(CLASSES)]
    return float(torch.stack(recalls).mean())


@pytest.fixture(scope="module")
def usual(make_run: Any) -> Any:
    """A run in which nobody corrected anything."""
    federation = make_run("usual")
    federation.run()
    return federation


def test_corrections_train_the_shared_model_and_the_ledger_accounts_for_them(
    make_run: Any, usual: Any
) -> None:
    federation = make_run("corrected")
    correct(federation)

    federation.run()

    before, after = uar_on_the_style(usual), uar_on_the_style(federation)
    assert after > before + 0.15, (before, after)
    lines, plain = federation.device("ada").ledger.releases, usual.device("ada").ledger.releases
    assert lines == plain, "utterances more cost nothing more: each has the same promise"
    held = federation.device("ada").vault.get_tensors("projected")
    assert len(held["training.labels"]) == 12 + CORRECTIONS


@pytest.mark.parametrize("ends", ["forgotten", "withdrawn"])
def test_what_is_forgotten_or_not_consented_to_trains_nothing(
    make_run: Any, usual: Any, ends: str
) -> None:
    federation = make_run(ends)
    names = correct(federation)
    device = federation.device("ada")
    if ends == "forgotten":
        for name in names:
            feedback.forget_recording(device.folder, name)
    else:
        device.consent.withdraw(Purpose.CONTRIBUTE)

    federation.run()

    if ends == "forgotten":
        assert torch.equal(federation.released(), usual.released()), "as if it never had been"
    else:
        kinds = {one.kind.value for one in federation.device("ada").ledger.releases}
        assert kinds <= {"sealed-head"}, "nothing left but the locked head"
        assert uar_on_the_style(federation) < uar_on_the_style(usual) + 0.15
