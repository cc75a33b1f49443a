"""A model folder is one thing: read whole as it was written, or refused; strangers' too."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from sottovoce.shared import crypto
from sottovoce.shared.calibration import HeadPrior, identity_head
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models import ModelSpec, build_network, flatten_parameters
from sottovoce.shared.models.model_folder import sign_model_folder
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.model_record import SCHEMA
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.speaker.familiar_speech import FamiliarSpeech
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


def write_as_schema(folder: Path, schema: int) -> None:
    """Turn a package into what earlier releases wrote."""
    metadata = json.loads((folder / "model.json").read_text())
    data = (folder / "model.safetensors").read_bytes()
    if schema == 1:
        tensors = load_file(folder / "model.safetensors")
        data = save({OLD_TENSORS.get(name, name): tensor for name, tensor in tensors.items()})
        metadata = {OLD_METADATA.get(name, name): value for name, value in metadata.items()}
    metadata |= {"schema": schema, "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "model.safetensors").write_bytes(data)
    (folder / "model.json").write_text(json.dumps(metadata))
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("schema", [1, 2, SCHEMA])
def test_a_package_is_read_as_it_was_written(
    tmp_path: Path, package: ModelPackage, schema: int, caplog: pytest.LogCaptureFixture
) -> None:
    package.save(tmp_path)
    if schema != SCHEMA:
        write_as_schema(tmp_path, schema)

    again = ModelPackage.load(tmp_path)

    assert again.projection.content_hash() == package.projection.content_hash()
    assert again.subtracts_user_mean
    for name, tensor in package.speaker_statistics.to_tensors().items():
        assert torch.equal(getattr(again.speaker_statistics, name), tensor)
    assert again.neutral_direction is not None
    assert torch.equal(again.neutral_direction, torch.eye(INPUTS)[1])
    assert ("without a manifest" in caplog.text) == (schema != SCHEMA)


def test_what_is_familiar_is_read_as_it_was_written(tmp_path: Path, package: ModelPackage) -> None:
    known = FamiliarSpeech(
        mean=torch.arange(1.0 * INPUTS), scale=torch.ones(INPUTS), limit=torch.tensor([1.5])
    )
    replace(package, familiar_speech=known).save(tmp_path)

    again = ModelPackage.load(tmp_path).familiar_speech

    assert again is not None
    for name, tensor in known.to_tensors().items():
        assert torch.equal(getattr(again, name), tensor)
    with pytest.raises(ModelError, match="familiar_speech"):
        replace(
            package,
            familiar_speech=FamiliarSpeech(
                mean=torch.zeros(2), scale=torch.ones(2), limit=torch.ones(1)
            ),
        )


@pytest.mark.parametrize("schema", [0, SCHEMA + 1, "1", True, None])
def test_a_package_of_another_schema_is_refused(
    tmp_path: Path, package: ModelPackage, schema: object
) -> None:
    package.save(tmp_path)
    rewrite(tmp_path, schema=schema)

    with pytest.raises(ModelError, match=rf"schema is .* reads 1 to {SCHEMA}.*copy the"):
        ModelPackage.load(tmp_path)


def rewrite(folder: Path, **changes: object) -> None:
    """Alter model.json, and hash the folder again as whoever alters it can."""
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    hash_again(folder)


def hash_again(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if path.name.startswith("model")]
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "files": hashes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ["sad", "angry"]},
        {"prior": {**HeadPrior(mean=identity_head(2)).as_dict(), "bias": [5.0, -5.0]}},
        {"extractor": "log-mel"},
        {"row_norm": 3.0},
        {"subtracts_user_mean": False},
        {"trained_without": ["nobody"]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_is_altered_in_the_metadata_is_noticed(
    tmp_path: Path, package: ModelPackage, changes: dict[str, object]
) -> None:
    package.save(tmp_path, card=b"# Card")
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    with pytest.raises(ModelError, match=r"model\.json is not the one that manifest\.json names"):
        ModelPackage.load(tmp_path)


def test_a_card_a_foreign_file_or_a_missing_manifest_is_noticed(
    tmp_path: Path, package: ModelPackage
) -> None:
    package.save(tmp_path, card=b"# Card")
    ModelPackage.load(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"left by a system")
    ModelPackage.load(tmp_path)

    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds weights\.bin.*move it elsewhere"):
        ModelPackage.load(tmp_path)
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "MODEL_CARD.md").write_bytes(b"# Other card")
    with pytest.raises(ModelError, match=r"MODEL_CARD\.md is not the one"):
        ModelPackage.load(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ModelError, match=r"manifest\.json is missing"):
        ModelPackage.load(tmp_path)


def test_a_signature_shows_whose_a_model_is(tmp_path: Path, package: ModelPackage) -> None:
    package.save(tmp_path)
    own, other = crypto.new_key(), crypto.new_key()
    key = crypto.identity_public_key(own).hex()
    with pytest.raises(ModelError, match="it is not signed"):
        ModelPackage.load(tmp_path, trusted_key=key)

    assert sign_model_folder(tmp_path, own) == key
    ModelPackage.load(tmp_path)
    ModelPackage.load(tmp_path, trusted_key=key)

    with pytest.raises(ModelError, match="must be by"):
        ModelPackage.load(tmp_path, trusted_key=crypto.identity_public_key(other).hex())
    rewrite(tmp_path, labels=["sad", "angry"])  # and hashed again: only the signature shows it
    with pytest.raises(ModelError, match=r"manifest\.sig does not sign these files"):
        ModelPackage.load(tmp_path)
    (tmp_path / "manifest.sig").unlink()
    ModelPackage.load(tmp_path)
    with pytest.raises(ModelError, match="it is not signed"):
        ModelPackage.load(tmp_path, trusted_key=key)


def test_an_earlier_folder_does_not_pass_for_a_signed_one(
    tmp_path: Path, package: ModelPackage
) -> None:
    package.save(tmp_path)
    key = sign_model_folder(tmp_path, crypto.new_key())
    write_as_schema(tmp_path, 2)

    with pytest.raises(ModelError, match="so nobody signed it"):
        ModelPackage.load(tmp_path, trusted_key=key)


def test_saving_again_removes_the_signature(tmp_path: Path, package: ModelPackage) -> None:
    package.save(tmp_path)
    sign_model_folder(tmp_path, crypto.new_key())
    package.save(tmp_path)

    assert not (tmp_path / "manifest.sig").exists()
    ModelPackage.load(tmp_path)


SPEC_CHANGES: list[dict[str, object]] = [
    {"hidden": 10**9},
    {"kind": "bilstm-attention", "hidden": 10**18},
    {"inputs": 10**9},
    {"classes": 10**6},
    {"kind": "mlp", "hidden": 2**16, "inputs": 2**16},
    {"hidden": "9" * 1_000},
    {"dropout": 10**400},
]


@pytest.mark.parametrize("changes", SPEC_CHANGES, ids=lambda one: str(one)[:30])
def test_a_model_beyond_all_bounds_is_refused_before_it_is_built(
    tmp_path: Path, package: ModelPackage, changes: dict[str, object]
) -> None:
    package.save(tmp_path)
    rewrite(tmp_path, model=SPEC.to_dict() | changes)

    with pytest.raises(ModelError, match="no usable model"):
        ModelPackage.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("weights", torch.zeros(9)),
        ("weights", torch.zeros(8, dtype=torch.float64)),
        ("weights", torch.full((8,), torch.nan)),
        ("centre", torch.zeros(INPUTS + 1)),
        ("projection.mean", torch.zeros(())),
        ("projection.matrix", torch.zeros(FEATURES, INPUTS, 1)),
        ("neutral_direction", torch.zeros(INPUTS, 1)),
        ("speaker_statistics.within", torch.full((INPUTS,), torch.inf)),
        ("basis.matrix", torch.zeros(0, INPUTS)),
        ("basis.matrix", torch.zeros(())),
    ],
    ids=str,
)
def test_a_tensor_of_another_shape_type_or_value_is_refused(
    tmp_path: Path, package: ModelPackage, name: str, wrong: torch.Tensor
) -> None:
    package.save(tmp_path)
    data = save(load_file(tmp_path / "model.safetensors") | {name: wrong})
    (tmp_path / "model.safetensors").write_bytes(data)
    rewrite(tmp_path, sha256=hashlib.sha256(data).hexdigest())

    with pytest.raises(ModelError, match="no usable model"):
        ModelPackage.load(tmp_path)


@pytest.mark.parametrize("file", ["manifest.json", "model.json", "model.safetensors"])
def test_a_pipe_a_link_or_a_folder_in_place_of_a_file_is_refused(
    tmp_path: Path, package: ModelPackage, file: str
) -> None:
    makers = {
        "a pipe": os.mkfifo,
        "a link": lambda path: path.symlink_to("/dev/zero"),
        "a folder": lambda path: path.mkdir(),
    }
    for number, (what, make) in enumerate(makers.items()):
        folder = tmp_path / str(number)
        package.save(folder)
        (folder / file).unlink()
        make(folder / file)

        with pytest.raises(ModelError, match=f"{file} is {what}"):
            ModelPackage.load(folder)
