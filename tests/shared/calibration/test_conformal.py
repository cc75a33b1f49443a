"""Sets hold the truth as often as promised, and a user's own clips make them the user's."""

import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared import seeding
from sottovoce.shared.calibration import conformal, conformal_fit
from sottovoce.shared.calibration.conformal import NonconformityScores
from sottovoce.shared.errors import SettingError

CLIPS = 60


def people(count: int, *, sd: float, name: str) -> list[Tensor]:
    """Scores of people whose voices are differently hard to read."""
    found = []
    for number in range(count):
        rng = seeding.torch_rng(0, name, number)
        hard = sd * torch.randn(1, generator=rng, dtype=torch.float64)
        drawn = torch.randn(CLIPS, generator=rng, dtype=torch.float64)
        found.append(torch.sigmoid(drawn + hard))
    return found


def covered(limit: float, heard: list[Tensor]) -> list[float]:
    """Share of each person's utterances at most as strange as a threshold."""
    return [float((person <= limit).double().mean()) for person in heard]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_new_people_are_covered_as_often_as_promised(coverage: float) -> None:
    known = conformal_fit.fit_population_scores(people(300, sd=0.7, name="known"))
    limit = conformal.find_threshold(known, coverage=coverage)

    shares = covered(limit, people(600, sd=0.7, name="new"))
    assert mean(shares) == pytest.approx(coverage, abs=0.02)


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.803, 0.9, 0.95])
def test_a_threshold_ends_no_part_of_the_population_whole(coverage: float) -> None:
    """Parts hold 1/200 each; a whole one too many would cover .905 where .9 is asked for."""
    even = torch.linspace(0, 1, 100_001)

    assert conformal.find_threshold(
        conformal_fit.fit_population_scores([even]), coverage=coverage
    ) == pytest.approx(coverage, abs=2e-4)
    assert (
        conformal.find_threshold(
            conformal_fit.fit_population_scores([even], strict=True), coverage=coverage
        )
        >= coverage
    )


def test_a_threshold_from_too_few_scores_would_miss_the_promise() -> None:
    known = conformal_fit.fit_population_scores(people(300, sd=0.7, name="known"))
    low = conformal.find_threshold(known, coverage=0.85)

    assert mean(covered(low, people(600, sd=0.7, name="new"))) < 0.88


def test_strict_thresholds_keep_the_promise_for_few_people() -> None:
    strict, loose = [], []
    for draw in range(150):
        known, new = people(9, sd=1.5, name=f"known {draw}"), people(2, sd=1.5, name=f"new {draw}")
        for rule, found in ((True, strict), (False, loose)):
            limit = conformal.find_threshold(
                conformal_fit.fit_population_scores(known, strict=rule), coverage=0.8
            )
            found.extend(covered(limit, new))

    assert mean(strict) >= 0.8
    assert mean(loose) < mean(strict)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_strict_thresholds_rule_nothing_out_for_too_few_people(count: int) -> None:
    known = conformal_fit.fit_population_scores(people(count, sd=0.1, name="known"), strict=True)

    assert conformal.find_threshold(known, coverage=0.9) == math.inf


def test_everybody_counts_alike_however_many_clips_they_gave() -> None:
    talkative = torch.linspace(0, 0.2, 1000)
    others = [torch.linspace(0.5, 0.9, 10) for _ in range(9)]

    known = conformal_fit.fit_population_scores([talkative, *others])

    assert conformal.find_threshold(known, coverage=0.5) > 0.6


def test_without_labels_the_threshold_is_the_populations() -> None:
    known = conformal_fit.fit_population_scores(people(30, sd=0.5, name="known"))

    usual = conformal.find_threshold(known, coverage=0.9)
    assert conformal.find_threshold(known, torch.zeros(0), coverage=0.9) == usual


def test_own_clips_even_people_out() -> None:
    known = conformal_fit.fit_population_scores(people(100, sd=1.0, name="known"))
    usual = conformal.find_threshold(known, coverage=0.9)
    before, after = [], []
    for person in people(200, sd=1.0, name="new"):
        own, later = person[:10], person[10:]
        before += covered(usual, [later])
        after += covered(conformal.find_threshold(known, own, coverage=0.9), [later])

    def worst(shares: list[float]) -> float:
        return mean(sorted(shares)[:20])

    assert worst(after) > worst(before) + 0.03
    assert mean(after) == pytest.approx(0.9, abs=0.03)


def test_many_own_clips_make_the_population_forgotten() -> None:
    known = conformal_fit.fit_population_scores([torch.linspace(0, 0.1, 50)] * 3)
    own = torch.linspace(0.5, 0.9, 5_000)

    found = conformal.find_threshold(known, own, coverage=0.9)
    assert found == pytest.approx(0.86, abs=0.01)


def test_alike_people_outweigh_a_few_clips_and_unlike_ones_do_not() -> None:
    alike = conformal_fit.fit_population_scores(people(200, sd=0.0, name="alike"))
    unlike = conformal_fit.fit_population_scores(people(200, sd=2.0, name="unlike"))

    assert alike.concentration > 3 * unlike.concentration
    assert (
        conformal_fit.fit_population_scores([torch.rand(20)]).concentration
        == conformal.DEFAULT_CONCENTRATION
    )


def test_a_set_holds_what_cannot_be_ruled_out_and_is_never_empty() -> None:
    chances = torch.tensor([0.2, 0.5, 0.3])

    assert conformal.prediction_set_members(chances, 0.75) == [1, 2]
    assert conformal.prediction_set_members(chances, 0.1) == [1]
    assert conformal.prediction_set_members(chances, math.inf) == [1, 2, 0]


def test_scores_are_the_chance_of_everything_but_the_truth() -> None:
    rows = torch.tensor([[0.2, 0.8], [0.2, 0.8]])

    assert conformal.nonconformity(rows, torch.tensor([0, 1])).tolist() == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, math.nan])
def test_coverage_is_a_share(coverage: float) -> None:
    known = conformal_fit.fit_population_scores([torch.tensor([0.5])])

    with pytest.raises(SettingError, match="coverage"):
        conformal.find_threshold(known, coverage=coverage)


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1, math.inf])
def test_scores_that_are_none_are_refused(value: float) -> None:
    known = conformal_fit.fit_population_scores([torch.tensor([0.5])])

    with pytest.raises(SettingError, match="score"):
        conformal_fit.fit_population_scores([torch.tensor([0.5, value])])
    with pytest.raises(SettingError, match="score"):
        conformal.find_threshold(known, torch.tensor([value]), coverage=0.9)
    with pytest.raises(SettingError, match="scores"):
        NonconformityScores(atoms=(0.5, value), tail_mass=0.1, concentration=1.0)
    with pytest.raises(SettingError, match="there must be some"):
        conformal_fit.fit_population_scores([torch.zeros(0)])


def test_a_strict_threshold_is_not_rounded_below_tied_scores() -> None:
    tied = [torch.full((5,), 0.9999994, dtype=torch.float64) for _ in range(20)]

    found = conformal_fit.fit_population_scores(tied, strict=True)
    assert conformal.find_threshold(found, coverage=0.9) >= 0.9999994
