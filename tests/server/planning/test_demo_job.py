"""The demo of a run that names no job: the apps prepare it by themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from sottovoce.client.app import app as client
from sottovoce.client.device.demo_device import open_demo_device
from sottovoce.server.federation.checkpoint import load_released_model
from sottovoce.server.federation.training_job import Job
from sottovoce.server.planning import demo_job
from sottovoce.shared import demo_data
from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.models.projection import normalise_and_mask
from sottovoce.simulations.engines import local
from sottovoce.simulations.engines.device_host import RUN_ID


@pytest.fixture
def flower_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    return tmp_path


def test_a_run_without_a_job_trains_a_private_model(flower_home: Path) -> None:
    local.run_apps(devices=demo_job.DEVICES, config={"job": "", "devices": ""}, workers=1)

    folder = demo_job.prepare_demo_job(RUN_ID)
    tensors, _ = load_released_model(folder)
    job = Job.load(folder)
    features, labels = demo_data.draw_features(7)
    inputs = normalise_and_mask(
        features, features.mean(0), torch.ones_like(labels), row_norm=job.projection.row_norm
    )
    weights = tensors["weights"]
    matrix, bias = weights[: -len(demo_data.LABELS)], weights[-len(demo_data.LABELS) :]
    scores = inputs @ matrix.reshape(len(demo_data.LABELS), -1).T + bias
    right = float((scores.argmax(1) == labels).double().mean())
    assert right > 2 / len(demo_data.LABELS), "twice chance, on a user whom training never saw"
    for index in range(demo_job.DEVICES):
        device = open_demo_device(RUN_ID, index)
        budget = device.profile.budgets[0]
        assert 0 < device.ledger.epsilon_spent(budget.delta, budget.unit) <= budget.epsilon


def test_a_demo_device_keeps_one_clip_of_each_label_in_eight_for_its_head(
    flower_home: Path,
) -> None:
    device = open_demo_device(RUN_ID, 3)
    held = device.load_features()

    for_head = held.examples.labels[held.for_head].tolist()
    assert for_head == list(range(len(demo_data.LABELS))) * 2
    assert not bool((held.for_head & held.for_training).any())
    assert [budget.delta for budget in device.profile.budgets] == [1e-5]


def test_a_prepared_demo_is_not_prepared_again(flower_home: Path) -> None:
    folder = demo_job.prepare_demo_job(3)
    before = (folder / "job.json").stat().st_mtime_ns

    assert demo_job.prepare_demo_job(3) == folder
    assert (folder / "job.json").stat().st_mtime_ns == before
    assert folder.is_relative_to(flower_home)


@pytest.mark.parametrize(
    ("node", "config"),
    [
        ({}, {"job": "", "devices": ""}),
        ({"partition-id": 0}, {"job": "somewhere", "devices": ""}),
    ],
)
def test_only_a_simulated_node_of_a_demo_gets_a_made_up_device(
    flower_home: Path, node: dict[str, Any], config: dict[str, str]
) -> None:
    context = Context(RUN_ID, 100, node, RecordDict(), config)
    message = Message(RecordDict(), dst_node_id=100, message_type="query.enrol")

    with pytest.raises(PrivacyError, match="this device cannot answer"):
        client(message, context)
    assert list(flower_home.iterdir()) == []
