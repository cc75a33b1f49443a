import pickle
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from sottovoce.shared.errors import SettingError
from sottovoce.simulations.corpora import Clip, Corpus, open_corpus
from sottovoce.simulations.corpora.synthetic.speakers import FORMS
from sottovoce.simulations.corpora.synthetic.synthetic_corpus import (
    EMOTIONS,
    SyntheticOptions,
    parse_options,
)


def samples(clip: Clip) -> np.ndarray:
    return clip.load_signal().samples[0].numpy()


def pitch(signal: np.ndarray) -> float:
    """Median pitch of the loud frames in Hz, by autocorrelation."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, 640)[::320]
    loud = frames[frames.std(1) > 0.5 * frames.std(1).max()]
    spectra = np.abs(np.fft.rfft(loud * np.hanning(640), 2048)) ** 2
    lags = np.fft.irfft(spectra)[:, 32:230]
    return float(np.median(16_000 / (32 + lags.argmax(1))))


def test_the_defaults_make_a_demo() -> None:
    corpus = open_corpus("synthetic")

    assert (len(corpus.clips), len(corpus.speakers)) == (720, 24)
    assert corpus.emotions == EMOTIONS
    assert len({(clip.speaker, clip.emotion) for clip in corpus.clips}) == 24 * 6
    genders = Counter(clip.gender for clip in corpus.clips)
    assert genders == {"female": 360, "male": 360}
    assert len({clip.language for clip in corpus.clips}) == 3


def test_options_are_read() -> None:
    assert parse_options("") == SyntheticOptions()
    assert parse_options(" speakers=3, clips=4 ,seed=11") == SyntheticOptions(
        speakers=3, clips=4, seed=11
    )


def test_other_forms_change_how_emotions_sound_and_nothing_else() -> None:
    usual, other = (
        open_corpus("synthetic", f"speakers=2,clips=12,forms={forms}") for forms in FORMS
    )

    assert [clip.clip_id for clip in usual.clips] == [clip.clip_id for clip in other.clips]
    for one, two in zip(usual.clips, other.clips, strict=True):
        assert (one.content_key() == two.content_key()) == (one.voice == two.voice) is False
        assert np.array_equal(samples(one), samples(two)) == (one.emotion == "neutral")

    # Despair is higher than sadness, cold anger lower than hot.
    def pitches(corpus: Corpus, emotion: str) -> float:
        return np.mean([pitch(samples(clip)) for clip in corpus.clips if clip.emotion == emotion])

    assert pitches(other, "sad") > pitches(usual, "sad")
    assert pitches(other, "angry") < pitches(usual, "angry")


@pytest.mark.parametrize(
    "text",
    [
        "speakers",
        "speakers=two",
        "forms=hot",
        "forms=",
        "voices=3",
        "speakers=0",
        "clips=-1",
        "data/folder",
    ],
)
def test_options_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(SettingError):
        parse_options(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speakers=1000000000", "speakers is 1000000000; it must be a whole number from 1"),
        ("speakers=100000,clips=100000", "10,000,000,000 clips; they must be at most 100,000"),
        ("speakers=" + "9" * 5000, "at most 19 digits"),
        ("speakers=\u00b2", "at most 19 digits"),
        ("speakers=10^9", "at most 19 digits"),
        ("seed=9999999999999999999", "seed is 9999999999999999999"),
        ("speakres=3", "did you mean speakers"),
        ("clips=3,clips=4", "clips stands there twice"),
    ],
    ids=lambda text: text[:20],
)
def test_too_large_a_corpus_is_refused_before_any_of_it_is_made(text: str, words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)) as caught:
        open_corpus("synthetic", text)
    assert len(str(caught.value)) < 300


def test_a_clip_is_the_same_whenever_and_wherever_it_is_made() -> None:
    small = open_corpus("synthetic", "speakers=2,clips=7,seed=3").clips[-1]
    large = open_corpus("synthetic", "speakers=30,clips=7,seed=3").clips[13]

    assert small == large
    copied = pickle.loads(pickle.dumps(large))  # noqa: S301
    assert torch.equal(small.load_signal().samples, copied.load_signal().samples)
    assert small.content_key() == large.content_key()


def test_seed_speaker_utterance_and_emotion_each_make_another_clip() -> None:
    spec = open_corpus("synthetic").clips[0].voice
    others = [replace(spec, **{name: 9}) for name in ("seed", "speaker", "utterance")]
    others.append(replace(spec, emotion="angry"))

    keys = {voice.content_key() for voice in (spec, *others)}
    sounds = {voice.render().samples.numpy().tobytes() for voice in (spec, *others)}

    assert len(keys) == len(sounds) == 5


def test_a_clip_is_speech_like_sound_of_one_to_three_seconds() -> None:
    for clip in open_corpus("synthetic", "speakers=5,clips=12,seed=1").clips:
        signal = clip.load_signal()
        assert signal.samples.dtype == torch.float32
        assert 0.6 < signal.duration_s < 4
        assert 0.01 < float(signal.samples.abs().max()) <= 0.98


def test_women_speak_higher_than_men() -> None:
    clips = open_corpus("synthetic", "speakers=12,clips=1").clips
    women, men = (
        np.median([pitch(samples(c)) for c in clips if c.gender == gender])
        for gender in ("female", "male")
    )

    assert 150 < women < 280
    assert 80 < men < 150


def test_emotions_move_the_voice_as_the_reviews_say() -> None:
    clips = open_corpus("synthetic", "speakers=12,clips=12,seed=2").clips
    sounds = {clip.clip_id: samples(clip) for clip in clips}

    def mean(emotion: str, measure: Callable[[np.ndarray], float]) -> float:
        return float(np.mean([measure(sounds[c.clip_id]) for c in clips if c.emotion == emotion]))

    assert mean("fearful", pitch) > mean("neutral", pitch) > mean("sad", pitch)
    assert mean("angry", np.std) > 1.5 * mean("neutral", np.std) > 1.5 * mean("sad", np.std)
    assert mean("sad", len) > mean("neutral", len) > mean("fearful", len)


def statistics(signal: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of a coarse log spectrum."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, 512)[::160]
    power = np.abs(np.fft.rfft(frames * np.hanning(512)))[:, 1:65] ** 2
    logs = np.log(power + 1e-9)
    return np.concatenate([logs.mean(0), logs.std(0)])


def recall(features: np.ndarray, labels: np.ndarray, speakers: np.ndarray) -> float:
    """Recall of ridge regression on unseen speakers, each scaled by their own statistics."""
    for speaker in np.unique(speakers):
        own = speakers == speaker
        features[own] = (features[own] - features[own].mean(0)) / features[own].std(0)
    test = speakers % 3 == 0
    train, targets = features[~test], np.eye(6)[labels[~test]]
    weights = np.linalg.solve(train.T @ train + 50 * np.eye(train.shape[1]), train.T @ targets)
    hit = (features[test] @ weights).argmax(1) == labels[test]
    return float(np.mean([hit[labels[test] == k].mean() for k in range(6)]))


def test_emotions_can_be_told_but_not_without_error() -> None:
    clips = open_corpus("synthetic", "speakers=15,clips=18,seed=5").clips
    features = np.stack([statistics(samples(clip)) for clip in clips])
    labels = np.array([EMOTIONS.index(clip.emotion) for clip in clips])
    speakers = np.array([int(clip.speaker[-4:]) for clip in clips])
    shuffled = np.random.default_rng(0).permutation(labels)

    assert 0.5 < recall(features.copy(), labels, speakers) < 0.95
    assert recall(features.copy(), shuffled, speakers) < 0.3


def test_a_clip_is_made_in_no_time() -> None:
    clips = open_corpus("synthetic", "speakers=20,clips=1").clips
    times = []
    for clip in clips:
        start = time.process_time()
        seconds = clip.load_signal().duration_s
        times.append((time.process_time() - start) * 1.5 / seconds)

    assert min(times) < 0.1


def test_populations_of_thousands_are_cheap_to_describe() -> None:
    start = time.process_time()
    corpus = open_corpus("synthetic", "speakers=2000,clips=5")

    assert len(corpus.speakers) == 2_000
    assert time.process_time() - start < 20
