"""A package that an earlier release wrote is read; one of an unknown schema is refused."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from sottovoce.shared.calibration import HeadPrior, identity_head
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models import ModelSpec, build_network, flatten_parameters
from sottovoce.shared.models.model_package import SCHEMA, ModelPackage
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

FEATURES, INPUTS = 4, 3
SPEC = ModelSpec(kind="linear", inputs=INPUTS, classes=2)
OLD_TENSORS = {
    "projection.mean": "front.mean",
    "projection.matrix": "front.matrix",
    "neutral_direction": "neutral",
    "speaker_statistics.between": "population.between",
    "speaker_statistics.within": "population.within",
    "speaker_statistics.neutral_offset": "population.neutral_offset",
    "speaker_statistics.neutral_within": "population.neutral_within",
    "speaker_statistics.offset_variance": "population.offset_spread",
}
OLD_METADATA = {"row_norm": "length", "subtracts_user_mean": "user_mean"}


@pytest.fixture
def package() -> ModelPackage:
    rows = torch.arange(5.0 * INPUTS).reshape(5, INPUTS)
    return ModelPackage(
        labels=("angry", "sad"),
        extractor="descriptors",
        spec=SPEC,
        weights=flatten_parameters(build_network(SPEC, 0)),
        projection=PublicProjection(
            mean=torch.ones(FEATURES), matrix=torch.eye(FEATURES)[:, :INPUTS], row_norm=2.0
        ),
        centre=torch.full((INPUTS,), 0.5),
        speaker_statistics=SpeakerStatistics(
            between=rows[0],
            within=rows[1],
            neutral_offset=rows[2],
            neutral_within=rows[3],
            offset_variance=rows[4],
        ),
        prior=HeadPrior(mean=identity_head(2)),
        subtracts_user_mean=True,
        model_hash="ab" * 32,
        neutral_direction=torch.eye(INPUTS)[1],
    )


def _write_as_schema_1(folder: Path) -> None:
    """Turn a package into what earlier releases wrote."""
    tensors = load_file(folder / "model.safetensors")
    data = save({OLD_TENSORS.get(name, name): tensor for name, tensor in tensors.items()})
    metadata = json.loads((folder / "model.json").read_text())
    metadata = {OLD_METADATA.get(name, name): value for name, value in metadata.items()}
    metadata |= {"schema": 1, "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "model.safetensors").write_bytes(data)
    (folder / "model.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize("old", [False, True])
def test_a_package_is_read_as_it_was_written(
    tmp_path: Path, package: ModelPackage, old: bool
) -> None:
    package.save(tmp_path)
    if old:
        _write_as_schema_1(tmp_path)

    again = ModelPackage.load(tmp_path)

    assert again.projection.content_hash() == package.projection.content_hash()
    assert again.subtracts_user_mean
    for name, tensor in package.speaker_statistics.to_tensors().items():
        assert torch.equal(getattr(again.speaker_statistics, name), tensor)
    assert again.neutral_direction is not None
    assert torch.equal(again.neutral_direction, torch.eye(INPUTS)[1])


@pytest.mark.parametrize("schema", [0, SCHEMA + 1, "1"])
def test_a_package_of_another_schema_is_refused(
    tmp_path: Path, package: ModelPackage, schema: object
) -> None:
    package.save(tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": schema}))

    with pytest.raises(ModelError, match=rf"schema is {schema}.* reads 1 and {SCHEMA}.*copy the"):
        ModelPackage.load(tmp_path)
