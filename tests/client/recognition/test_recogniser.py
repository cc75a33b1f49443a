"""The recogniser: silence gets no answer, doubt says so, and a user's own things are the user's."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_clips, make_device, make_plan
from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.device.vault import FileVault
from sottovoce.client.federation import enrolment, final_model
from sottovoce.client.personalisation import feedback, speaker_adapter
from sottovoce.client.personalisation.head_calibrator import HeadCalibrator
from sottovoce.client.recognition import evidence, recording_features
from sottovoce.client.recognition.prediction import Abstention, Prediction
from sottovoce.client.recognition.recogniser import Recogniser
from sottovoce.client.recognition.user_personalisation import load_personalisation
from sottovoce.shared import calibration
from sottovoce.shared.audio import Signal, resample
from sottovoce.shared.calibration import (
    AdapterBasis,
    CalibrationHead,
    HeadPrior,
    conformal_fit,
)
from sottovoce.shared.errors import (
    AudioError,
    ModelError,
    PrivacyError,
    RecordingFault,
    SettingError,
)
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.protocol.local_training import LocalTraining
from sottovoce.shared.protocol.messages import FinalModelRequest
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.familiar_speech import FamiliarSpeech
from sottovoce.shared.speaker.normalisation import EXACT_MEAN, default_statistics
from sottovoce.simulations.corpora.synthetic.synthetic_corpus import open_synthetic

LABELS = ("angry", "happy", "sad")
FEATURES, INPUTS = 6, 4
RATE = 16_000


class Ears:
    """Features that a test chooses, whatever is heard; remembers what it was given."""

    name, framewise, fingerprint = "ears", False, "0" * 64

    def __init__(self, features: Tensor | None = None) -> None:
        self.features = torch.ones(FEATURES) if features is None else features
        self.heard: list[Signal] = []

    def __call__(self, signal: Signal) -> Tensor:
        self.heard.append(signal)
        return self.features


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> Ears:
    """Stands for every extractor."""
    own = Ears()
    monkeypatch.setattr(recording_features.registry, "create_extractor", lambda _name: own)
    return own


def _front(seed: int = 0) -> PublicProjection:
    generator = torch.Generator().manual_seed(seed)
    return PublicProjection(
        mean=torch.zeros(FEATURES), matrix=torch.randn(FEATURES, INPUTS, generator=generator)
    )


def _bundle(*, scale: float = 2.0, seed: int = 0) -> ModelPackage:
    """A linear model that is sure of something."""
    spec = ModelSpec(kind="linear", inputs=INPUTS, classes=len(LABELS))
    plain = flatten_parameters(build_network(spec, 0))
    weights = scale * torch.randn(plain.shape, generator=torch.Generator().manual_seed(3))
    plan = _plan(_front(seed))
    return ModelPackage(
        labels=LABELS,
        extractor="ears",
        spec=spec,
        weights=weights,
        projection=_front(seed),
        centre=torch.zeros(INPUTS),
        speaker_statistics=default_statistics(INPUTS),
        prior=HeadPrior(mean=CalibrationHead(log_temperature=0.5, bias=torch.zeros(len(LABELS)))),
        subtracts_user_mean=True,
        model_hash=plan.hash_model(weights),
    )


def _basis(width: int = INPUTS) -> AdapterBasis:
    return AdapterBasis(centre=torch.full((width,), -1.0), matrix=torch.eye(width)[:2])


def _plan(front: PublicProjection) -> Plan:
    return make_plan(
        labels=LABELS,
        extractor="ears",
        projection_hash=front.content_hash(),
        model=ModelSpec(kind="linear", inputs=INPUTS, classes=len(LABELS)),
        rounds=1,
        training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0),
        normaliser=EXACT_MEAN,
    )


def _device(folder: Path, *, enrolled: int = 5, labelled: int = 3) -> Device:
    """A new user's device with clips that are all the same."""
    count = enrolled + labelled
    first = torch.arange(count) < enrolled
    labels = torch.where(first, -1, torch.arange(count) % len(LABELS))
    features = torch.linspace(-1, 2, FEATURES).repeat(count, 1)
    examples = Examples(
        features=features, frames=torch.ones(count, dtype=torch.int64), labels=labels
    )
    return make_device(
        folder,
        make_clips(examples, for_head=~first, trains=False),
        contributes=False,
        labels=LABELS,
        simulated_seed=1,
    )


def _joined(folder: Path, bundle: ModelPackage, **clips: int) -> Device:
    """A device that took this model from a run."""
    device, plan = _device(folder, **clips), _plan(bundle.projection)
    enrolment.enrol_device(device, plan, bundle.projection, bundle.speaker_statistics)
    final_model.finalise_model(
        device,
        FinalModelRequest(
            plan_hash=plan.content_hash(),
            weights=bundle.weights,
            centre=bundle.centre,
            prior=bundle.prior,
        ),
    )
    return device


def _open(bundle: ModelPackage, folder: Path, device: Path | None = None, **how: Any) -> Recogniser:
    """Through the disk, as an app does."""
    bundle.save(folder)
    return Recogniser.open(folder, device, **how)


def _speech(*, seconds: float = 1.0, rate: int = RATE, level: float = 0.2) -> Signal:
    """A voice with loud and soft parts that no flag is raised for, of this peak level."""
    voice = resample(_voice(), rate).samples
    voice = voice.repeat(1, math.ceil(seconds * rate / voice.shape[1]))[:, : int(seconds * rate)]
    return Signal(level * voice / voice.abs().max(), rate)


@cache
def _voice() -> Signal:
    """One utterance of a synthetic speaker."""
    made = open_synthetic("speakers=1,clips=1").clips[0].voice
    assert made is not None
    return made.render()


# --- no guess where there is nothing to hear --------------------------------------------------


@pytest.mark.usefixtures("ears")
def test_samples_without_their_rate_are_refused() -> None:
    for samples in (torch.zeros(RATE).numpy(), torch.zeros(RATE), [0.0], None):
        with pytest.raises(AudioError, match=r"Signal\(samples, rate\)"):
            Recogniser(_bundle()).predict(samples)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("signal", "flag", "step"),
    [
        (Signal(torch.zeros(1, RATE), RATE), "silent", "microphone"),
        (Signal(torch.full((1, RATE), 0.5), RATE), "silent", "microphone"),
        (_speech(seconds=0.1), "too short", "0.25 s"),
        (Signal(torch.zeros(1, 1), RATE), "too short", "microphone"),
    ],
)
def test_what_cannot_be_heard_gets_no_answer(
    ears: Ears, signal: Signal, flag: str, step: str
) -> None:
    said = Recogniser(_bundle()).predict(signal)

    assert (said.emotion, said.probabilities, said.confidence) == (None, {}, 0.0)
    assert said.abstained
    assert flag in said.quality
    assert flag in said.reason
    assert step in said.next_step
    assert not ears.heard, "nothing may be computed from it"


def _times(seconds: float = 2.0) -> Tensor:
    """Moments of samples, in seconds."""
    return torch.arange(int(seconds * RATE)) / RATE


def _noise(seed: int) -> Tensor:
    return torch.randn(2 * RATE, generator=torch.Generator().manual_seed(seed))


NOT_SPEECH: dict[str, Callable[[], Tensor]] = {
    "white noise": lambda: 0.1 * _noise(1),
    "brown noise": lambda: 0.05 * _noise(2).cumsum(0) / 60,
    "a tone": lambda: 0.3 * torch.sin(2 * torch.pi * 440 * _times()),
    "a chord": lambda: sum(
        (0.1 * torch.sin(2 * torch.pi * f * _times()) for f in (220, 277, 330)), torch.zeros(())
    ),
    "a hum": lambda: 0.2 * torch.sign(torch.sin(2 * torch.pi * 100 * _times())),
    "clicks": (_noise(3) > 3.2).float,
}


@pytest.mark.parametrize("name", NOT_SPEECH)
def test_what_is_no_speech_gets_no_answer_and_teaches_nothing(ears: Ears, name: str) -> None:
    """A model of emotions was as sure of a tone as of a voice."""
    signal = Signal(NOT_SPEECH[name]()[None].float(), RATE)

    said = Recogniser(_bundle()).predict(signal)

    assert (said.emotion, said.probabilities, said.prediction_set) == (None, {}, ())
    assert "no speech" in said.quality
    assert "no speech" in said.reason
    assert said.next_step
    with pytest.raises(AudioError, match="no speech") as refused:
        recording_features.FeatureReader("ears").require_features(signal)
    assert refused.value.kind is RecordingFault.NO_SPEECH
    assert not ears.heard


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_samples_get_no_answer(ears: Ears, value: float) -> None:
    signal = _speech()
    signal.samples[0, 100] = value  # behind the signal's own check

    said = Recogniser(_bundle()).predict(signal)

    assert (said.emotion, said.abstained, said.probabilities) == (None, True, {})
    assert "NaN" in said.reason
    assert not ears.heard


def test_features_that_are_no_numbers_get_no_answer(ears: Ears) -> None:
    ears.features = torch.full((FEATURES,), float("nan"))
    said = Recogniser(_bundle()).predict(_speech())
    assert (said.emotion, said.probabilities) == (None, {})
    assert "not finite" in said.reason


def test_a_model_of_an_earlier_releases_features_is_refused(ears: Ears, tmp_path: Path) -> None:
    _bundle().save(tmp_path)
    metadata = json.loads((tmp_path / "model.json").read_text())
    del metadata["feature_version"]  # as releases wrote it before versions
    (tmp_path / "model.json").write_text(json.dumps(metadata | {"schema": 2}))
    (tmp_path / "manifest.json").unlink()

    with pytest.raises(ModelError, match=r"version 1, and this release computes version 2.*anew"):
        Recogniser.open(tmp_path)


def test_features_of_another_width_are_refused(ears: Ears) -> None:
    ears.features = torch.ones(FEATURES + 1)
    with pytest.raises(ModelError, match="another extractor"):
        Recogniser(_bundle()).predict(_speech())


@pytest.mark.parametrize(
    ("signal", "flag"),
    [(_speech(level=2e-3), "quiet"), (_speech(level=3.0), "clipped")],
)
def test_a_flaw_is_told_beside_the_answer(ears: Ears, signal: Signal, flag: str) -> None:
    said = Recogniser(_bundle(), min_confidence=0.0).predict(signal)

    assert said.emotion in LABELS
    assert flag in said.quality
    assert said.next_step
    assert flag in str(said)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_the_extractor_hears_its_own_rate(ears: Ears, rate: int) -> None:
    Recogniser(_bundle()).predict(_speech(rate=rate))
    assert [signal.rate for signal in ears.heard] == [RATE]


# --- answers ----------------------------------------------------------------------------------


def test_probabilities_are_the_models_own(ears: Ears, tmp_path: Path) -> None:
    bundle = _bundle()
    said = _open(bundle, tmp_path).predict(_speech())

    logits = bundle.compute_logits(
        ears.features[None], torch.ones(1, dtype=torch.int64), bundle.centre
    )
    expected = torch.softmax(calibration.calibrate_logits(bundle.prior.mean, logits)[0].double(), 0)
    assert list(said.probabilities) == list(LABELS)
    assert torch.tensor(list(said.probabilities.values())).allclose(expected.float(), atol=1e-6)
    assert said.emotion == LABELS[int(expected.argmax())]
    assert said.confidence == pytest.approx(float(expected.max()))
    assert said.model_hash == bundle.model_hash


def test_doubt_abstains_and_names_what_helps(ears: Ears) -> None:
    unsure = replace(_bundle(), weights=torch.zeros_like(_bundle().weights))

    said = Recogniser(unsure).predict(_speech())

    assert (said.emotion, said.abstained) == (None, True)
    assert said.confidence == pytest.approx(1 / 3)
    assert "33% is below 50%" in said.reason
    assert "enrol" in said.next_step
    assert "nearest" in str(said)
    assert Recogniser(unsure, min_confidence=0.0).predict(_speech()).emotion in LABELS


@pytest.mark.parametrize("least", [-0.1, 1.1, float("nan")])
def test_a_confidence_that_is_none_is_refused(ears: Ears, least: float) -> None:
    with pytest.raises(SettingError, match="min_confidence"):
        Recogniser(_bundle(), min_confidence=least)


def test_a_prediction_is_whole() -> None:
    whole: dict[str, Any] = {
        "emotion": "sad",
        "probabilities": {"sad": 0.75, "happy": 0.25},
        "confidence": 0.75,
        "abstained": False,
        "reason": "",
        "quality": (),
        "next_step": "",
        "model_hash": "0" * 64,
        "uses_own_normaliser": False,
        "uses_own_head": False,
    }
    said = Prediction(**whole)
    assert str(said) == "sad 75% (then happy 25%)"
    assert said.to_dict()["probabilities"] == {"sad": 0.75, "happy": 0.25}

    for spoilt in (
        {"probabilities": {"sad": 0.75}},
        {"probabilities": {"sad": 1.75, "happy": -0.75}},
        {"probabilities": {"sad": float("nan"), "happy": 0.5}},
        {"emotion": None},
        {"abstained": True},
        {"reason": "because"},
        {"prediction_set": ("sad",)},
        {"coverage": 0.9},
        {"prediction_set": ("angry",), "coverage": 0.9},
        {"prediction_set": ("sad",), "coverage": float("nan")},
    ):
        with pytest.raises(ModelError):
            Prediction(**whole | spoilt)


# --- sets ---------------------------------------------------------------------------------------


def _scored(*scores: float) -> ModelPackage:
    """A model package whose prior has nonconformity scores."""
    bundle = _bundle()
    known = conformal_fit.fit_population_scores([torch.tensor(scores)])
    return replace(bundle, prior=replace(bundle.prior, scores=known))


def test_a_set_grows_with_the_coverage_that_is_asked(ears: Ears, tmp_path: Path) -> None:
    bundle = _scored(*[index / 100 for index in range(100)])
    sizes = [
        len(_open(bundle, tmp_path / "model", coverage=coverage).predict(_speech()).prediction_set)
        for coverage in (0.05, 0.97, 0.999)
    ]

    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, len(LABELS))


def _knowing(distance: float) -> ModelPackage:
    """A sure model from whose public speech every recording of the ears is so many limits away."""
    bundle = _scored(*[index / 100 for index in range(100)])
    row = bundle.projection.project_features(torch.ones(FEATURES))
    known = FamiliarSpeech(
        mean=row - distance * torch.tensor([1.0, -1.0, 1.0, -1.0]),
        scale=torch.ones(INPUTS),
        limit=torch.ones(1),
    )
    return replace(bundle, familiar_speech=known, centre=row + 9.0)


def test_speech_unlike_what_the_model_knows_gets_no_answer(ears: Ears) -> None:
    near = Recogniser(_knowing(0.5), min_confidence=0, coverage=0.05).predict(_speech())
    far = Recogniser(_knowing(1.5), min_confidence=0, coverage=0.05).predict(_speech())

    assert (near.abstained, len(near.prediction_set)) == (False, 1)
    assert far.abstention is Abstention.UNFAMILIAR
    assert far.to_dict()["abstention"] == "unlike what the model knows"
    assert "unlike what the model knows (1.5 times" in far.reason
    assert set(far.prediction_set) == set(LABELS)
    assert far.confidence < min(near.confidence, 0.5)
    assert far.next_step


def test_speech_like_that_of_the_training_users_is_familiar(ears: Ears) -> None:
    bundle = _knowing(3.0)
    row = bundle.projection.project_features(torch.ones(FEATURES))

    said = Recogniser(replace(bundle, centre=row), min_confidence=0).predict(_speech())

    assert not said.abstained


def test_a_model_without_public_speech_answers_as_before(ears: Ears) -> None:
    bundle = replace(_knowing(9.0), familiar_speech=None)

    assert not Recogniser(bundle, min_confidence=0).predict(_speech()).abstained


# --- recordings of minutes ----------------------------------------------------------------------


class TurningEars(Ears):
    """Features that change after a number of windows."""

    def __init__(self, *, after: int) -> None:
        super().__init__()
        self._after = after

    def __call__(self, signal: Signal) -> Tensor:
        sign = 1.0 if len(self.heard) < self._after else -1.0
        return sign * super().__call__(signal)


def test_of_a_long_recording_a_bounded_part_is_looked_at(ears: Ears) -> None:
    said = Recogniser(_bundle(), min_confidence=0).predict(_speech(seconds=150))

    assert not said.abstained
    assert "long" in said.quality
    assert "cut it into utterances" in said.next_step
    assert len(ears.heard) == evidence.MAX_WINDOWS
    assert max(window.duration_s for window in ears.heard) <= evidence.WINDOW_S


def test_a_long_recording_of_two_emotions_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    ears = TurningEars(after=4)
    monkeypatch.setattr(recording_features.registry, "create_extractor", lambda _name: ears)
    bundle = _scored(*[index / 100 for index in range(100)])

    said = Recogniser(bundle, min_confidence=0, coverage=0.05).predict(_speech(seconds=40))

    assert said.abstention is Abstention.MIXED
    assert " in 4" in said.reason
    assert len(said.prediction_set) == 2
    assert said.confidence < 0.9


def test_nothing_is_learned_from_a_recording_of_minutes(ears: Ears, tmp_path: Path) -> None:
    device = _device(tmp_path / "device").folder

    with pytest.raises(AudioError, match="lasts 61 s, 60 may be") as refused:
        _open(_bundle(), tmp_path / "model", device).learn_voice(_speech(seconds=61))
    assert refused.value.kind is RecordingFault.TOO_LONG
    assert not ears.heard


def test_speech_in_a_long_silence_is_found(ears: Ears) -> None:
    samples = torch.zeros(1, 70 * RATE)
    samples[:, 61 * RATE : 63 * RATE] = _speech(seconds=2).samples

    said = Recogniser(_bundle(), min_confidence=0).predict(Signal(samples, RATE))

    assert not said.abstained
    assert len(ears.heard) == 1


def test_long_noise_and_long_silence_get_no_answer(ears: Ears) -> None:
    noise = 0.1 * torch.randn(1, 15 * RATE, generator=torch.Generator().manual_seed(5))
    for samples, kind in (
        (noise, Abstention.NO_SPEECH),
        (torch.zeros_like(noise), Abstention.UNUSABLE),
    ):
        said = Recogniser(_bundle()).predict(Signal(samples, RATE))

        assert said.abstention is kind
        assert said.reason
        assert "long" in said.quality
    assert not ears.heard


def test_a_set_says_how_often_it_is_right(ears: Ears) -> None:
    said = Recogniser(_scored(0.1, 0.2, 0.3), coverage=0.7).predict(_speech()).to_dict()

    assert said["set"][0] == max(said["probabilities"], key=said["probabilities"].get)
    assert (said["coverage"], said["own_set"]) == (0.7, False)
    assert Recogniser(_bundle()).predict(_speech()).to_dict()["set"] == []
    silent = Recogniser(_scored(0.1)).predict(Signal(torch.zeros(1, RATE), RATE)).to_dict()
    assert (silent["set"], silent["coverage"]) == ([], None)


def test_own_clips_move_the_set(ears: Ears, tmp_path: Path) -> None:
    bundle = _scored(*[0.01] * 50)
    device = _joined(tmp_path / "device", bundle, labelled=30)

    own = _open(bundle, tmp_path / "model", device.folder).predict(_speech())
    anybodys = Recogniser(bundle).predict(_speech())

    assert own.uses_own_threshold
    assert not anybodys.uses_own_threshold
    # Clips all alike under every label: the model is wrong two times in three.
    assert len(own.prediction_set) > len(anybodys.prediction_set)


@pytest.mark.parametrize("coverage", [0.0, 1.0, float("nan")])
def test_a_coverage_that_is_none_is_refused(ears: Ears, coverage: float) -> None:
    with pytest.raises(SettingError, match="coverage"):
        Recogniser(_bundle(), coverage=coverage)


# --- what is the user's own -------------------------------------------------------------------


def test_a_device_that_took_the_model_brings_mean_and_head(ears: Ears, tmp_path: Path) -> None:
    bundle = _bundle()
    device = _joined(tmp_path / "device", bundle)

    own = _open(bundle, tmp_path / "model", device.folder)
    said, anybodys = own.predict(_speech()), Recogniser(bundle).predict(_speech())

    assert (said.uses_own_normaliser, said.uses_own_head) == (True, True)
    assert (anybodys.uses_own_normaliser, anybodys.uses_own_head) == (False, False)
    assert torch.equal(own.personalisation.mean, device.vault.get_tensors("normaliser")["mean"])
    assert said.probabilities != anybodys.probabilities


def test_a_head_of_another_model_is_left_alone(ears: Ears, tmp_path: Path) -> None:
    device = _joined(tmp_path / "device", _bundle())
    other = replace(_bundle(), model_hash="f" * 64)

    person = load_personalisation(other, device.folder)

    assert (person.has_own_mean, person.has_own_head) == (True, False)
    assert torch.equal(person.head.bias, other.prior.mean.bias)


def test_a_mean_from_behind_another_front_is_left_alone(ears: Ears, tmp_path: Path) -> None:
    device = _joined(tmp_path / "device", _bundle())
    other = _bundle(seed=9)

    person = load_personalisation(other, device.folder)

    assert (person.has_own_mean, person.has_own_head) == (False, False)
    assert torch.equal(person.mean, other.centre)


def test_a_user_who_gave_nothing_is_anybody(ears: Ears, tmp_path: Path) -> None:
    bundle = _bundle()
    device = _joined(tmp_path / "device", bundle, enrolled=0, labelled=0)
    person = load_personalisation(bundle, device.folder)
    assert (person.has_own_mean, person.has_own_head) == (False, False)

    elsewhere = replace(bundle, centre=torch.ones(INPUTS))  # another run's, behind one front
    person = load_personalisation(elsewhere, device.folder)
    assert (person.has_own_mean, person.mean.tolist()) == (False, elsewhere.centre.tolist())

    fresh = _device(tmp_path / "fresh")
    person = load_personalisation(bundle, fresh.folder)
    assert (person.has_own_mean, person.has_own_head) == (False, False)


def test_prediction_reads_the_vault_and_writes_nothing(ears: Ears, tmp_path: Path) -> None:
    bundle = _bundle()
    device = _joined(tmp_path / "device", bundle)
    device.ledger.path.write_bytes(b"torn")  # nothing leaves, so nobody asks the ledger
    before = {p: p.read_bytes() for p in device.folder.rglob("*") if p.is_file()}

    _open(bundle, tmp_path / "model", device.folder).predict(_speech())

    assert {p: p.read_bytes() for p in device.folder.rglob("*") if p.is_file()} == before


def test_a_damaged_head_is_not_replaced_unasked(ears: Ears, tmp_path: Path) -> None:
    bundle = _bundle()
    device = _joined(tmp_path / "device", bundle)
    (device.folder / "vault" / "head.sealed").write_bytes(b"damaged")

    with pytest.raises(PrivacyError):
        _open(bundle, tmp_path / "model", device.folder)


def test_a_folder_without_a_device_is_refused(ears: Ears, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no device"):
        _open(_bundle(), tmp_path / "model", tmp_path)


def test_a_fitted_head_is_the_one_applied(ears: Ears, tmp_path: Path) -> None:
    bundle = _bundle()
    device = _joined(tmp_path / "device", bundle)
    calibrator = HeadCalibrator(
        FileVault.open(device.folder / "vault"), model_hash=bundle.model_hash, prior=bundle.prior
    )
    fitted = calibrator.fit_head(torch.tensor([[9.0, 0.0, 0.0]] * 20), torch.full((20,), 2))

    person = load_personalisation(bundle, device.folder)

    assert torch.equal(person.head.bias, fitted.bias)
    assert int(person.head.bias.argmax()) == 2


def test_an_adapter_bends_what_is_predicted(ears: Ears, tmp_path: Path) -> None:
    bundle = replace(_bundle(), prior=replace(_bundle().prior, basis=_basis()))
    device = _joined(tmp_path / "device", bundle, labelled=12)

    own = _open(bundle, tmp_path / "model", device.folder)
    head = own.personalisation.head
    straight = replace(own.personalisation, head=replace(head, adapter=None))

    assert head.adapter is not None
    assert bool(head.adapter.weights.any())
    said = [
        Recogniser(bundle, person).predict(_speech()) for person in (own.personalisation, straight)
    ]
    assert own.predict(_speech()).probabilities == said[0].probabilities
    assert said[0].probabilities != said[1].probabilities


# --- bundles ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"labels": LABELS[:2]},
        {"labels": ("angry", "angry", "sad")},
        {"centre": torch.zeros(INPUTS + 1)},
        {"centre": torch.full((INPUTS,), float("nan"))},
        {"speaker_statistics": default_statistics(INPUTS + 1)},
        {"prior": HeadPrior(mean=calibration.identity_head(2))},
        {"prior": replace(_bundle().prior, basis=_basis(INPUTS + 1))},
        {"model_hash": "f" * 63},
        {
            "projection": PublicProjection(
                mean=torch.zeros(FEATURES), matrix=torch.zeros(FEATURES, INPUTS + 1)
            )
        },
    ],
)
def test_a_bundle_of_parts_that_do_not_fit_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="do not fit"):
        replace(_bundle(), **change)


def test_a_bundle_keeps_where_neutral_speech_lies(ears: Ears, tmp_path: Path) -> None:
    bundle = replace(_bundle(), neutral_direction=torch.eye(INPUTS)[1])
    bundle.save(tmp_path)

    assert bundle.neutral_direction is not None
    loaded = ModelPackage.load(tmp_path).neutral_direction
    assert loaded is not None
    assert torch.equal(loaded, bundle.neutral_direction)
    _bundle().save(tmp_path)
    assert ModelPackage.load(tmp_path).neutral_direction is None
    with pytest.raises(ModelError, match="direction of neutral speech"):
        replace(bundle, neutral_direction=torch.ones(INPUTS))


def test_every_flipped_byte_of_the_numbers_is_found(ears: Ears, tmp_path: Path) -> None:
    _bundle().save(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for index in range(0, len(whole), max(1, len(whole) // 40)):
        spoilt = bytearray(whole)
        spoilt[index] ^= 1
        path.write_bytes(spoilt)
        with pytest.raises(ModelError, match=r"copy the model folder again"):
            ModelPackage.load(tmp_path)


def test_weights_of_another_length_are_found(ears: Ears, tmp_path: Path) -> None:
    replace(_bundle(), weights=torch.zeros(3)).save(tmp_path)
    with pytest.raises(ModelError, match="usable model"):
        Recogniser.open(tmp_path)


# --- learning from what is heard --------------------------------------------------------------


def test_what_is_learned_is_taken_off_and_what_is_forgotten_is_not(
    ears: Ears, tmp_path: Path
) -> None:
    bundle = _bundle()
    device = _joined(tmp_path / "device", bundle, enrolled=0)
    own = _open(bundle, tmp_path / "model", device.folder)
    assert not own.predict(_speech()).uses_own_normaliser
    fresh = own.personalisation.mean

    name = own.learn_voice(_speech())

    assert own.predict(_speech()).uses_own_normaliser
    assert not torch.equal(own.personalisation.mean, fresh)
    again = Recogniser.open(tmp_path / "model", device.folder)
    assert torch.equal(again.personalisation.mean, own.personalisation.mean), "it lies in the vault"
    own.forget_recording(name)
    assert torch.equal(own.personalisation.mean, fresh)
    assert not own.predict(_speech()).uses_own_normaliser


def test_forgetting_falls_back_to_the_enrolled_mean(ears: Ears, tmp_path: Path) -> None:
    bundle = _bundle()
    device = _joined(tmp_path / "device", bundle)
    own = _open(bundle, tmp_path / "model", device.folder)
    enrolled = own.personalisation.mean

    own.forget_recording(own.learn_voice(_speech()))

    assert torch.equal(own.personalisation.mean, enrolled)


def test_a_head_that_knows_what_was_forgotten_is_fitted_again(
    ears: Ears, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dies(*_: object) -> None:
        raise Killed

    bundle = _bundle()
    device = _joined(tmp_path / "device", bundle)
    own = _open(bundle, tmp_path / "model", device.folder)
    own.label_recording(_speech(), "angry")
    before = own.predict(_speech()).probabilities
    ears.features = torch.linspace(2, -1, FEATURES)
    name = own.label_recording(_speech(), "sad")
    ears.features = torch.ones(FEATURES)
    with monkeypatch.context() as patch:
        patch.setattr(calibration, "select_usable", dies)
        with pytest.raises(Killed):
            own.forget_recording(name)
    assert own.predict(_speech()).probabilities != before, "the test can fail"

    again = Recogniser.open(tmp_path / "model", device.folder)

    assert again.predict(_speech()).probabilities == before
    with pytest.raises(SettingError, match="keeps no recording"):
        again.forget_recording(name)
    assert again.predict(_speech()).probabilities == before


def test_a_recording_of_another_model_is_forgotten_by_its_name(ears: Ears, tmp_path: Path) -> None:
    bundle, folder = _bundle(), _device(tmp_path / "device").folder
    other = replace(bundle, extractor="nose", model_hash="f" * 64)
    own = _open(bundle, tmp_path / "model", folder)
    name = own.label_recording(_speech(), "sad")
    assert own.learn_voice(_speech()) == name

    nose = _open(other, tmp_path / "nose", folder)
    nose.forget_recording(name)

    assert (feedback.list_recordings(folder), speaker_adapter.list_utterances(folder)) == ((), ())
    with pytest.raises(SettingError, match=f"keeps no recording '{name}'"):
        nose.forget_recording(name)


@pytest.mark.parametrize(
    ("signal", "words"),
    [(Signal(torch.zeros(1, RATE), RATE), "silent"), (_speech(seconds=0.1), "too short")],
)
def test_nothing_is_learned_from_what_cannot_be_heard(
    ears: Ears, tmp_path: Path, signal: Signal, words: str
) -> None:
    bundle = _bundle()
    own = _open(bundle, tmp_path / "model", _joined(tmp_path / "device", bundle).folder)

    with pytest.raises(AudioError, match=words):
        own.learn_voice(signal)
    broken = _speech()
    broken.samples[0, 7] = float("nan")
    with pytest.raises(AudioError, match="NaN"):
        own.learn_voice(broken)
    assert not ears.heard


def test_without_a_device_nothing_is_learned(ears: Ears) -> None:
    anybody = Recogniser(_bundle())
    with pytest.raises(SettingError, match="no device"):
        anybody.learn_voice(_speech())
    with pytest.raises(SettingError, match="no device"):
        anybody.forget_recording("abc")
