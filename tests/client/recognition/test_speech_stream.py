"""Streams of sound: windows, smoothing, what is left out, and sound of any rate."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import soxr

from sottovoce import OnnxRecogniser
from sottovoce.client.recognition.prediction import Abstention, Prediction
from sottovoce.client.recognition.speech_stream import SpeechStream, StreamResult, StreamSettings
from sottovoce.shared.audio import Signal
from sottovoce.shared.audio.voice_activity import detect_speech
from sottovoce.shared.errors import AudioError, SettingError
from sottovoce.simulations.corpora import open_corpus

RATE, CHUNK = 16_000, 512
STRIDE = 16 * CHUNK  # half a second, rounded to chunks


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """Six seconds: a voice, a pause, a voice."""
    clips = open_corpus("synthetic", "speakers=1,clips=2,seed=99").clips
    voices = [clip.load_signal().waveform for clip in clips]
    pause = np.zeros(5 * RATE // 2, dtype=np.float32)
    return np.concatenate([voices[0], pause, voices[1], pause])[: 6 * RATE]


def say(**chances: float) -> Prediction:
    """An answer with these chances; an abstention where none of them is above one half."""
    best = max(chances, key=lambda name: chances[name])
    sure = chances[best] > 0.5
    return Prediction(
        emotion=best if sure else None,
        probabilities=chances,
        confidence=chances[best],
        abstained=not sure,
        reason="" if sure else "not sure enough",
        abstention=None if sure else Abstention.UNSURE,
        quality=(),
        next_step="",
        model_hash="0" * 64,
        uses_own_normaliser=False,
        uses_own_head=False,
    )


QUIET = replace(
    say(sad=0.4, angry=0.4, happy=0.2),
    probabilities={},
    confidence=0.0,
    abstention=Abstention.NO_SPEECH,
)


def read_from(answers: Sequence[Prediction], settings: StreamSettings) -> list[StreamResult]:
    """Results of a stream whose windows are answered so, one after the other."""
    left = iter(answers)
    stream = SpeechStream(lambda _: next(left), RATE, settings)
    return stream.push(np.zeros(len(answers) * STRIDE, dtype=np.float32))


def test_windows_end_a_stride_apart_and_hold_what_was_said(sound: np.ndarray) -> None:
    heard: list[Signal] = []

    def predict(signal: Signal) -> Prediction:
        heard.append(signal)
        return QUIET

    results = SpeechStream(predict, RATE).push(sound)

    assert [one.end_s for one in results] == [STRIDE * (n + 1) / RATE for n in range(len(results))]
    assert {round(b.end_s - a.end_s, 6) for a, b in pairwise(results)} == {STRIDE / RATE}
    for result, signal in zip(results, heard, strict=True):
        first, last = round(result.start_s * RATE), round(result.end_s * RATE)
        assert np.array_equal(signal.waveform, sound[first:last])
        assert last - first == min(last, 62 * CHUNK)  # 2 s, rounded to chunks


def test_pieces_of_any_length_give_the_same(sound: np.ndarray) -> None:
    recogniser = OnnxRecogniser.open()
    whole = list(recogniser.stream([sound], RATE))
    cuts = np.cumsum(np.random.default_rng(0).integers(1, 3_000, size=200))
    pieces = np.split(sound, cuts[cuts < len(sound)])

    assert [one.to_dict() for one in recogniser.stream(pieces, RATE)] == [
        one.to_dict() for one in whole
    ]


def test_an_answer_is_that_of_the_window_alone(sound: np.ndarray) -> None:
    """The detector heard what came before, which may move the edges of speech a little."""
    recogniser = OnnxRecogniser.open()
    results = [one for one in recogniser.stream([sound], RATE) if one.prediction.probabilities]

    assert results
    for one in results:
        alone = recogniser.predict(one.signal)
        if alone.probabilities:
            apart = [
                abs(one.prediction.probabilities[k] - p) for k, p in alone.probabilities.items()
            ]
            assert max(apart) < 0.15


def test_nothing_is_named_while_nobody_speaks(sound: np.ndarray) -> None:
    results = list(OnnxRecogniser.open().stream([sound], RATE))
    silent = [one for one in results if not detect_speech(one.signal).has_speech]

    assert silent
    assert all(one.emotion is None and not one.probabilities for one in silent)


def test_sound_of_another_rate_is_heard_alike(sound: np.ndarray) -> None:
    recogniser = OnnxRecogniser.open()
    usual = list(recogniser.stream([sound], RATE))
    higher = soxr.resample(sound, RATE, 44_100)
    pieces = np.array_split(higher, 50)
    other = list(recogniser.stream(pieces, 44_100.0))

    assert abs(len(other) - len(usual)) <= 1
    for one, two in zip(usual, other, strict=False):
        assert one.end_s == pytest.approx(two.end_s, abs=0.04)
        assert (one.prediction.abstention is Abstention.NO_SPEECH) == (
            two.prediction.abstention is Abstention.NO_SPEECH
        )


def test_whole_numbers_are_taken_as_recorded(sound: np.ndarray) -> None:
    whole = np.round(sound * 32_767).astype(np.int16)
    heard: list[Signal] = []

    def predict(signal: Signal) -> Prediction:
        heard.append(signal)
        return QUIET

    SpeechStream(predict, RATE).push(whole)
    assert float(np.abs(heard[0].waveform - sound[: len(heard[0].waveform)]).max()) < 1e-4


def test_what_is_left_at_the_end_is_looked_at() -> None:
    stream = SpeechStream(lambda _: QUIET, RATE)
    pushed = stream.push(np.zeros(STRIDE + 700, dtype=np.float32))

    assert [one.end_s for one in pushed] == [STRIDE / RATE]
    assert [one.end_s for one in stream.close()] == [(STRIDE + 2 * CHUNK) / RATE]
    exact = SpeechStream(lambda _: QUIET, RATE)
    exact.push(np.zeros(STRIDE, dtype=np.float32))
    assert exact.close() == []


def test_memory_does_not_grow_with_the_stream() -> None:
    held: list[int] = []

    def predict(signal: Signal) -> Prediction:
        held.append(0 if signal.waveform.base is None else signal.waveform.base.nbytes)
        return QUIET

    stream = SpeechStream(predict, RATE)
    for _ in range(300):
        stream.push(np.zeros(1_000, dtype=np.float32))
    assert max(held) <= 62 * CHUNK * 4


def test_old_windows_are_left_out_and_counted_where_sound_comes_too_fast() -> None:
    answered: list[float] = []

    def predict(signal: Signal) -> Prediction:
        answered.append(signal.duration_s)
        return QUIET

    stream = SpeechStream(predict, RATE, StreamSettings(max_pending=2))
    results = stream.push(np.zeros(10 * STRIDE, dtype=np.float32))

    assert len(answered) == 2
    assert [one.dropped for one in results] == [8, 0]
    assert [one.end_s for one in results] == [9 * STRIDE / RATE, 10 * STRIDE / RATE]
    (after,) = stream.push(np.zeros(STRIDE, dtype=np.float32))
    assert (after.dropped, after.end_s) == (0, 11 * STRIDE / RATE)


def test_one_odd_window_does_not_change_what_is_shown() -> None:
    angry, sad = say(angry=0.8, sad=0.2), say(angry=0.35, sad=0.65)

    shown = [one.emotion for one in read_from([angry, angry, sad, angry], StreamSettings())]
    assert shown == ["angry"] * 4
    plain = StreamSettings(smoothing=0, switch_margin=0)
    assert [one.emotion for one in read_from([angry, sad], plain)] == ["angry", "sad"]


def test_another_emotion_is_shown_once_it_is_clearly_likelier() -> None:
    angry, sad = say(angry=0.8, sad=0.2), say(angry=0.1, sad=0.9)
    results = read_from([angry, *[sad] * 4], StreamSettings(smoothing=0.6, switch_margin=0.1))

    assert [one.emotion for one in results] == ["angry", "angry", "sad", "sad", "sad"]
    assert results[1].probabilities["angry"] == pytest.approx(0.6 * 0.8 + 0.4 * 0.1)
    assert sum(results[-1].probabilities.values()) == pytest.approx(1)


def test_nothing_is_carried_over_a_pause() -> None:
    angry, sad = say(angry=0.8, sad=0.2), say(angry=0.1, sad=0.9)
    results = read_from([angry, QUIET, sad], StreamSettings())

    assert [one.emotion for one in results] == ["angry", None, "sad"]
    assert dict(results[2].probabilities) == {"angry": 0.1, "sad": 0.9}


def test_nothing_is_shown_before_an_answer_or_of_unfamiliar_sound() -> None:
    unsure = say(angry=0.45, sad=0.35, happy=0.2)
    unfamiliar = replace(unsure, abstention=Abstention.UNFAMILIAR)
    angry = say(angry=0.9, sad=0.05, happy=0.05)

    shown = [one.emotion for one in read_from([unsure, angry, unfamiliar], StreamSettings())]
    assert shown == [None, "angry", None]


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((2, 100), dtype=np.float32), r"shape \(2, 100\)"),
        (np.zeros(100, dtype=np.int32), "int32"),
        (np.array([0.0, np.nan], dtype=np.float32), "nan"),
        (np.array([np.inf], dtype=np.float32), "inf"),
        (np.array([1e9], dtype=np.float64), "1e\\+09"),
    ],
)
def test_samples_that_are_none_are_refused_and_the_stream_goes_on(
    samples: np.ndarray, words: str
) -> None:
    stream = SpeechStream(lambda _: QUIET, RATE)

    with pytest.raises(AudioError, match=words):
        stream.push(samples)
    assert len(stream.push(np.zeros(STRIDE, dtype=np.float32))) == 1


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: StreamSettings(window_s=0.5), SettingError, "window_s is 0.5"),
        (lambda: StreamSettings(stride_s=3), SettingError, "at most window_s, 2"),
        (lambda: StreamSettings(smoothing=1), SettingError, "smoothing is 1"),
        (lambda: SpeechStream(lambda _: QUIET, 0), AudioError, "rate is 0"),
        (lambda: SpeechStream(lambda _: QUIET, 16_000.5), AudioError, "rate is 16000.5"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(
    make: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make()
