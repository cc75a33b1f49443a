"""Gender inference: strong where genders differ, blind where they do not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sottovoce.simulations.audit import gender_inference, kernel_ridge
from sottovoce.simulations.audit.audited_fold import AuditedFold
from sottovoce.simulations.audit.gender_inference import (
    GenderGuesses,
    GenderTrials,
    SentMessages,
    guess_genders,
    score_guesses,
)

Make = Callable[..., GenderTrials]
SIZE = 30


@pytest.fixture
def population() -> Make:
    """Makes people whose vectors hold their gender, themselves, and each trial's noise."""

    def make(
        seed: int, *, users: int = 8, public: int = 0, trials: int = 3, gender_gap: float = 0.0
    ) -> GenderTrials:
        rng = np.random.default_rng(seed)
        side = np.eye(SIZE)[0] * gender_gap / 2

        def sent(index: int) -> SentMessages:
            person = rng.normal(size=SIZE) + (side if index % 2 else -side)
            own = {1: {"part": person + rng.normal(size=(trials, SIZE))}}
            return SentMessages(
                gender=("female", "male")[index % 2], before_sum_noise=own, observed=own
            )

        return GenderTrials(
            users={f"u{index}": sent(index) for index in range(users)},
            public_speakers={f"u{index}": sent(index) for index in range(public)},
        )

    return make


def uar(trials: GenderTrials) -> float:
    """Recall of genders guessed from the only part."""
    return score_guesses([guess_genders(trials, 1)["part"]]).uar


@pytest.mark.parametrize("public", [0, 6])
def test_where_genders_do_not_differ_it_is_blind(population: Make, public: int) -> None:
    found = [uar(population(seed, public=public)) for seed in range(40)]

    assert np.mean(found) == pytest.approx(0.5, abs=0.07)


def test_an_attacker_that_has_trained_on_the_user_would_seem_to_know(
    population: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the blind test is there to find."""
    fit = kernel_ridge.fit_ridge
    monkeypatch.setattr(
        kernel_ridge,
        "fit_ridge",
        lambda gram, cross, signs, _: fit(gram, cross, signs, np.arange(len(signs))),
    )

    assert np.mean([uar(population(seed)) for seed in range(10)]) > 0.8


def test_a_gender_that_stands_out_is_found_and_from_public_speakers_alone_too(
    population: Make,
) -> None:
    assert uar(population(0, gender_gap=8.0)) > 0.9
    few = [uar(population(seed, users=4, public=40, gender_gap=8.0)) for seed in range(5)]
    assert np.mean(few) > 0.8


def test_genders_weigh_the_same_and_the_error_is_over_users() -> None:
    def one(kind: str, share: float, trials: int) -> GenderGuesses:
        return GenderGuesses(gender=kind, correct=np.arange(trials) < share * trials)

    fold = {"a": one("f", 1.0, 10), "b": one("f", 0.0, 10), "c": one("m", 1.0, 400)}

    found = score_guesses([fold])

    assert found.uar == pytest.approx(0.75)
    assert found.standard_error == pytest.approx(np.sqrt(0.5) / 2 / 2, rel=0.1)
    assert score_guesses([fold, {"c": one("m", 0.0, 400)}]).uar == pytest.approx(0.5)


def test_figures_come_from_all_folds(make_transcript: Any, people: Any) -> None:
    def case(names: slice) -> AuditedFold:
        users = dict(list(people(8, 6, gender_gap=3.0).items())[names])
        return AuditedFold(
            scenario=None,  # type: ignore[arg-type]  (nothing asks for it)
            name="fold",
            transcript=make_transcript(None),
            users=users,
            public_speakers=people(4, 6, seed=9, gender_gap=3.0),
        )

    cases = [case(slice(0, 6)), case(slice(2, 8))]
    found = gender_inference.infer_genders(
        cases, [1, 2], trials=2, sums_per_trial=1, max_public_speakers=4, seed=0
    )

    assert found["gender_of"] == {"folds": 2, "users": 8, "trials": 12}
    everything = {"first message", "updates", "last message", "everything"}
    assert set(found["gender"]["2"]) == everything
    assert set(found["gender"]["1"]) == everything - {"last message"}, "it is not there yet"
    assert found["gender"]["2"]["first message"] > 0.8
    assert set(found["gender_error"]) == {"1", "2"}
    assert (
        gender_inference.infer_genders(
            [], [1], trials=1, sums_per_trial=1, max_public_speakers=1, seed=0
        )
        == {}
    )


def test_sums_are_noised_anew_and_people_are_known_before_that_noise(
    make_transcript: Any, people: Any
) -> None:
    noised = gender_inference.simulate_trials(
        make_transcript(8.0),
        people(2, 6),
        people(1, 6, seed=9),
        [1],
        trials=3,
        sums_per_trial=5,
        seed=0,
    )

    assert noised.users["u00"].observed[1]["updates"].shape[0] == 3  # openly: no sums
    assert noised.public_speakers["u00"].observed == {}
    still = gender_inference.simulate_trials(
        make_transcript(None), people(2, 6), {}, [1], trials=3, sums_per_trial=5, seed=0
    )
    assert still.users["u00"].before_sum_noise[1]["updates"].shape[0] == 1
