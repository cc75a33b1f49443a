"""What hides a user is the noise of the sums: with it attacks fail, without it they succeed."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, SumMechanism
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.shared.protocol.training_plan import UserLevelPrivacy
from sottovoce.simulations.audit import (
    canary,
    gender_inference,
    gradient_inversion,
    membership_inference,
    speaker_identification,
)
from sottovoce.simulations.audit.adversary_view import (
    ALL_MESSAGES,
    NOISED_SUMS,
    UpdateNoise,
    observe,
    round_weights,
    statistics_sum_noise,
    threat_model,
    update_sum_noise,
)
from sottovoce.simulations.audit.device_under_test import Transcript, run_trial, trains_in_round

DELTA = 1e-3


@pytest.fixture
def hidden(make_transcript: Any) -> Any:
    """Makes a transcript whose sums hide users at so much epsilon."""

    def make(epsilon: float) -> Transcript:
        precision = accounting.gaussian_mu(epsilon, DELTA) ** 2

        def noise(norm: float, share: float) -> SumMechanism:
            multiplier = float((share * precision) ** -0.5)
            return SumMechanism(
                noise_multiplier=multiplier, clip_norm=norm, noised_by=NoiseSource.SERVER
            )

        plain: Transcript = make_transcript(None)
        rounds = plain.plan.rounds
        user = UserLevelPrivacy(
            counts=noise(20.0, 0.1),
            centre=noise(1.5, 0.1),
            update=noise(0.5, 0.7 / rounds),
            calibration=noise(0.4, 0.1),
        )
        return replace(plain, plan=replace(plain.plan, user=user), devices=20)

    return make


@pytest.fixture
def separated(hidden: Any) -> Any:
    """Makes a transcript of participation groups, whose noise is correlated across rounds."""

    def make(epsilon: float, *, drawn: float = 1.0) -> Transcript:
        plain = hidden(epsilon)
        user, rounds = plain.plan.user, 6
        # Of six rounds each user is in two, as many as there are without groups.
        update = replace(
            user.update,
            noise_multiplier=drawn * user.update.noise_multiplier,
            bands=BandedNoise.from_square_root(bands=3, min_separation=3),
        )
        plan = replace(plain.plan, rounds=rounds, user=replace(user, update=update))
        return replace(plain, plan=plan, weights=[plain.weights[0]] * rounds)

    return make


def test_the_transcripts_cost_what_they_promise(hidden: Any, separated: Any) -> None:
    for transcript in (hidden(8.0), separated(8.0)):
        releases = transcript.plan.all_releases()

        assert accounting.compute_epsilon(releases, DELTA, unit=PrivacyUnit.USER) == pytest.approx(
            8.0, abs=1e-3
        )


def test_only_sums_are_seen_where_users_are_hidden(
    hidden: Any, make_transcript: Any, people: Any
) -> None:
    own, sums = people(1)["u00"].examples, hidden(8.0)
    seen = run_trial(sums, own, 0)

    assert threat_model(sums.plan.scheme) == NOISED_SUMS
    assert threat_model(make_transcript(8.0).plan.scheme) == ALL_MESSAGES
    assert threat_model(scheme_for("utterance", secure=True)) == NOISED_SUMS
    assert observe(make_transcript(8.0), seen, 0) is seen
    observation = observe(sums, seen, 0)
    noise = (observation.updates - seen.updates).std()
    assert float(noise) == pytest.approx(update_sum_noise(sums), rel=0.3)
    noises = [
        observe(sums, seen, number).head_statistics - seen.head_statistics for number in range(30)
    ]
    assert float(torch.stack(noises).std()) == pytest.approx(statistics_sum_noise(sums), rel=0.2)
    assert statistics_sum_noise(sums) == pytest.approx(
        sums.plan.scheme.sum_noise_std(sums.plan, SumKind.HEAD_STATISTICS, devices=20)
    )


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_a_whole_user_stays_below_the_claim(hidden: Any, people: Any, epsilon: float) -> None:
    own = people(1)["u00"].examples

    found = canary.collect_statistics(hidden(epsilon), own, trials=60, seed=0, user_level=True)

    bound = canary.bound_epsilon(*found, delta=DELTA, confidence=0.95)
    assert bound.epsilon <= epsilon
    assert bound.epsilon_gaussian <= epsilon


@pytest.mark.parametrize(("epsilon", "drawn"), [(8.0, 1.0), (2.0, 0.4)])
def test_correlated_noise_hides_a_whole_user_unless_less_is_drawn(
    separated: Any, people: Any, epsilon: float, drawn: float
) -> None:
    own = people(1)["u00"].examples

    found = canary.collect_statistics(
        separated(epsilon, drawn=drawn), own, trials=100, seed=0, user_level=True
    )

    bound = canary.bound_epsilon(*found, delta=DELTA, confidence=0.95)
    assert (bound.epsilon_gaussian > epsilon) == (drawn < 1)
    assert bound.epsilon_gaussian > 0.3 * epsilon, "a blind audit would prove nothing"


def test_the_attacker_undoes_the_correlation_of_noise(separated: Any) -> None:
    plan = separated(8.0).plan
    rounds, width = plan.rounds, 40_000
    weights = round_weights(plan, rounds)
    joined = torch.tensor([float(trains_in_round(plan, n + 1)) for n in range(rounds)])
    nothing = torch.zeros(rounds, width, dtype=torch.float64)

    noise = UpdateNoise(plan, SeededGaussianSampler(torch.Generator().manual_seed(0)))
    seen = weights @ noise.add_to_rounds(nothing, 1.0)

    assert joined.tolist() == [1, 0, 0, 1, 0, 0]
    assert float(weights @ joined.double()) == pytest.approx(1.0)
    # Two columns of C that share no row: as two independent releases of their norm.
    columns = 2**0.5 * plan.user.update.bands.column_norm
    assert float(seen.std()) == pytest.approx(1 / columns, rel=0.02)


def test_a_training_in_participation_groups_asks_each_user_as_seldom_as_the_real_one(
    separated: Any, people: Any
) -> None:
    """Devices refuse rounds too near one another; next to no noise shows who was there."""
    sums, everybody = separated(1e6), [one.examples for one in people(4, 6).values()]

    def train(users: list[Any]) -> torch.Tensor:
        return membership_inference.train_model(
            sums, users, AggregationSettings(learning_rate=5.0), seed=0
        )

    whole, fewer = train(everybody), train(everybody[:3])

    assert float((whole - sums.weights[0]).norm()) > 0.1
    assert float((whole - fewer).norm()) > 0.1
    assert gradient_inversion.invert_gradients(sums, everybody, batch=1, seed=0) > 0.9


def test_a_user_in_a_sum_without_noise_is_seen(make_transcript: Any, people: Any) -> None:
    own = people(1)["u00"].examples

    found = canary.collect_statistics(
        make_transcript(None), own, trials=40, seed=0, user_level=True
    )

    bound = canary.bound_epsilon(*found, delta=DELTA, confidence=0.95)
    assert bound.epsilon == bound.ceiling


def test_a_promise_to_users_hides_gender_name_membership_and_features(
    hidden: Any, people: Any
) -> None:
    sums, users = hidden(0.2), people(12, 8, gender_gap=3.0)
    public = people(10, 8, seed=9, gender_gap=3.0)
    everybody = [one.examples for one in users.values()]

    sent = gender_inference.simulate_trials(sums, users, public, (2,), trials=2, seed=0)

    assert (
        gender_inference.score_guesses([gender_inference.guess_genders(sent, 2)["everything"]]).uar
        < 0.7
    )
    assert (
        speaker_identification.identify_speakers(sums, users, (2,), repeats=4, seed=0)[2][
            "everything"
        ]
        < 0.4
    )
    assert abs(gradient_inversion.invert_gradients(sums, everybody, batch=1, seed=0)) < 0.35
    found = membership_inference.attack_users(
        sums, everybody[:6], AggregationSettings(learning_rate=5.0), shadows=10, trials=14, seed=0
    )
    assert found.auc == pytest.approx(0.5, abs=0.2)
