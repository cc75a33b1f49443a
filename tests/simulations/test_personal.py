"""Heads fitted anew from a run are those of its devices; figures say who gains and who loses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sottovoce.shared import conformal, heads, metrics, seeds
from sottovoce.shared.heads import Head, HeadPrior
from sottovoce.simulations import personal, worth
from sottovoce.simulations.personal import Person

CLASSES, CLIPS = 3, 60
BOAST = 2.0


def user(number: int, *, boast: float = BOAST, prior: HeadPrior | None = None) -> Person:
    """A speaker for whom the model is surer than right."""
    rng = seeds.torch_rng(0, "user", number)
    true = torch.randn(CLIPS, CLASSES, generator=rng, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(2 * true, 1), 1, generator=rng).squeeze(1)
    return Person(
        speaker=f"s{number}",
        gender="female" if number % 2 else "male",
        fold=f"fold{number % 3}",
        logits=2 * boast * true,
        labels=labels,
        prior=prior or HeadPrior(mean=heads.identity(CLASSES)),
    )


def judged(clips: int, people: list[Person], draws: int = 2) -> list[personal.Judged]:
    return [personal.judge(one, clips, draw, seed=0) for one in people for draw in range(draws)]


def test_labelled_clips_are_not_judged_and_every_emotion_keeps_one() -> None:
    one = user(0)
    for clips in (0, 1, 5, 1_000):
        chosen = personal.labelled_clips(one, clips, 0, seed=0)
        found = personal.judge(one, clips, 0, seed=0)

        assert len(chosen) == len(set(chosen)) == min(clips, CLIPS - CLASSES)
        assert len(found.labels) == CLIPS - len(chosen)
        assert set(found.labels) == set(range(CLASSES))
    assert personal.labelled_clips(one, 5, 0, seed=0) != personal.labelled_clips(one, 5, 1, seed=0)


def test_a_person_is_judged_by_the_head_that_a_device_would_fit() -> None:
    one = user(1)
    chosen = personal.labelled_clips(one, 5, 0, seed=0)
    fitted = heads.fit(one.logits[chosen], one.labels[chosen], one.prior)
    rest = [place for place in range(CLIPS) if place not in chosen]

    found = personal.judge(one, 5, 0, seed=0)
    expected = torch.softmax(heads.apply(fitted, one.logits[rest]), 1)
    assert np.allclose(found.after, expected)
    assert np.allclose(found.before, torch.softmax(one.logits[rest], 1))


def test_without_labels_a_usual_head_that_changes_nothing_makes_no_difference() -> None:
    found = worth.figures(judged(0, [user(number) for number in range(8)]), seed=0)

    for name, values in found.items():
        assert values[0] == values[1], name
        assert not any(values[2:]), name


def test_labels_help_against_a_boastful_model_and_the_interval_says_so() -> None:
    found = worth.figures(judged(10, [user(number) for number in range(20)]), seed=0)

    for name in ("ece", "nll", "brier"):
        before, after, difference, low, high = found[name]
        assert after - before == pytest.approx(difference)
        assert low < difference < high < 0, name


def test_a_wrong_head_is_seen_to_hurt() -> None:
    wrong = HeadPrior(mean=Head(log_temperature=-1.0, bias=torch.tensor([3.0, 0.0, 0.0])))
    found = worth.figures(judged(0, [user(n, boast=1.0, prior=wrong) for n in range(12)]), seed=0)

    assert found["nll"][3] > 0
    assert found["uar"][4] < 0
    assert found["p10"][2] < 0


def test_figures_are_those_of_the_measures() -> None:
    found = judged(5, [user(number) for number in range(6)], draws=1)
    rows, labels = (
        np.concatenate([getattr(one, name) for one in found]) for name in ("after", "labels")
    )
    matrix = metrics.confusion(labels, rows.argmax(1), CLASSES)
    figures = worth.figures(found, seed=0)

    assert figures["uar"][1] == pytest.approx(metrics.uar(matrix))
    assert figures["ece"][1] == pytest.approx(metrics.ece(rows, labels))
    assert figures["nll"][1] == pytest.approx(metrics.nll(rows, labels))
    assert figures["brier"][1] == pytest.approx(metrics.brier(rows, labels))


def test_even_calibrated_predictions_show_an_error_on_few_clips() -> None:
    people = [user(number, boast=1.0) for number in range(40)]
    boastful = [user(number) for number in range(40)]
    shown = [
        worth.calibrated_ece(judged(0, people[:count], draws=1), seed=0) for count in (10, 20, 40)
    ]

    assert shown == sorted(shown, reverse=True)
    assert 0.005 < shown[-1] < 0.1
    once = worth.calibrated_ece(judged(0, people, draws=1), seed=0)
    assert worth.calibrated_ece(judged(0, people, draws=3), seed=0) == once
    for whose, calibrated in ((people, True), (boastful, False)):
        found = judged(0, whose, draws=1)
        told = worth.figures(found, seed=0)["ece"][1]
        assert (told < 2 * worth.calibrated_ece(found, seed=0)) is calibrated


def test_sets_from_people_like_the_tested_ones_hold_what_they_promise() -> None:
    people = [user(number) for number in range(60)]
    others = personal.others(people)
    found = [personal.judge(one, 0, 0, seed=0, members=others[one.fold]) for one in people]
    covered = worth.coverage(found)

    assert set(covered) == {"members", "members and own"}
    assert covered["members"]["covered"] == pytest.approx(conformal.COVERAGE, abs=0.02)
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
    others = personal.others(right)
    found = [personal.judge(one, 0, 0, seed=0, members=others[one.fold]) for one in right]
    covered = worth.coverage(found)["members"]

    assert covered["covered"] > 0.94
    assert covered["alone"] == pytest.approx(conformal.COVERAGE, abs=0.02)


def test_a_persons_fold_has_no_part_in_its_threshold() -> None:
    def strange(number: int) -> Person:
        one = user(number)
        return one if one.fold != "fold0" else spoilt(one, 1 - one.labels.clamp(max=1))

    def spoilt(one: Person, labels: Tensor) -> Person:
        return Person(
            speaker=one.speaker,
            gender=one.gender,
            fold=one.fold,
            logits=one.logits,
            labels=labels,
            prior=one.prior,
        )

    usual = personal.others([user(number) for number in range(9)])
    changed = personal.others([strange(number) for number in range(9)])

    assert changed["fold0"] == usual["fold0"]
    assert changed["fold1"] != usual["fold1"]


def test_a_finished_run_gives_its_people_back(tiny_run: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to(tiny_run.users)
    everybody = personal.people(tiny_run.folder, tmp_path)
    told = json.loads((tiny_run.folder / "run.json").read_text())["accuracy"]

    assert {one.speaker for one in everybody} == set(told["per_speaker"])
    for one in everybody:
        guess = one.logits.argmax(1)
        matrix = metrics.confusion(one.labels, guess, one.logits.shape[1])
        assert metrics.uar(matrix) == pytest.approx(told["per_speaker"][one.speaker]["uar"])
    assert everybody[0].prior.scores is not None
