"""A device learns with an exported model as with the one that it was exported from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import build_whisper_package

from sottovoce.client.user_device import UserDevice
from sottovoce.shared.errors import ModelError
from sottovoce.shared.exported.export import describe_export
from sottovoce.shared.exported.exported_model import ExportedModel
from sottovoce.shared.exported.graph_writer import WeightType
from sottovoce.shared.exported.model_graph import build_graph
from sottovoce.shared.exported.package_reader import open_package, read_exported_package
from sottovoce.shared.features import whisper
from sottovoce.shared.models.default_model import DEFAULT_MODEL

ONE = torch.ones(1, dtype=torch.int64)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_package_comes_back_from_its_graph(kind: str) -> None:
    package = build_whisper_package(kind)
    record = describe_export(package, WeightType.FLOAT32)
    graph = build_graph(package, whisper.load_encoder(), WeightType.FLOAT32)

    found = read_exported_package(record, graph)

    features = torch.randn(1, 2304, generator=torch.Generator().manual_seed(1))
    expected = package.logits_and_coordinates(features, ONE, package.centre + 0.1)
    logits, coordinates = found.logits_and_coordinates(features, ONE, package.centre + 0.1)
    assert torch.allclose(logits, expected[0], atol=1e-5)
    assert coordinates is not None
    assert expected[1] is not None
    assert torch.allclose(coordinates, expected[1], atol=1e-5)
    assert (found.labels, found.model_hash) == (package.labels, package.model_hash)
    assert found.prior.basis is not None
    assert found.prior.basis.tag.hex() == record.basis_tag


def test_the_model_of_the_package_learns_on_a_device(tmp_path: Path, write_wav: Any) -> None:
    made = UserDevice.create(tmp_path / "ada", user="ada", use="research")
    made.consent.grant("recognise", "personalise")
    device = UserDevice.open(tmp_path / "ada", model=DEFAULT_MODEL)
    wav = tmp_path / "hum.wav"
    write_wav(wav, seconds=1.0)

    name = device.correct(wav, "angry")
    device.learn_voice(wav)

    said = device.predict(wav)
    assert (said.uses_own_head, said.uses_own_normaliser) == (True, True)
    device.forget(name)
    assert device.list_recordings() == ()


def test_a_graph_without_its_weights_is_refused() -> None:
    record = ExportedModel.load(DEFAULT_MODEL).record
    graph = (DEFAULT_MODEL / "model.onnx").read_bytes()

    with pytest.raises(ModelError, match="do not fit"):
        read_exported_package(replace(record, labels=record.labels[:2]), graph)
    with pytest.raises(ModelError, match="projection/matrix"):
        read_exported_package(record, graph.replace(b"projection/matrix", b"projection/motrix"))
    assert open_package(DEFAULT_MODEL).labels == record.labels
