"""Long recordings become timelines of utterances."""

import csv
import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from sottovoce.client.recognition.prediction import Abstention, Prediction
from sottovoce.client.recognition.segmentation import (
    SegmentSettings,
    find_utterances,
    recognise_utterances,
)
from sottovoce.client.recognition.timeline import TIMELINE_FORMATS, Timeline, Utterance
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import SettingError
from sottovoce.simulations.corpora import open_corpus

RATE = 16_000
SAID = Prediction(
    emotion="angry",
    probabilities={"angry": 0.75, "sad": 0.25},
    confidence=0.75,
    abstained=False,
    reason="",
    quality=(),
    next_step="",
    model_hash="0" * 64,
    uses_own_normaliser=False,
    uses_own_head=False,
    prediction_set=("angry",),
    coverage=0.9,
)
UNSURE = replace(
    SAID, emotion=None, abstained=True, reason="not sure", abstention=Abstention.UNSURE
)
UNHEARD = replace(UNSURE, probabilities={}, confidence=0.0, prediction_set=(), coverage=None)


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    return open_corpus("synthetic", "speakers=1,clips=1,seed=99").clips[0].load_signal().waveform


def with_pauses(voice: np.ndarray, *pauses_s: float) -> Signal:
    """The voice behind each pause, and half a second at the end, in a faint room."""
    parts = [part for pause in pauses_s for part in (np.zeros(round(pause * RATE)), voice)]
    sound = np.concatenate([*parts, np.zeros(RATE // 2)])
    room = 1e-4 * np.random.default_rng(0).standard_normal(len(sound))
    return Signal(sound + room, RATE)


def test_each_voice_between_pauses_is_an_utterance(voice: np.ndarray) -> None:
    found = find_utterances(with_pauses(voice, 1.0, 1.5, 0.8))

    assert len(found) == 3
    starts = np.array([1.0, 2.5 + len(voice) / RATE, 3.3 + 2 * len(voice) / RATE])
    # The margin before, and what the detector needs to be sure.
    assert np.all(np.abs(np.array([start for start, _ in found]) - starts) < 0.4)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))


def test_short_pauses_stay_within_an_utterance(voice: np.ndarray) -> None:
    recording = with_pauses(voice, 0.5, 1.0)

    assert len(find_utterances(recording)) == 2
    assert len(find_utterances(recording, SegmentSettings(min_pause_s=2))) == 1


def test_a_quiet_recording_has_the_same_utterances(voice: np.ndarray) -> None:
    loud = with_pauses(voice, 1.0, 1.5)
    quiet = loud.replace_waveform(np.float32(0.003) * loud.waveform)

    assert len(find_utterances(quiet)) == len(find_utterances(loud)) == 2


def test_long_speech_is_split_and_nothing_of_it_is_lost(voice: np.ndarray) -> None:
    recording = Signal(np.tile(voice, 6), RATE)
    whole = find_utterances(recording, SegmentSettings(max_utterance_s=60))
    parts = find_utterances(recording, SegmentSettings(max_utterance_s=2, margin_s=0))

    assert len(parts) > len(whole)
    assert max(end - start for start, end in parts) <= 2.0 + 1e-9
    covered = sum(end - start for start, end in parts)
    assert covered == pytest.approx(sum(end - start for start, end in whole), abs=0.5)


@pytest.mark.parametrize("kind", ["silence", "noise", "tone"])
def test_nobody_speaking_is_an_empty_timeline(kind: str) -> None:
    made = {
        "silence": np.zeros(3 * RATE),
        "noise": 0.1 * np.random.default_rng(1).standard_normal(3 * RATE),
        "tone": 0.3 * np.sin(np.arange(3 * RATE) / 5),
    }
    timeline = recognise_utterances(Signal(made[kind], RATE), lambda _: SAID)

    assert timeline == Timeline(duration_s=3.0, utterances=())
    assert all(timeline.render(name) is not None for name in TIMELINE_FORMATS)


def test_utterances_are_recognised_as_they_were_recorded(voice: np.ndarray) -> None:
    recording = with_pauses(voice, 1.0, 1.5)
    heard: list[Signal] = []
    done: list[tuple[float, float]] = []

    def predict(signal: Signal) -> Prediction:
        heard.append(signal)
        return SAID

    timeline = recognise_utterances(
        recording, predict, on_progress=lambda *seconds: done.append(seconds)
    )

    spans = [(one.start_s, one.end_s) for one in timeline.utterances]
    for (start, end), signal in zip(spans, heard, strict=True):
        first = round(start * RATE)
        cut = recording.waveform[first : first + len(signal.waveform)]
        assert np.array_equal(signal.waveform, cut)
        assert signal.duration_s == pytest.approx(end - start, abs=1e-3)
    assert done == [(end, recording.duration_s) for _, end in spans]


@pytest.fixture
def timeline() -> Timeline:
    predictions = (SAID, UNSURE, UNHEARD)
    return Timeline(
        duration_s=10.0,
        utterances=tuple(
            Utterance(start_s=start, end_s=start + 2, prediction=said)
            for start, said in zip((0.5, 3.0, 5.0), predictions, strict=True)
        ),
    )


def test_json_holds_each_prediction_whole(timeline: Timeline) -> None:
    read = json.loads(timeline.render("json"))

    assert read["duration_s"] == 10.0
    assert read["utterances"][0] == {"start_s": 0.5, "end_s": 2.5} | SAID.to_dict()
    assert [one["abstained"] for one in read["utterances"]] == [False, True, True]


def test_csv_has_a_row_an_utterance(timeline: Timeline) -> None:
    rows = list(csv.DictReader(io.StringIO(timeline.render("csv"))))

    assert [row["emotion"] for row in rows] == ["angry", "", ""]
    assert [row["sad"] for row in rows] == ["0.2500", "0.2500", ""]
    assert [row["start_s"] for row in rows] == ["0.500", "3.000", "5.000"]


def test_an_abstention_is_no_answer_in_a_label_track(timeline: Timeline) -> None:
    rows = [line.split("\t") for line in timeline.render("audacity").splitlines()]

    assert [row[2] for row in rows] == ["angry", "? angry", "?"]
    assert [float(row[0]) for row in rows] == [0.5, 3.0, 5.0]


def test_a_textgrid_fills_its_tiers_without_gaps(timeline: Timeline) -> None:
    lines = [line.strip() for line in timeline.render("textgrid").splitlines()]

    assert lines[0] == 'File type = "ooTextFile"'
    assert lines.count("intervals: size = 6") == 2
    for tier in (0, 1):
        edges = [float(line.split("=")[1]) for line in lines if line.startswith(("xmin", "xmax"))]
        # The file's two, then for each tier its two and two an interval.
        own = edges[2 + tier * 14 :][:14]
        assert own[:2] == [0.0, 10.0]
        assert own[2::2] == [0.0, *own[3:-1:2]]
        assert own[-1] == 10.0


def test_quotation_marks_in_labels_are_doubled_for_praat() -> None:
    odd = replace(
        SAID, emotion='"so so"', probabilities={'"so so"': 1.0}, prediction_set=('"so so"',)
    )
    timeline = Timeline(duration_s=1.0, utterances=(Utterance(start_s=0, end_s=1, prediction=odd),))

    assert 'text = """so so"""' in timeline.render("textgrid")


def test_what_cannot_be_is_refused_by_name(timeline: Timeline) -> None:
    with pytest.raises(SettingError, match="'srt'; it must be one of json, csv"):
        timeline.render("srt")
    with pytest.raises(SettingError, match="min_speech_s is 0"):
        SegmentSettings(min_speech_s=0)
    with pytest.raises(SettingError, match="from 2 to 1 s"):
        Utterance(start_s=2, end_s=1, prediction=SAID)
