"""What users tell moves heads and sets to where users are, and noise alone moves them little."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sottovoce.server.personalisation import prior_calibration
from sottovoce.server.personalisation.prior_calibration import HeadStatistics
from sottovoce.server.personalisation.prior_estimation import fit_head_prior, speaker_nonconformity
from sottovoce.shared import seeding
from sottovoce.shared.calibration import HeadPrior, conformal
from sottovoce.shared.calibration.head_statistics import (
    SENSITIVITY,
    STATISTICS_SIZE,
    CalibrationQuery,
    compute_statistics,
)

CLASSES, CLIPS, USERS = 5, 60, 40
Spoken = list[tuple[Tensor, Tensor]]


def people(count: int, *, log_temperature: float, what: str) -> Spoken:
    """Speakers for whom the model is as sure as right at this log temperature."""
    found = []
    for number in range(count):
        rng = seeding.torch_rng(0, what, number)
        logits = 2.5 * torch.randn(CLIPS, CLASSES, generator=rng, dtype=torch.float64)
        chances = torch.softmax(logits * math.exp(-log_temperature), 1)
        found.append((logits, torch.multinomial(chances, 1, generator=rng).squeeze(1)))
    return found


PUBLIC = people(6, log_temperature=0.3, what="public")
PRIOR = fit_head_prior(PUBLIC, classes=CLASSES)
ASKED = prior_calibration.build_query(PRIOR, PUBLIC, subtract_public_shares=False)


def summed(
    users: Spoken, *, spread: float = 0.0, seed: int = 0, asked: CalibrationQuery = ASKED
) -> HeadStatistics:
    """What these users tell, with noise in the sum."""
    rows = torch.cat([compute_statistics(logits, labels, asked) for logits, labels in users])
    noise = torch.randn(
        STATISTICS_SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return HeadStatistics(
        total=rows.sum(0) + spread * noise,
        noise_std=spread,
        total_weight=float(len(rows)),
        utterances=float(len(rows)),
        users=len(users),
    )


def covered(prior: HeadPrior, users: Spoken) -> float:
    """Share of the clips whose score lies within the threshold for 90 %."""
    assert prior.scores is not None
    limit = conformal.find_threshold(prior.scores, coverage=0.9)
    return float((torch.cat(speaker_nonconformity(prior.mean, users)) <= limit).double().mean())


@pytest.mark.parametrize("truth", [0.0, 0.3, 0.7])
def test_heads_and_sets_move_to_where_users_are(truth: float) -> None:
    users = people(USERS, log_temperature=truth, what="users")
    new = people(USERS, log_temperature=truth, what="new users")

    found = prior_calibration.calibrate_prior(PRIOR, PUBLIC, ASKED, summed(users))

    assert found.mean.log_temperature == pytest.approx(truth, abs=0.1)
    assert covered(found, new) == pytest.approx(0.9, abs=0.025)
    assert not found.mean.bias.any()
    assert (found.log_temperature_sd, found.bias_sd) == (PRIOR.log_temperature_sd, PRIOR.bias_sd)


def test_public_speakers_alone_would_cover_too_little() -> None:
    new = people(USERS, log_temperature=0.9, what="new users")

    assert covered(PRIOR, new) < 0.86


@pytest.mark.parametrize("seed", range(5))
def test_usual_noise_costs_little(seed: int) -> None:
    """As at epsilon 8 with 4 % of the squared budget: a multiplier of 3 a device."""
    truth, spread = 0.7, 3 * SENSITIVITY * math.sqrt(USERS)
    users = people(USERS, log_temperature=truth, what="users")
    new = people(USERS, log_temperature=truth, what="new users")

    found = prior_calibration.calibrate_prior(
        PRIOR, PUBLIC, ASKED, summed(users, spread=spread, seed=seed)
    )

    assert found.mean.log_temperature == pytest.approx(truth, abs=0.25)
    assert covered(found, new) == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_moves_little_and_stays_a_distribution(seed: int) -> None:
    users = people(2, log_temperature=0.3, what="users")

    found = prior_calibration.calibrate_prior(
        PRIOR, PUBLIC, ASKED, summed(users, spread=1e4, seed=seed)
    )

    assert PRIOR.scores is not None
    assert found.scores is not None
    assert abs(found.mean.log_temperature - PRIOR.mean.log_temperature) < 0.05
    atoms = torch.tensor(found.scores.atoms)
    assert len(atoms) == len(PRIOR.scores.atoms)  # rising and inside [0, 1], or it would be refused
    assert covered(found, PUBLIC) > 0.85


@pytest.mark.parametrize("truth", [0.0, 0.3, 0.9])
def test_over_noise_few_users_and_all_thresholds_cover_what_is_asked_for(truth: float) -> None:
    """Far from public speakers too: neither their scores nor the doubt pull coverage away."""
    few, spread, found = 10, 3 * SENSITIVITY * math.sqrt(10), []
    new = people(200, log_temperature=truth, what="new users")
    for seed in range(40):
        users = people(few, log_temperature=truth, what=f"users {seed}")
        statistics = summed(users, spread=spread, seed=seed)
        found.append(
            covered(prior_calibration.calibrate_prior(PRIOR, PUBLIC, ASKED, statistics), new)
        )

    assert sum(found) / len(found) == pytest.approx(0.9, abs=0.02)


def test_ranges_told_as_they_are_mend_a_noisy_number_of_clips() -> None:
    users = people(USERS, log_temperature=-0.3, what="users")
    short = prior_calibration.build_query(PRIOR, PUBLIC, subtract_public_shares=True)

    def moved(asked: CalibrationQuery) -> float:
        """How much a number of clips that is 40 % too high moves a threshold."""
        statistics = replace(summed(users, spread=1.0, asked=asked), weight_noise_std=500.0)
        limits = [
            conformal.find_threshold(scores, coverage=0.9)
            for weight in (statistics.total_weight, 1.4 * statistics.total_weight)
            if (
                scores := prior_calibration.calibrate_prior(
                    PRIOR,
                    PUBLIC,
                    asked,
                    replace(statistics, total_weight=weight, utterances=weight),
                ).scores
            )
        ]
        return limits[1] - limits[0]

    assert abs(moved(ASKED)) < 0.002
    assert moved(short) > 0.01


def test_without_noise_both_ways_to_tell_ranges_teach_the_same() -> None:
    users = people(USERS, log_temperature=0.7, what="users")
    short = prior_calibration.build_query(PRIOR, PUBLIC, subtract_public_shares=True)

    one, other = (
        prior_calibration.calibrate_prior(PRIOR, PUBLIC, asked, summed(users, asked=asked))
        for asked in (ASKED, short)
    )

    assert one.scores == other.scores


def test_means_of_users_tell_the_same_as_sums_of_clips() -> None:
    users = people(USERS, log_temperature=0.7, what="users")
    clips = summed(users)
    means = replace(clips, total=clips.total / CLIPS, total_weight=float(USERS))

    one, other = (
        prior_calibration.calibrate_prior(PRIOR, PUBLIC, ASKED, statistics)
        for statistics in (clips, means)
    )

    assert one.mean.log_temperature == pytest.approx(other.mean.log_temperature)
    assert one.scores is not None
    assert other.scores is not None
    assert one.scores.atoms == pytest.approx(other.scores.atoms)


def test_uncertain_thresholds_are_higher() -> None:
    """Coverage errs upwards: the same sum, less trusted, covers no less."""
    users = people(USERS, log_temperature=0.3, what="users")
    sure = summed(users)
    unsure = replace(sure, noise_std=200.0)

    one, other = (
        prior_calibration.calibrate_prior(PRIOR, PUBLIC, ASKED, statistics)
        for statistics in (sure, unsure)
    )

    assert covered(other, users) > covered(one, users)


def test_public_scores_that_are_all_alike_are_borne() -> None:
    sure = [(torch.eye(CLASSES).repeat(4, 1) * 200, torch.arange(4 * CLASSES) % CLASSES)] * 3
    prior = fit_head_prior(sure, classes=CLASSES)
    asked = prior_calibration.build_query(prior, sure, subtract_public_shares=False)
    users = people(3, log_temperature=0.3, what="users")

    found = prior_calibration.calibrate_prior(prior, sure, asked, summed(users, asked=asked))

    assert found.scores is not None
    assert math.isfinite(found.mean.log_temperature)


@pytest.mark.parametrize("value", [1e4, 1e20, 3e38, -3e38])
@pytest.mark.parametrize("doubt", [0.0, 100.0])
def test_an_answer_that_makes_no_sense_crashes_nothing(value: float, doubt: float) -> None:
    """One lying device sends it; -3e38 left a matrix that cannot be inverted."""
    users = people(USERS, log_temperature=0.3, what="users")
    lie = torch.full((STATISTICS_SIZE,), value, dtype=torch.float64)
    lie[2] *= -0.5
    statistics = replace(summed(users, spread=10.0), weight_noise_std=doubt)

    found = prior_calibration.calibrate_prior(
        PRIOR, PUBLIC, ASKED, replace(statistics, total=statistics.total + lie)
    )

    assert found.scores is not None
    assert abs(found.mean.log_temperature - ASKED.log_temperature) <= 0.6


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", [slice(0, 2), slice(2, 3), slice(2, None), slice(-1, None)])
def test_where_nothing_can_be_learned_the_public_prior_stays(
    caplog: pytest.LogCaptureFixture, value: float, part: slice
) -> None:
    """Gradient and curvature of the loss come first, then a count for each range of scores."""
    users = people(USERS, log_temperature=0.3, what="users")
    statistics = summed(users)
    statistics.total[part] = value

    with caplog.at_level("WARNING", logger="sottovoce.server"):
        assert prior_calibration.calibrate_prior(PRIOR, PUBLIC, ASKED, statistics) is PRIOR
    assert "make no sense" in caplog.text


@pytest.mark.parametrize("field", ["total_weight", "weight_noise_std", "noise_std"])
def test_a_weight_that_is_no_number_leaves_the_public_prior(field: str) -> None:
    statistics = summed(people(USERS, log_temperature=0.3, what="users"), spread=1.0)
    broken = replace(statistics, **{field: math.nan})

    assert prior_calibration.calibrate_prior(PRIOR, PUBLIC, ASKED, broken) is PRIOR
