"""What hides a user is the noise of the sums: with it attacks fail, without it they succeed."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sottovoce.server import sums
from sottovoce.server.round import Aggregation
from sottovoce.shared.plan import UserPromise
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.release import NoisedBy, Unit, UserNoise
from sottovoce.simulations.audit import attributes, canary, gender, inversion, membership
from sottovoce.simulations.audit.sight import OPENLY, SUM, last_noise, sees, update_noise, witnessed
from sottovoce.simulations.audit.subject import Course, live

DELTA = 1e-3


@pytest.fixture
def hidden(course: Any) -> Any:
    """Makes a course whose sums hide users at so much epsilon."""

    def make(epsilon: float) -> Course:
        precision = accountant.gaussian_mu(epsilon, DELTA) ** 2

        def noise(norm: float, share: float) -> UserNoise:
            multiplier = float((share * precision) ** -0.5)
            return UserNoise(noise_multiplier=multiplier, clip_norm=norm, noised_by=NoisedBy.SERVER)

        asked: Course = course(None)
        rounds = asked.plan.rounds
        user = UserPromise(
            counts=noise(20.0, 0.1),
            centre=noise(1.5, 0.1),
            update=noise(0.5, 0.7 / rounds),
            calibration=noise(0.4, 0.1),
        )
        return replace(asked, plan=replace(asked.plan, user=user), devices=20)

    return make


def test_the_courses_cost_what_they_promise(hidden: Any) -> None:
    releases = hidden(8.0).plan.releases()

    assert accountant.epsilon(releases, DELTA, unit=Unit.USER) == pytest.approx(8.0, abs=1e-3)


def test_only_sums_are_seen_where_users_are_hidden(hidden: Any, course: Any, people: Any) -> None:
    own, asked = people(1)["u00"].examples, hidden(8.0)
    seen = live(asked, own, 0)

    assert sees(asked.plan) == SUM
    assert sees(course(8.0).plan) == OPENLY
    assert witnessed(course(8.0), seen, 0) is seen
    sight = witnessed(asked, seen, 0)
    noise = (sight.updates - seen.updates).std()
    assert float(noise) == pytest.approx(update_noise(asked), rel=0.3)
    told = [witnessed(asked, seen, number).answer - seen.answer for number in range(30)]
    assert float(torch.stack(told).std()) == pytest.approx(last_noise(asked), rel=0.2)
    assert last_noise(asked) == pytest.approx(sums.calibration_spread(asked.plan, 20))


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_a_whole_user_stays_below_the_claim(hidden: Any, people: Any, epsilon: float) -> None:
    own = people(1)["u00"].examples

    found = canary.scores(hidden(epsilon), own, lives=60, seed=0, whole=True)

    bound = canary.judged(*found, delta=DELTA, confidence=0.95)
    assert bound.epsilon <= epsilon
    assert bound.epsilon_gaussian <= epsilon


def test_a_user_in_a_sum_without_noise_is_seen(course: Any, people: Any) -> None:
    own = people(1)["u00"].examples

    found = canary.scores(course(None), own, lives=40, seed=0, whole=True)

    bound = canary.judged(*found, delta=DELTA, confidence=0.95)
    assert bound.epsilon == bound.ceiling


def test_a_promise_to_users_hides_gender_name_membership_and_features(
    hidden: Any, people: Any
) -> None:
    asked, users = hidden(0.2), people(12, 8, apart=3.0)
    strangers = people(10, 8, seed=9, apart=3.0)
    everybody = [one.examples for one in users.values()]

    lives = gender.lives_of(asked, users, strangers, (2,), repeats=2, seed=0)

    assert gender.judged([gender.told(lives, 2)["everything"]]).uar < 0.7
    assert attributes.speaker(asked, users, (2,), repeats=4, seed=0)[2]["everything"] < 0.4
    assert abs(inversion.inverted(asked, everybody, batch=1, seed=0)) < 0.35
    found = membership.users(
        asked, everybody[:6], Aggregation(learning_rate=5.0), shadows=10, lives=14, seed=0
    )
    assert found.auc == pytest.approx(0.5, abs=0.2)
