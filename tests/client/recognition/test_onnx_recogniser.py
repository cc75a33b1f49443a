"""The recogniser without torch answers as the one with torch does, for anybody and for one user."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_whisper_package

from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser
from sottovoce.client.recognition.prediction import Abstention, Prediction
from sottovoce.client.recognition.recogniser import Recogniser
from sottovoce.client.recognition.user_personalisation import Personalisation
from sottovoce.shared.audio import Signal
from sottovoce.shared.calibration import CalibrationHead, HeadAdapter
from sottovoce.shared.calibration.head import make_portable
from sottovoce.shared.calibration.portable_head import PortableHead
from sottovoce.shared.errors import AudioError, ModelError, SettingError
from sottovoce.shared.exported.export import describe_export
from sottovoce.shared.exported.exported_model import ExportedModel
from sottovoce.shared.exported.graph_writer import WeightType
from sottovoce.shared.exported.model_graph import build_graph
from sottovoce.shared.features import whisper
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.speaker.familiar_speech import FamiliarSpeech
from sottovoce.simulations.corpora import open_corpus

RATE = 16_000


@pytest.fixture(scope="module")
def voice() -> Signal:
    return open_corpus("synthetic", "speakers=1,clips=1,seed=99").clips[0].load_signal()


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    """Knows of public speech what makes the voice a little odd, so that probabilities soften."""
    plain = build_whisper_package()
    features = whisper.WhisperStatistics()(
        open_corpus("synthetic", "speakers=1,clips=1,seed=99").clips[0].load_signal()
    )
    row = plain.projection.project_features(features)
    known = FamiliarSpeech(mean=row + 0.9, scale=torch.ones(16), limit=torch.ones(1))
    return replace(plain, familiar_speech=known, centre=row + 5.0)


@pytest.fixture(scope="module")
def exported(package: ModelPackage) -> ExportedModel:
    graph = build_graph(package, whisper.load_encoder(), WeightType.FLOAT32)
    return ExportedModel(describe_export(package, WeightType.FLOAT32), graph)


def assert_same(one: Prediction, other: Prediction) -> None:
    """All that people and programs see of two predictions is the same, to rounding."""
    first, second = one.to_dict(), other.to_dict()
    for name in ("probabilities", "confidence"):
        assert first.pop(name) == pytest.approx(second.pop(name), abs=1e-4)
    assert first == second


def long_voice(voice: Signal) -> Signal:
    return Signal(np.tile(voice.waveform, 12), RATE)


@pytest.mark.parametrize(
    ("change", "abstention"),
    [
        (lambda sound: sound, None),
        (lambda sound: Signal(sound.waveform * np.float32(0.01), RATE), None),
        (lambda sound: Signal(np.stack([sound.waveform] * 2, axis=1), RATE), None),
        (lambda sound: Signal(0 * sound.waveform, RATE), Abstention.UNUSABLE),
        (lambda sound: sound.cut(0.3, 0.1), Abstention.UNUSABLE),
        (lambda _: Signal(np.sin(np.arange(RATE) / 5), RATE), Abstention.NO_SPEECH),
        (long_voice, None),
    ],
)
def test_any_sound_gets_the_answer_that_torch_gives(
    package: ModelPackage, exported: ExportedModel, voice: Signal, change: Any, abstention: object
) -> None:
    light = OnnxRecogniser(exported, min_confidence=0.0, coverage=0.8).predict(change(voice))
    usual = Recogniser(package, min_confidence=0.0, coverage=0.8).predict(change(voice))

    assert_same(light, usual)
    assert light.abstention is abstention


def test_the_users_own_part_is_applied_outside(
    package: ModelPackage, exported: ExportedModel, voice: Signal
) -> None:
    assert package.prior.basis is not None
    head = CalibrationHead(
        log_temperature=0.4,
        bias=torch.tensor([0.1, -0.2, 0.3]),
        adapter=HeadAdapter(
            weights=torch.ones(3, package.prior.basis.rank) / 9, basis_tag=package.prior.basis.tag
        ),
    )
    mean, scores = package.centre - 4.5, torch.tensor([0.9, 0.8], dtype=torch.float64)
    own = Personalisation(
        mean=mean, head=head, has_own_mean=True, has_own_head=True, nonconformity_scores=scores
    )

    light = OnnxRecogniser(
        exported, mean=mean.numpy(), head=make_portable(head), own_scores=scores.numpy()
    ).predict(voice)

    assert_same(light, Recogniser(package, own).predict(voice))
    assert light.uses_own_normaliser
    assert light.uses_own_head
    assert light.uses_own_threshold
    assert light.to_dict() != OnnxRecogniser(exported).predict(voice).to_dict()


def test_a_folder_is_opened_and_a_path_is_read(exported_model: Path, tiny_run: Any) -> None:
    recogniser = OnnxRecogniser.open(exported_model)

    assert recogniser.labels == ("angry", "neutral", "sad")
    assert recogniser.predict(tiny_run.users / "s03_00.wav").model_hash == "cd" * 32
    with pytest.raises(AudioError, match="says no sampling rate"):
        recogniser.predict(np.zeros(RATE))  # type: ignore[arg-type]


def test_what_is_not_for_the_model_is_refused(exported: ExportedModel) -> None:
    for mean in (np.zeros(3), np.full(16, np.nan)):
        with pytest.raises(ModelError, match="the user's mean has shape"):
            OnnxRecogniser(exported, mean=mean)
    bent = PortableHead(log_temperature=0.0, bias=np.zeros(3), weights=np.ones((3, 2), np.float32))
    for head in (PortableHead(log_temperature=0.0, bias=np.zeros(5)), bent):
        with pytest.raises(ModelError, match="the user's head is for"):
            OnnxRecogniser(exported, head=head)
    with pytest.raises(SettingError, match="min_confidence"):
        OnnxRecogniser(exported, min_confidence=1.5)
    older = ExportedModel.__new__(ExportedModel)
    older.record = replace(exported.record, feature_version=1)
    with pytest.raises(ModelError, match="features of version 1"):
        OnnxRecogniser(older)
