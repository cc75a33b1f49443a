"""Contracts of exported models: the same answers as torch's, in less room, or no export at all."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import build_model_package, build_whisper_package

from sottovoce.shared import crypto
from sottovoce.shared.audio import Signal, voice_activity
from sottovoce.shared.calibration import HeadPrior, identity_head
from sottovoce.shared.errors import ModelError
from sottovoce.shared.exported.export import LARGEST_DIFFERENCE, describe_export, export_model
from sottovoce.shared.exported.exported_model import ExportedModel, count_frames, is_exported
from sottovoce.shared.exported.graph_writer import WeightType
from sottovoce.shared.exported.model_graph import build_graph
from sottovoce.shared.features import whisper
from sottovoce.shared.models import ModelSpec, build_network, flatten_parameters
from sottovoce.shared.models.model_folder import sign_model_folder
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.speaker.normalisation import default_statistics
from sottovoce.simulations.corpora import open_corpus


def open_graph(package: ModelPackage, weights: WeightType) -> ExportedModel:
    graph = build_graph(package, whisper.load_encoder(), weights)
    return ExportedModel(describe_export(package, weights), graph)


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return build_whisper_package("mlp")


@pytest.fixture(scope="module")
def exported(package: ModelPackage) -> ExportedModel:
    return open_graph(package, WeightType.FLOAT32)


@pytest.fixture
def folder(exported_model: Path) -> Path:
    return exported_model


@pytest.mark.parametrize("samples", [1, 799, 16_000, 16_100, 30 * 16_000 + 1, 31 * 16_000 + 77])
def test_every_output_is_torchs(
    package: ModelPackage, exported: ExportedModel, samples: int
) -> None:
    generator = torch.Generator().manual_seed(samples)
    sound = torch.randn(samples, generator=generator) / 20
    outputs = whisper.load_encoder()(Signal(sound, 16_000))
    spoken = torch.rand(len(outputs[0]), generator=generator) > 0.5
    spoken[:2] = True
    mean = torch.randn(16, generator=generator) / 10

    found = exported.run(sound.numpy(), spoken.numpy(), mean.numpy())

    features = whisper.pool_statistics(outputs, spoken)
    one = torch.ones(1, dtype=torch.int64)
    logits, coordinates = package.logits_and_coordinates(features[None], one, mean)
    assert coordinates is not None
    assert found.coordinates is not None
    np.testing.assert_allclose(found.features, features, atol=1e-4)
    np.testing.assert_allclose(
        found.projected, package.projection.project_features(features), atol=1e-4
    )
    np.testing.assert_allclose(found.logits, logits[0], atol=1e-4)
    np.testing.assert_allclose(found.coordinates, coordinates[0], atol=1e-4)


@pytest.mark.parametrize("samples", [1, 800, 12_345, 16_000, 16_001, 480_001])
def test_frames_are_counted_as_the_encoder_makes_them(samples: int) -> None:
    assert count_frames(samples) == len(
        whisper.load_encoder()(Signal(torch.zeros(samples), 16_000))[0]
    )


@pytest.mark.parametrize(("weights", "most"), [(WeightType.FLOAT16, 13e6), (WeightType.INT8, 7e6)])
def test_the_usual_model_fits_its_room(weights: WeightType, most: float) -> None:
    spec = ModelSpec(kind="linear", inputs=192, classes=8)
    usual = build_whisper_package(
        labels=tuple("abcdefgh"),
        spec=spec,
        weights=flatten_parameters(build_network(spec, 0)),
        projection=PublicProjection(mean=torch.zeros(2304), matrix=torch.ones(2304, 192)),
        centre=torch.zeros(192),
        speaker_statistics=default_statistics(192),
        prior=HeadPrior(mean=identity_head(8)),
    )

    assert len(build_graph(usual, whisper.load_encoder(), weights)) <= most


def test_real_clips_get_torchs_probabilities(corpora_dir: Path) -> None:
    """Through the detector and the cut, as a recogniser takes them."""
    package = build_whisper_package()
    extractor, one = whisper.WhisperStatistics(), torch.ones(1, dtype=torch.int64)
    exact, rounded = (open_graph(package, kind) for kind in (WeightType.FLOAT32, WeightType.INT8))
    for clip in open_corpus("ravdess", str(corpora_dir / "ravdess")).clips[:96:8]:
        signal = clip.load_signal()
        cut = voice_activity.cut_to_speech(signal)
        samples = cut.signal.samples[0].numpy()
        spoken = np.asarray(cut.mask_frames(count_frames(len(samples)), whisper.FRAME_HOP))
        expected = package.compute_logits(extractor(signal)[None], one, package.centre)[0]

        for exported, most in ((exact, 1e-4), (rounded, 0.05)):
            logits = exported.run(samples, spoken, exported.centre).logits
            shares = torch.softmax(torch.from_numpy(logits), 0)
            assert float((shares - torch.softmax(expected, 0)).abs().max()) < most


def test_an_exported_folder_is_verified_and_keeps_the_card(folder: Path) -> None:
    loaded = ExportedModel.load(folder)

    assert is_exported(folder)
    assert loaded.record.labels == ("angry", "neutral", "sad")
    assert loaded.record.weights == "int8"
    assert (folder / "MODEL_CARD.md").read_text().startswith("# Card\n")
    assert "int8" in (folder / "MODEL_CARD.md").read_text()


def test_a_pinned_signature_is_asked_of_exported_models_too(folder: Path, tmp_path: Path) -> None:
    own = copy_folder(folder, tmp_path)
    public = sign_model_folder(own, crypto.new_key())

    ExportedModel.load(own, trusted_key=public)

    with pytest.raises(ModelError, match="not signed"):
        ExportedModel.load(folder, trusted_key=public)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda own: (own / "model.onnx").write_bytes(b"no graph"), "altered"),
        (lambda own: (own / "model.onnx").unlink(), "missing"),
        (lambda own: (own / "manifest.json").unlink(), "holds no exported model"),
        (lambda own: rewrite(own, graph=b"no graph"), "cannot be run"),
        (lambda own: rewrite(own, labels=["angry", "sad"]), "for 3 classes, not 2"),
        (lambda own: rewrite(own, labels=["angry", "sad", "sad"]), "not of this model.json"),
        (lambda own: rewrite(own, prior={"bias": [0, 0, 0]}), "prior of the exported model"),
        (lambda own: rewrite(own, familiar_speech={"mean": [0], "scale": [1], "limit": 1}), "dama"),
        (lambda own: rewrite(own, centre=[0.0] * 15), "not of this model.json"),
        (lambda own: rewrite(own, basis_tag=""), "not of this model.json"),
        (lambda own: rewrite(own, basis_tag="zz"), "damaged"),
        (lambda own: rewrite(own, schema=2), "schema"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(
    folder: Path, tmp_path: Path, change: object, fault: str
) -> None:
    own = copy_folder(folder, tmp_path)
    change(own)  # type: ignore[operator]

    with pytest.raises(ModelError, match=fault):
        ExportedModel.load(own)


def test_a_trained_models_folder_is_no_exported_one(tmp_path: Path) -> None:
    build_whisper_package().save(tmp_path)

    with pytest.raises(ModelError, match=r"no model\.onnx in it; write one with"):
        ExportedModel.load(tmp_path)


@pytest.mark.parametrize(
    ("samples", "speech", "inputs"), [(16_000, 49, 16), (16_000, 1, 16), (16_000, 50, 15)]
)
def test_arguments_that_do_not_fit_are_refused(
    exported: ExportedModel, samples: int, speech: int, inputs: int
) -> None:
    spoken = np.zeros(max(speech, 50) if speech < 2 else speech, dtype=bool)
    spoken[:speech] = True

    with pytest.raises(ModelError, match="have 50 frames"):
        exported.run(
            np.zeros(samples, dtype=np.float32), spoken, np.zeros(inputs, dtype=np.float32)
        )


def test_models_without_a_graph_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a linear model on descriptors cannot .* linear and mlp"):
        export_model(build_model_package(), tmp_path, weights=WeightType.FLOAT32)

    assert not list(tmp_path.iterdir())


def test_an_export_whose_answers_differ_is_not_written(tmp_path: Path) -> None:
    """Features far from zero, which 16 bits cannot hold."""
    package = build_whisper_package()
    projection = replace(package.projection, mean=package.projection.mean + 1e6)
    moved = build_whisper_package(projection=projection)

    with pytest.raises(ModelError, match="differ by nan"):
        export_model(moved, tmp_path, weights=WeightType.FLOAT16)

    assert not list(tmp_path.iterdir())
    assert LARGEST_DIFFERENCE[WeightType.FLOAT32] <= 1e-4


def copy_folder(folder: Path, target: Path) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def rewrite(folder: Path, *, graph: bytes = b"", **changes: object) -> None:
    """Alter an exported folder, and hash it again as whoever alters it can."""
    record = json.loads((folder / "model.json").read_text()) | changes
    (folder / "model.json").write_text(json.dumps(record))
    if graph:
        (folder / "model.onnx").write_bytes(graph)
    names = ("model.json", "model.onnx", "MODEL_CARD.md")
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "files": hashes}))
