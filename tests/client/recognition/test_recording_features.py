"""Contract of the way to features: speech is looked for once, and what is shared changes no bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sottovoce.client.recognition.recording_features import FeatureReader
from sottovoce.shared.audio import Signal, speech_detector, voice_activity
from sottovoce.shared.features import registry
from sottovoce.simulations.corpora import open_corpus

FUSION = "descriptors+whisper-tiny-en"


class CountingDetector:
    """The detector, and how many chunks it has judged."""

    def __init__(self) -> None:
        self._detector = speech_detector.load_detector()
        self.chunks = 0

    def run(self, *arguments: Any) -> Any:
        self.chunks += 1
        return self._detector.run(*arguments)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> CountingDetector:
    counting = CountingDetector()
    monkeypatch.setattr(speech_detector, "load_detector", lambda: counting)
    return counting


@pytest.fixture(scope="module")
def voice() -> Signal:
    return open_corpus("synthetic", "speakers=1,clips=1,seed=99").clips[0].load_signal()


@pytest.mark.parametrize(
    "read",
    [
        lambda signal: FeatureReader(FUSION).read_features(signal).features,
        lambda signal: FeatureReader(FUSION).require_features(signal),
        registry.create_extractor(FUSION),
    ],
    ids=["prediction", "learning", "extraction"],
)
def test_speech_is_looked_for_once_and_every_bit_is_the_same(
    voice: Signal, detector: CountingDetector, read: Callable[[Signal], torch.Tensor]
) -> None:
    voice_activity.detect_speech(voice)
    once, detector.chunks = detector.chunks, 0

    features = read(voice)

    assert detector.chunks == once > 0
    parts = [registry.create_extractor(name)(voice) for name in FUSION.split("+")]
    assert torch.equal(features, torch.cat(parts))


@pytest.mark.parametrize("peak", [0.05, 1.0])
def test_a_voice_that_is_heard_as_it_is_is_looked_for_once(
    voice: Signal, detector: CountingDetector, peak: float
) -> None:
    recording = Signal(peak * voice.samples / voice.samples.abs().max(), voice.rate)
    voice_activity.detect_speech(recording)
    once, detector.chunks = detector.chunks, 0

    found = FeatureReader("descriptors").read_features(recording).features

    assert detector.chunks == once > 0
    assert found is not None
    assert torch.equal(found, registry.create_extractor("descriptors")(recording))


def test_speech_is_looked_for_louder_before_a_recording_is_refused(
    voice: Signal, detector: CountingDetector
) -> None:
    faint = Signal(0.0015 * voice.samples / voice.samples.abs().max(), voice.rate)
    assert not voice_activity.detect_speech(faint).has_speech

    assert FeatureReader("descriptors").read_features(faint).features is not None


def test_what_was_found_belongs_to_one_signal(voice: Signal, detector: CountingDetector) -> None:
    shared = voice_activity.share_detection(voice)
    first = voice_activity.detect_speech(shared)
    detector.chunks = 0

    assert voice_activity.detect_speech(shared) is first
    assert voice_activity.share_detection(shared) is shared
    assert not detector.chunks
    assert voice_activity.detect_speech(shared.cut(0, 0.5)).samples == 8_000
    assert detector.chunks
