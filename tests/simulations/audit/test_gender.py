"""Gender inference: strong where there is something to hear, blind where there is not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sottovoce.simulations.audit import gender, ridge
from sottovoce.simulations.audit.case import Case
from sottovoce.simulations.audit.gender import Guesses, Lives, Sent, judged, told

Make = Callable[..., Lives]
SIZE = 30


@pytest.fixture
def world() -> Make:
    """Makes people whose vectors hold their gender, themselves, and each life's noise."""

    def make(
        seed: int, *, users: int = 8, strangers: int = 0, lives: int = 3, apart: float = 0.0
    ) -> Lives:
        rng = np.random.default_rng(seed)
        side = np.eye(SIZE)[0] * apart / 2

        def sent(place: int) -> Sent:
            person = rng.normal(size=SIZE) + (side if place % 2 else -side)
            own = {1: {"part": person + rng.normal(size=(lives, SIZE))}}
            return Sent(gender=("female", "male")[place % 2], own=own, shown=own)

        return Lives(
            users={f"u{place}": sent(place) for place in range(users)},
            strangers={f"u{place}": sent(place) for place in range(strangers)},
        )

    return make


def uar(lives: Lives) -> float:
    """How well genders are told from the only part."""
    return judged([told(lives, 1)["part"]]).uar


@pytest.mark.parametrize("strangers", [0, 6])
def test_where_there_is_nothing_to_hear_it_is_blind(world: Make, strangers: int) -> None:
    found = [uar(world(seed, strangers=strangers)) for seed in range(40)]

    assert np.mean(found) == pytest.approx(0.5, abs=0.07)


def test_an_attacker_that_has_learned_from_the_user_would_seem_to_hear(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the blind test is there to find."""
    learned = ridge._learned
    monkeypatch.setattr(
        ridge,
        "_learned",
        lambda alike, towards, signs, _: learned(alike, towards, signs, np.arange(len(signs))),
    )

    assert np.mean([uar(world(seed)) for seed in range(10)]) > 0.8


def test_a_gender_that_stands_out_is_heard_and_by_strangers_alone_too(world: Make) -> None:
    assert uar(world(0, apart=8.0)) > 0.9
    few = [uar(world(seed, users=4, strangers=40, apart=8.0)) for seed in range(5)]
    assert np.mean(few) > 0.8


def test_a_verdict_weighs_genders_alike_and_doubts_by_user() -> None:
    def one(kind: str, share: float, lives: int) -> Guesses:
        return Guesses(gender=kind, right=np.arange(lives) < share * lives)

    fold = {"a": one("f", 1.0, 10), "b": one("f", 0.0, 10), "c": one("m", 1.0, 400)}

    found = judged([fold])

    assert found.uar == pytest.approx(0.75)
    assert found.error == pytest.approx(np.sqrt(0.5) / 2 / 2, rel=0.1)
    assert judged([fold, {"c": one("m", 0.0, 400)}]).uar == pytest.approx(0.5)


def test_figures_come_from_all_folds(course: Any, people: Any) -> None:
    def case(names: slice) -> Case:
        users = dict(list(people(8, 6, apart=3.0).items())[names])
        return Case(
            scenario=None,  # type: ignore[arg-type]  (nothing asks for it)
            fold="fold",
            course=course(None),
            users=users,
            strangers=people(4, 6, seed=9, apart=3.0),
        )

    cases = [case(slice(0, 6)), case(slice(2, 8))]
    found = gender.figures(cases, [1, 2], repeats=2, sums=1, strangers=4, seed=0)

    assert found["gender_of"] == {"folds": 2, "users": 8, "lives": 12}
    everything = {"first message", "updates", "last message", "everything"}
    assert set(found["gender"]["2"]) == everything
    assert set(found["gender"]["1"]) == everything - {"last message"}, "it is not there yet"
    assert found["gender"]["2"]["first message"] > 0.8
    assert set(found["gender_error"]) == {"1", "2"}
    assert gender.figures([], [1], repeats=1, sums=1, strangers=1, seed=0) == {}


def test_sums_are_noised_anew_and_people_are_known_before_that_noise(
    course: Any, people: Any
) -> None:
    lives = gender.lives_of(
        course(8.0), people(2, 6), people(1, 6, seed=9), [1], repeats=3, sums=5, seed=0
    )

    assert lives.users["u00"].shown[1]["updates"].shape[0] == 3  # openly: no sums
    assert lives.strangers["u00"].shown == {}
    still = gender.lives_of(course(None), people(2, 6), {}, [1], repeats=3, sums=5, seed=0)
    assert still.users["u00"].own[1]["updates"].shape[0] == 1
