"""Gaps between groups: a planted one is found, chance is not, and figures are those of others."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame

from sottovoce.shared.errors import SettingError
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.evaluation.fairness import attributes, comparison, speaker_spread
from sottovoce.simulations.evaluation.fairness.comparison import GroupComparison, GroupedClips
from sottovoce.simulations.evaluation.fairness.speaker_groups import SpeakerGroups
from sottovoce.simulations.evaluation.metrics import FloatArray
from sottovoce.simulations.evaluation.predictions import Predictions
from sottovoce.simulations.results.prediction_table import make_pseudonym, read_predictions
from sottovoce.simulations.runs import run_folder

SPEAKERS, CLIPS, CLASSES = 40, 24, 4
NEUTRAL = 0
DRAWS = 999


def made_clips(seed: int = 0, **more: Sequence[str]) -> tuple[GroupedClips, FloatArray]:
    """Clips of speakers who are recognised unequally well, groups that mean nothing."""
    rng = np.random.default_rng(seed)
    speakers = np.repeat(np.arange(SPEAKERS), CLIPS)
    labels = np.tile(np.arange(CLIPS) % CLASSES, SPEAKERS)
    ease = rng.normal(1.5, 0.5, SPEAKERS)[speakers]
    logits = rng.normal(0, 1, (len(labels), CLASSES)) + ease[:, None] * np.eye(CLASSES)[labels]
    sure = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # Two attributes that nothing depends on: one of 2 groups, one of 3.
    shuffled = [rng.permutation(SPEAKERS) % count for count in (2, 3)]
    found: Mapping[str, Sequence[str]] = {
        "gender": [("female", "male")[group] for group in shuffled[0][speakers]],
        "race": [("A", "B", "C")[group] for group in shuffled[1][speakers]],
        **more,
    }
    names = [f"s{speaker}" for speaker in speakers]
    return GroupedClips(speakers=names, labels=labels, attributes=found), sure


def flattened(clips: GroupedClips, sure: FloatArray, *, group: str, share: float) -> FloatArray:
    """The predictions if a gender speaks with less expression: some clips sound neutral."""
    rng = np.random.default_rng(1)
    own = np.array(clips.attributes["gender"]) == group
    flat = own & (rng.random(len(own)) < share)
    return np.where(flat[:, None], 0.3 * sure + 0.7 * np.eye(CLASSES)[NEUTRAL], sure)


def compared(
    clips: GroupedClips, sure: FloatArray, less: FloatArray | None = None, draws: int = DRAWS
) -> dict[str, dict[str, GroupComparison]]:
    return comparison.compare_attributes(clips, sure, less=less, draws=draws)


def significant(found: Mapping[str, Mapping[str, GroupComparison]]) -> set[tuple[str, str]]:
    """Attributes and measures whose gap is significant after correction."""
    return {
        (attribute, name)
        for attribute, measures in found.items()
        for name, one in measures.items()
        if one.gap.corrected < 0.05
    }


def test_a_group_made_less_expressive_is_found() -> None:
    clips, sure = made_clips()
    planted = flattened(clips, sure, group="male", share=0.3)

    found = compared(clips, planted)["gender"]["uar"].gap

    assert ("gender", "uar") not in significant(compared(clips, sure))
    assert ("gender", "uar") in significant(compared(clips, planted))
    assert {attribute for attribute, _ in significant(compared(clips, planted))} == {"gender"}
    assert (found.highest, found.lowest) == ("female", "male")
    assert 0.05 < found.interval.low < found.interval.estimate < found.interval.high


def test_what_privacy_takes_from_one_group_alone_is_found() -> None:
    clips, sure = made_clips()
    private = flattened(clips, sure, group="female", share=0.3)

    change = compared(clips, private, less=sure)["gender"]["uar"]

    assert ("gender", "uar") in significant(compared(clips, private, less=sure))
    # What nobody loses has no gap.
    assert change.groups["male"] == comparison.ConfidenceInterval(estimate=0, low=0, high=0)
    assert change.gap.lowest == "female"
    assert change.gap.interval.high > change.gap.interval.low > 0
    gaps = [compared(clips, one)["gender"]["uar"].groups for one in (private, sure)]
    widened = [one["male"].estimate - one["female"].estimate for one in gaps]
    assert change.gap.interval.estimate == pytest.approx(widened[0] - widened[1])
    assert significant(compared(clips, sure, less=sure)) == set()


def test_groups_that_mean_nothing_are_called_significant_as_rarely_as_promised() -> None:
    """After correction, once in twenty runs at most; before, once in twenty tests."""
    runs = [compared(*made_clips(seed), draws=199) for seed in range(60)]

    p_values = [one.gap.p_value for run in runs for by in run.values() for one in by.values()]

    assert sum(bool(significant(run)) for run in runs) <= 8  # 3 expected; P(> 8) is .3 %
    assert 0.01 < np.mean(np.array(p_values) < 0.05) < 0.1
    assert 0.4 < np.mean(p_values) < 0.6


def test_intensities_are_compared_within_speakers() -> None:
    """Speakers differ more than the intensities: only pairs can tell."""
    strong = np.tile(np.arange(CLIPS) < CLIPS // 2, SPEAKERS)
    clips, sure = made_clips(intensity=["strong" if one else "normal" for one in strong])
    rng = np.random.default_rng(2)
    flat = ~strong & (rng.random(len(strong)) < 0.3)
    weaker = np.where(flat[:, None], np.eye(CLASSES)[NEUTRAL], sure)

    assert ("intensity", "uar") in significant(compared(clips, weaker))
    assert ("intensity", "uar") not in significant(compared(clips, sure))


def test_small_and_unknown_groups_are_left_out_and_so_are_emotions_that_one_lacks() -> None:
    sizes = {"few": 4, "unknown": 8, "one": 14, "other": 14}
    groups = [name for name, size in sizes.items() for _ in range(size * CLIPS)]
    clips, sure = made_clips(race=groups)
    # The third emotion is nobody's of group "one".
    kept = (np.array(groups) != "one") | (clips.labels != 2)
    rows = np.flatnonzero(kept)
    fewer = GroupedClips(
        speakers=[clips.speakers[row] for row in rows],
        labels=clips.labels[rows],
        attributes={"race": [clips.attributes["race"][row] for row in rows]},
    )

    found = compared(fewer, sure[rows])["race"]["uar"]

    assert found.speakers == {"one": 14, "other": 14}
    own = (np.array(clips.attributes["race"]) == "other") & (clips.labels != 2)
    right = sure[own].argmax(axis=1) == clips.labels[own]
    recalls = [right[clips.labels[own] == label].mean() for label in (0, 1, 3)]
    assert found.groups["other"].estimate == pytest.approx(np.mean(recalls))


def test_intervals_lie_around_their_estimates_for_calibration_too() -> None:
    """Drawn with replacement, clips are fewer, and their calibration error is larger."""
    found = compared(*made_clips())["race"]

    for name in ("uar", "ece", "answered"):
        assert all(one.low < one.estimate < one.high for one in found[name].groups.values())
        assert 0 < found[name].gap.by_chance < 0.2
        # The width that one in twenty reach is what a p-value of .05 is about.
        is_wider = found[name].gap.interval.estimate > found[name].gap.by_chance
        assert is_wider == (found[name].gap.p_value < 0.05)


def test_one_group_alone_is_not_compared() -> None:
    clips, sure = made_clips(language=["en"] * SPEAKERS * CLIPS)

    assert "language" not in compared(clips, sure, draws=9)
    with pytest.raises(SettingError, match="two or more"):
        SpeakerGroups(["a", "b"], ["en", "en"])
    with pytest.raises(SettingError, match="1 rows for 2"):
        SpeakerGroups(["a", "b"], ["en"])


def test_figures_by_group_are_those_of_fairlearn() -> None:
    clips, sure = made_clips()
    guess = sure.argmax(axis=1)

    def uar(truth: Sequence[int], predicted: Sequence[int]) -> float:
        pairs = np.array([truth, predicted])
        return float(np.mean([np.mean(pairs[1, pairs[0] == one] == one) for one in range(CLASSES)]))

    for attribute, names in clips.attributes.items():
        frame = MetricFrame(
            metrics=uar, y_true=clips.labels, y_pred=guess, sensitive_features=list(names)
        )
        found = compared(clips, sure, draws=9)[attribute]["uar"]
        ours = {name: one.estimate for name, one in found.groups.items()}
        assert ours == pytest.approx(frame.by_group.to_dict())
        assert found.gap.interval.estimate == pytest.approx(frame.difference("between_groups"))


def test_draws_keep_every_group_and_every_speaker_whole() -> None:
    speakers, groups = ["a", "a", "b", "b", "c"], ["x", "y", "x", "y", "x"]
    found = SpeakerGroups(speakers, groups)
    rng = np.random.default_rng(0)

    drawn = found.draw_speakers(50, rng)
    permuted = found.permute_groups(50, rng)

    # Cells: a-x, a-y, b-x, b-y, c-x. What a speaker has comes along; c is alone of its kind.
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 2] == drawn[:, 3]).all()
    assert (drawn.sum(axis=1) == 5).all()
    assert (drawn[:, 4] == 1).all()
    assert len({tuple(row) for row in drawn.tolist()}) == 3
    assert {tuple(sorted(row[:2])) for row in permuted.tolist()} == {(0, 1)}
    assert {row[4] for row in permuted.tolist()} == {0}
    assert len({tuple(row) for row in permuted.tolist()}) == 4


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_what_is_no_p_value_is_not_corrected(value: float) -> None:
    with pytest.raises(SettingError, match="from 0 to 1"):
        comparison.correct_p_values([0.5, value])


def test_corrected_values_keep_their_order_and_their_bound() -> None:
    assert comparison.correct_p_values([]) == []
    assert comparison.correct_p_values([0.2, 0.9, 0.01]) == [0.4, 0.9, pytest.approx(0.03)]
    assert comparison.correct_p_values([0.6, 0.6]) == [1, 1]


def test_spread_over_speakers_widens_where_some_lose() -> None:
    clips, sure = made_clips()
    worse = flattened(clips, sure, group="male", share=0.4)

    change = speaker_spread.measure_spread(clips.speakers, clips.labels, worse, less=sure)
    same = speaker_spread.measure_spread(clips.speakers, clips.labels, sure, less=sure)

    assert change["gini"].low > 0 > change["p10"].estimate
    assert {(one.low, one.high) for one in same.values()} == {(0, 0)}


def corpus_clip(name: str, speaker: str = "s", **more: str) -> Clip:
    return Clip(
        clip_id=name,
        speaker=speaker,
        emotion="sad",
        label="sad",
        path=Path(name),
        gender="female",
        age=31,
        intensity="unspecified",
        other_columns=tuple(more.items()),
    )


def test_groups_are_found_by_pseudonym_and_only_in_the_runs_own_corpus() -> None:
    clips = [corpus_clip("a.wav", Race="Asian", ethnicity="Unknown"), corpus_clip("b.wav")]
    kept = Predictions(
        emotions=["sad"],
        clips=[make_pseudonym("run", name) for name in ("b.wav", "a.wav")],
        speakers=["s", "s"],
        folds=["1", "1"],
        labels=np.zeros(2, dtype=np.int64),
        before=np.ones((2, 1)),
        after=np.ones((2, 1)),
    )

    found = attributes.match_groups(kept, clips, run="run")

    assert found == {
        "gender": ("female", "female"),
        "age": ("30-44", "30-44"),
        "race": ("unknown", "Asian"),
        "ethnicity": ("unknown", "unknown"),
        "language": ("unknown", "unknown"),
        "intensity": ("unknown", "unknown"),
    }
    others = [corpus_clip("a.wav", "t"), clips[1]]
    for corpus, run, missing in ((clips, "other", 2), (clips[:1], "run", 1), (others, "run", 1)):
        with pytest.raises(SettingError, match=f"{missing} of 2 predictions"):
            attributes.match_groups(kept, corpus, run=run)


def test_a_finished_runs_predictions_find_their_groups(tiny_run: Any) -> None:
    facts = json.loads((tiny_run.folder / "run.json").read_text())["predictions"]
    predictions, _ = read_predictions(tiny_run.folder, facts)
    corpus = open_corpus("folder", tiny_run.users)
    genders = {clip.speaker: clip.gender for clip in corpus.clips}

    found = attributes.match_groups(
        predictions, corpus.clips, run=run_folder.read_run_name(tiny_run.folder)
    )

    assert list(found["gender"]) == [genders[name] or "unknown" for name in predictions.speakers]
    with pytest.raises(SettingError, match="give the folder of a run"):
        run_folder.read_run_name(tiny_run.users)
