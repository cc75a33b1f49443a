"""The model in the package answers without a run, doubts strangers, and gets used to a voice."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sottovoce.cli import main
from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import AudioError
from sottovoce.shared.exported.exported_model import ExportedModel
from sottovoce.shared.models.default_model import DEFAULT_MODEL
from sottovoce.simulations.corpora import open_corpus


@pytest.fixture(scope="module")
def model() -> ExportedModel:
    """Without what it knows of familiar speech, which would abstain from made-up voices."""
    loaded = ExportedModel.load(DEFAULT_MODEL)
    loaded.record = replace(loaded.record, familiar_speech=None)
    return loaded


@pytest.fixture(scope="module")
def voice() -> list[Signal]:
    clips = open_corpus("synthetic", "speakers=1,clips=6,seed=5").clips
    return [clip.load_signal() for clip in clips]


def test_predict_needs_no_model_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["corpora", "sample", str(tmp_path / "hello.wav")]) == 0
    capsys.readouterr()

    assert main.main(["predict", str(tmp_path / "hello.wav"), "--json"]) == 0

    said = json.loads(capsys.readouterr().out)
    assert set(said["probabilities"]) == {
        "neutral",
        "happy",
        "sad",
        "angry",
        "fearful",
        "disgust",
    }
    assert not said["own_normaliser"]


def test_it_is_less_sure_of_a_voice_that_it_does_not_know(
    model: ExportedModel, voice: list[Signal]
) -> None:
    unknown = OnnxRecogniser(model).predict(voice[0])
    known = OnnxRecogniser(model, mean=model.centre).predict(voice[0])

    assert model.record.unknown_voice_temperature > 1
    assert unknown.confidence < known.confidence
    chances = np.array(list(known.probabilities.values()))
    powers = chances ** (1 / model.record.unknown_voice_temperature)
    assert list(unknown.probabilities.values()) == pytest.approx(powers / powers.sum(), abs=1e-6)


def test_it_answers_strangers_from_a_confidence_of_one_half_alone(
    model: ExportedModel, voice: list[Signal]
) -> None:
    for signal in voice:
        said = OnnxRecogniser(model).predict(signal)
        assert (said.emotion is not None) == (said.confidence >= 0.5)
    asked = OnnxRecogniser(model, min_confidence=0.0).predict(voice[0])
    assert asked.emotion is not None


def test_its_mean_of_a_voice_weighs_what_was_heard_against_the_population(
    model: ExportedModel, voice: list[Signal]
) -> None:
    recogniser = OnnxRecogniser(model)
    counts = [recogniser.learn_voice(signal) for signal in voice]
    assert counts == [1, 2, 3, 4, 5, 6]

    prior = model.record.voice_prior_utterances
    rows = []
    for signal in voice:
        alone = OnnxRecogniser(model)
        alone.learn_voice(signal)
        # One utterance weighs 1 / (1 + prior).
        rows.append(model.centre + (alone.mean - model.centre) * (1 + prior))
    share = 6 / (6 + prior)
    expected = share * np.mean(rows, axis=0) + (1 - share) * model.centre
    assert recogniser.mean == pytest.approx(expected, abs=1e-4)
    said = recogniser.predict(voice[0])
    sure = OnnxRecogniser(model, mean=recogniser.mean).predict(voice[0])
    assert said.uses_own_normaliser
    assert said.confidence < sure.confidence  # some doubt is left after six


def test_nothing_is_learned_from_silence(model: ExportedModel, voice: list[Signal]) -> None:
    recogniser = OnnxRecogniser(model)
    before = recogniser.predict(voice[0]).to_dict()

    with pytest.raises(AudioError):
        recogniser.learn_voice(Signal(np.zeros((1, 16_000), dtype=np.float32), 16_000))

    assert recogniser.predict(voice[0]).to_dict() == before
