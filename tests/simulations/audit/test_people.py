"""Attacks on members, attributes and features: each succeeds where nothing is hidden."""

from typing import Any

import numpy as np
import pytest

from sottovoce.server.round import Aggregation
from sottovoce.simulations.audit import attributes, gender, inversion, membership

HARD = 0.05
"""An epsilon at which an attacker should be as good as blind."""


def _utterances(course: Any, people: Any, lives: int = 24) -> membership.Verdict:
    devices = [one.examples for one in people(1, 12).values()]
    return membership.utterances(course, devices, shadows=16, lives=lives, seed=0)


def test_without_noise_every_utterance_is_found(course: Any, people: Any) -> None:
    found = _utterances(course(None), people, 8)

    assert found.auc > 0.99
    assert found.tpr > 0.9


def test_noise_hides_utterances(course: Any, people: Any) -> None:
    assert _utterances(course(HARD), people).auc == pytest.approx(0.5, abs=0.1)


def _users(course: Any, people: Any, trainings: int) -> membership.Verdict:
    everybody = [one.examples for one in people(6, 6).values()]
    return membership.users(
        course, everybody, Aggregation(learning_rate=5.0), shadows=10, lives=trainings, seed=0
    )


def test_without_noise_users_are_found_by_the_model_alone(course: Any, people: Any) -> None:
    assert _users(course(None), people, 10).auc > 0.9


def test_enough_noise_hides_even_users(course: Any, people: Any) -> None:
    assert _users(course(HARD), people, 14).auc == pytest.approx(0.5, abs=0.15)


def _gender(course: Any, people: Any, repeats: int) -> dict[str, float]:
    users, strangers = people(12, 8, apart=3.0), people(10, 8, seed=9, apart=3.0)
    lives = gender.lives_of(course, users, strangers, (1, 2), repeats=repeats, seed=0)
    return {part: gender.judged([own]).uar for part, own in gender.told(lives, 2).items()}


def test_without_noise_gender_is_heard(course: Any, people: Any) -> None:
    found = _gender(course(None), people, 1)

    assert set(found) == {"first message", "updates", "last message", "everything"}
    assert found["first message"] > 0.9


def test_enough_noise_hides_gender(course: Any, people: Any) -> None:
    assert _gender(course(HARD), people, 10)["everything"] < 0.7


def test_without_noise_users_are_named(course: Any, people: Any) -> None:
    users = people(8, 12)

    off = attributes.speaker(course(None), users, (1, 2), repeats=1, seed=0)
    on = attributes.speaker(course(HARD), users, (1, 2), repeats=4, seed=0)

    assert off[2]["first message"] > 0.9
    assert on[2]["everything"] < 0.4


def test_without_noise_features_are_read_off_an_update(course: Any, people: Any) -> None:
    everybody = [one.examples for one in people(4).values()]

    alone = inversion.inverted(course(None), everybody, batch=1, seed=0)
    few = inversion.inverted(course(None), everybody, batch=3, seed=0)

    assert alone > 0.999
    assert few > 0.5


def test_noise_spoils_what_is_read_off(course: Any, people: Any) -> None:
    everybody = [one.examples for one in people(20).values()]

    assert abs(inversion.inverted(course(HARD), everybody, batch=1, seed=0)) < 0.3


def test_the_ratio_knows_members_from_others() -> None:
    rng = np.random.default_rng(0)
    inside = rng.random((200, 5)) < 0.5
    seen = inside * np.arange(5) + rng.normal(size=(200, 5))

    scores = membership.ratio(seen[:150], inside[:150], seen[150:])

    assert membership.judged(scores[:, 4], inside[150:, 4]).auc > 0.95
    assert membership.judged(scores[:, 0], inside[150:, 0]).auc < 0.7


def test_one_percent_of_the_others_may_be_taken_for_members() -> None:
    scores = np.concatenate([np.zeros(1000), np.ones(10), np.full(10, 2.0)])
    inside = np.concatenate([np.zeros(1010, bool), np.ones(10, bool)])

    found = membership.judged(scores, inside)

    assert found.tpr == 1.0
    assert found.auc == 1.0
