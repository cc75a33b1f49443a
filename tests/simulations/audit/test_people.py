"""Attacks on members, attributes and features: each succeeds where nothing is hidden."""

from typing import Any

import numpy as np
import pytest

from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.simulations.audit import (
    gender_inference,
    gradient_inversion,
    membership_inference,
    speaker_identification,
)

HARD = 0.05
"""An epsilon at which an attacker should be as good as blind."""


def _utterances(
    transcript: Any, people: Any, trials: int = 24
) -> membership_inference.MembershipMetrics:
    devices = [one.examples for one in people(1, 12).values()]
    return membership_inference.attack_utterances(
        transcript, devices, shadows=16, trials=trials, seed=0
    )


def test_without_noise_every_utterance_is_found(make_transcript: Any, people: Any) -> None:
    found = _utterances(make_transcript(None), people, 8)

    assert found.auc > 0.99
    assert found.tpr > 0.9


def test_noise_hides_utterances(make_transcript: Any, people: Any) -> None:
    assert _utterances(make_transcript(HARD), people).auc == pytest.approx(0.5, abs=0.1)


def _users(transcript: Any, people: Any, trainings: int) -> membership_inference.MembershipMetrics:
    everybody = [one.examples for one in people(6, 6).values()]
    return membership_inference.attack_users(
        transcript,
        everybody,
        AggregationSettings(learning_rate=5.0),
        shadows=10,
        trials=trainings,
        seed=0,
    )


def test_without_noise_users_are_found_by_the_model_alone(
    make_transcript: Any, people: Any
) -> None:
    assert _users(make_transcript(None), people, 10).auc > 0.9


def test_enough_noise_hides_even_users(make_transcript: Any, people: Any) -> None:
    assert _users(make_transcript(HARD), people, 14).auc == pytest.approx(0.5, abs=0.15)


def _gender(transcript: Any, people: Any, repeats: int) -> dict[str, float]:
    users, public = people(12, 8, gender_gap=3.0), people(10, 8, seed=9, gender_gap=3.0)
    sent = gender_inference.simulate_trials(
        transcript, users, public, (1, 2), trials=repeats, seed=0
    )
    return {
        part: gender_inference.score_guesses([own]).uar
        for part, own in gender_inference.guess_genders(sent, 2).items()
    }


def test_without_noise_gender_is_found(make_transcript: Any, people: Any) -> None:
    found = _gender(make_transcript(None), people, 1)

    assert set(found) == {"first message", "updates", "last message", "everything"}
    assert found["first message"] > 0.9


def test_enough_noise_hides_gender(make_transcript: Any, people: Any) -> None:
    assert _gender(make_transcript(HARD), people, 10)["everything"] < 0.7


def test_without_noise_users_are_named(make_transcript: Any, people: Any) -> None:
    users = people(8, 12)

    off = speaker_identification.identify_speakers(
        make_transcript(None), users, (1, 2), repeats=1, seed=0
    )
    on = speaker_identification.identify_speakers(
        make_transcript(HARD), users, (1, 2), repeats=4, seed=0
    )

    assert off[2]["first message"] > 0.9
    assert on[2]["everything"] < 0.4


def test_without_noise_features_are_read_off_an_update(make_transcript: Any, people: Any) -> None:
    everybody = [one.examples for one in people(4).values()]

    alone = gradient_inversion.invert_gradients(make_transcript(None), everybody, batch=1, seed=0)
    few = gradient_inversion.invert_gradients(make_transcript(None), everybody, batch=3, seed=0)

    assert alone > 0.999
    assert few > 0.5


def test_noise_spoils_what_is_read_off(make_transcript: Any, people: Any) -> None:
    everybody = [one.examples for one in people(20).values()]

    assert (
        abs(gradient_inversion.invert_gradients(make_transcript(HARD), everybody, batch=1, seed=0))
        < 0.3
    )


def test_the_ratio_knows_members_from_others() -> None:
    rng = np.random.default_rng(0)
    inside = rng.random((200, 5)) < 0.5
    seen = inside * np.arange(5) + rng.normal(size=(200, 5))

    scores = membership_inference.log_likelihood_ratio(seen[:150], inside[:150], seen[150:])

    assert membership_inference.score_attack(scores[:, 4], inside[150:, 4]).auc > 0.95
    assert membership_inference.score_attack(scores[:, 0], inside[150:, 0]).auc < 0.7


def test_one_percent_of_the_others_may_be_taken_for_members() -> None:
    scores = np.concatenate([np.zeros(1000), np.ones(10), np.full(10, 2.0)])
    inside = np.concatenate([np.zeros(1010, bool), np.ones(10, bool)])

    found = membership_inference.score_attack(scores, inside)

    assert found.tpr == 1.0
    assert found.auc == 1.0
