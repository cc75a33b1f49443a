"""Heads fitted anew from a run are those of its devices; figures say who gains and who loses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sottovoce.shared import calibration, seeding
from sottovoce.shared.calibration import CalibrationHead, HeadPrior, conformal
from sottovoce.simulations.evaluation import metrics, personalisation, personalisation_metrics
from sottovoce.simulations.evaluation.personalisation import SpeakerData

CLASSES, CLIPS = 3, 60
BOAST = 2.0


def user(number: int, *, boast: float = BOAST, prior: HeadPrior | None = None) -> SpeakerData:
    """A speaker for whom the model is surer than right."""
    rng = seeding.torch_rng(0, "user", number)
    true = torch.randn(CLIPS, CLASSES, generator=rng, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(2 * true, 1), 1, generator=rng).squeeze(1)
    return SpeakerData(
        name=f"s{number}",
        gender="female" if number % 2 else "male",
        fold=f"fold{number % 3}",
        logits=2 * boast * true,
        labels=labels,
        prior=prior or HeadPrior(mean=calibration.identity_head(CLASSES)),
    )


def judged(
    clips: int, people: list[SpeakerData], draws: int = 2
) -> list[personalisation.ScoredDraw]:
    return [
        personalisation.score_draw(one, clips, draw, seed=0)
        for one in people
        for draw in range(draws)
    ]


def test_labelled_clips_are_not_judged_and_every_emotion_keeps_one() -> None:
    one = user(0)
    for clips in (0, 1, 5, 1_000):
        chosen = personalisation.draw_labelled_clips(one, clips, 0, seed=0)
        found = personalisation.score_draw(one, clips, 0, seed=0)

        assert len(chosen) == len(set(chosen)) == min(clips, CLIPS - CLASSES)
        assert len(found.labels) == CLIPS - len(chosen)
        assert set(found.labels) == set(range(CLASSES))
    assert personalisation.draw_labelled_clips(
        one, 5, 0, seed=0
    ) != personalisation.draw_labelled_clips(one, 5, 1, seed=0)


def test_a_person_is_judged_by_the_head_that_a_device_would_fit() -> None:
    one = user(1)
    chosen = personalisation.draw_labelled_clips(one, 5, 0, seed=0)
    fitted = calibration.fit_head_only(one.logits[chosen], one.labels[chosen], one.prior)
    rest = [index for index in range(CLIPS) if index not in chosen]

    found = personalisation.score_draw(one, 5, 0, seed=0)
    expected = torch.softmax(calibration.calibrate_logits(fitted, one.logits[rest]), 1)
    assert np.allclose(found.after, expected)
    assert np.allclose(found.before, torch.softmax(one.logits[rest], 1))


def test_without_labels_a_usual_head_that_changes_nothing_makes_no_difference() -> None:
    found = personalisation_metrics.paired_metrics(
        judged(0, [user(number) for number in range(8)]), seed=0
    )

    for name, values in found.items():
        assert values[0] == values[1], name
        assert not any(values[2:]), name


def test_labels_help_against_a_boastful_model_and_the_interval_says_so() -> None:
    found = personalisation_metrics.paired_metrics(
        judged(10, [user(number) for number in range(20)]), seed=0
    )

    for name in ("ece", "nll", "brier"):
        before, after, difference, low, high = found[name]
        assert after - before == pytest.approx(difference)
        assert low < difference < high < 0, name


def test_a_wrong_head_is_seen_to_hurt() -> None:
    wrong = HeadPrior(
        mean=CalibrationHead(log_temperature=-1.0, bias=torch.tensor([3.0, 0.0, 0.0]))
    )
    found = personalisation_metrics.paired_metrics(
        judged(0, [user(n, boast=1.0, prior=wrong) for n in range(12)]), seed=0
    )

    assert found["nll"][3] > 0
    assert found["uar"][4] < 0
    assert found["p10"][2] < 0


def test_figures_are_those_of_the_measures() -> None:
    found = judged(5, [user(number) for number in range(6)], draws=1)
    rows, labels = (
        np.concatenate([getattr(one, name) for one in found]) for name in ("after", "labels")
    )
    matrix = metrics.confusion_matrix(labels, rows.argmax(1), CLASSES)
    figures = personalisation_metrics.paired_metrics(found, seed=0)

    assert figures["uar"][1] == pytest.approx(metrics.uar(matrix))
    assert figures["ece"][1] == pytest.approx(metrics.ece(rows, labels))
    assert figures["nll"][1] == pytest.approx(metrics.negative_log_likelihood(rows, labels))
    assert figures["brier"][1] == pytest.approx(metrics.brier_score(rows, labels))


def test_even_calibrated_predictions_show_an_error_on_few_clips() -> None:
    people = [user(number, boast=1.0) for number in range(40)]
    boastful = [user(number) for number in range(40)]
    shown = [
        personalisation_metrics.expected_calibrated_ece(judged(0, people[:count], draws=1), seed=0)
        for count in (10, 20, 40)
    ]

    assert shown == sorted(shown, reverse=True)
    assert 0.005 < shown[-1] < 0.1
    once = personalisation_metrics.expected_calibrated_ece(judged(0, people, draws=1), seed=0)
    assert (
        personalisation_metrics.expected_calibrated_ece(judged(0, people, draws=3), seed=0) == once
    )
    for whose, calibrated in ((people, True), (boastful, False)):
        found = judged(0, whose, draws=1)
        error = personalisation_metrics.paired_metrics(found, seed=0)["ece"][1]
        assert (
            error < 2 * personalisation_metrics.expected_calibrated_ece(found, seed=0)
        ) is calibrated


def test_sets_from_people_like_the_tested_ones_hold_what_they_promise() -> None:
    people = [user(number) for number in range(60)]
    others = personalisation.scores_by_fold(people)
    found = [
        personalisation.score_draw(one, 0, 0, seed=0, corpus_scores=others[one.fold])
        for one in people
    ]
    covered = personalisation_metrics.coverage_by_threshold(found)

    assert set(covered) == {"members", "members and own"}
    assert covered["members"]["covered"] == pytest.approx(conformal.DEFAULT_COVERAGE, abs=0.02)
    assert set(covered["members"]["gender"]) == {"female", "male"}
    assert covered["members"]["worst_tenth"] < covered["members"]["covered"]
    assert 1 <= covered["members"]["size"] <= CLASSES
    assert 0.87 < covered["members"]["alone"] <= covered["members"]["covered"]


def test_a_threshold_alone_holds_what_it_promises_where_never_empty_sets_hold_more() -> None:
    """Of a model that is right in 19 of 20 clips."""
    right = []
    for one in [user(number) for number in range(60)]:
        often = torch.arange(CLIPS) % 20 > 0
        labels = torch.where(often, one.logits.argmax(1), one.labels)
        right.append(replace(one, labels=labels))
    others = personalisation.scores_by_fold(right)
    found = [
        personalisation.score_draw(one, 0, 0, seed=0, corpus_scores=others[one.fold])
        for one in right
    ]
    covered = personalisation_metrics.coverage_by_threshold(found)["members"]

    assert covered["covered"] > 0.94
    assert covered["alone"] == pytest.approx(conformal.DEFAULT_COVERAGE, abs=0.02)


def test_a_persons_fold_has_no_part_in_its_threshold() -> None:
    def strange(number: int) -> SpeakerData:
        one = user(number)
        return one if one.fold != "fold0" else spoilt(one, 1 - one.labels.clamp(max=1))

    def spoilt(one: SpeakerData, labels: Tensor) -> SpeakerData:
        return SpeakerData(
            name=one.name,
            gender=one.gender,
            fold=one.fold,
            logits=one.logits,
            labels=labels,
            prior=one.prior,
        )

    usual = personalisation.scores_by_fold([user(number) for number in range(9)])
    changed = personalisation.scores_by_fold([strange(number) for number in range(9)])

    assert changed["fold0"] == usual["fold0"]
    assert changed["fold1"] != usual["fold1"]


def test_a_finished_run_gives_its_people_back(tiny_run: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to(tiny_run.users)
    everybody = personalisation.load_speakers(tiny_run.folder, tmp_path)
    accuracy = json.loads((tiny_run.folder / "run.json").read_text())["accuracy"]

    assert {one.name for one in everybody} == set(accuracy["per_speaker"])
    for one in everybody:
        guess = one.logits.argmax(1)
        matrix = metrics.confusion_matrix(one.labels, guess, one.logits.shape[1])
        assert metrics.uar(matrix) == pytest.approx(accuracy["per_speaker"][one.name]["uar"])
    assert everybody[0].prior.scores is not None
