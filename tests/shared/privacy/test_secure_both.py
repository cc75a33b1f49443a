"""Utterances and users in secure sums: one noise keeps both promises, with no trusted server."""

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest

from sottovoce.server.planning import noise_calibration, recipe
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.bounds import UserLevelSettings
from sottovoce.shared.privacy.release import DISCRETISATION_SLACK, NoiseShares, PrivacyUnit
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.privacy.user_level import SecureSumConfigs
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.simulations.verification.second_accountant import opacus_epsilon

RECIPE = recipe.default_recipe(unit="both", secure=True)
DELTAS = {PrivacyUnit.UTTERANCE: 1e-5, PrivacyUnit.USER: 1e-3}


def _plan(devices: int = 20, *, epsilon: float = 8.0, colluders: float = 0.1) -> Plan:
    target = PrivacyTarget(unit="both", secure=True, epsilon=epsilon, shares=RECIPE.shares)
    user = replace(RECIPE.user, corruption=colluders)
    bounds = replace(RECIPE.bounds, user=user)
    facts: dict[str, Any] = {"run": "r", "labels": ("calm", "angry"), "inputs": 4}
    plain = noise_calibration.plan_without_noise(RECIPE, **facts, extractor="x", rounds=5)
    noised = noise_calibration.add_noise(plain, target, bounds)
    return noise_calibration.add_secure_aggregation(noised, target, bounds, devices=devices)


def _configs(plan: Plan) -> SecureSumConfigs:
    assert plan.user is not None
    assert plan.user.secure is not None
    return plan.user.secure


def _delta(epsilon: float, mu: float) -> float:
    """Of Gaussian differential privacy (Balle and Wang 2018)."""
    normal = NormalDist()
    return normal.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * normal.cdf(
        -epsilon / mu - mu / 2
    )


def _true_mu(plan: Plan, unit: PrivacyUnit, colluders: int) -> float:
    """Mu by each device's noise and what the unit moves, written down anew."""
    configs, user = _configs(plan), plan.user
    assert user is not None
    assert user.centre is not None
    assert user.calibration is not None
    assert configs.calibration is not None
    assert plan.centre is not None
    assert plan.normaliser is not None

    def squared(config: SecureAggregationConfig, reach: float) -> float:
        moved = reach / config.granularity + math.sqrt(config.parameters)
        return moved**2 / ((config.quorum - colluders) * config.noise**2)

    if unit is PrivacyUnit.USER:
        return math.sqrt(
            squared(configs.enrolment, math.sqrt(2))
            + plan.rounds * squared(configs.update, user.update.clip_norm)
            + squared(configs.calibration, user.calibration.clip_norm)
        )
    once = math.hypot(1 / user.counts.clip_norm, plan.centre.clip_norm / user.centre.clip_norm)
    return math.sqrt(
        squared(configs.enrolment, once)
        + plan.rounds * squared(configs.update, plan.mechanism.clip_norm)
        + squared(configs.calibration, configs.calibration.sensitivity)
        + 1 / plan.normaliser.noise_multiplier**2
    )


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize("devices", [12, 20, 73])
def test_both_claims_are_what_the_honest_devices_noise_comes_to(
    devices: int, epsilon: float
) -> None:
    plan = _plan(devices, epsilon=epsilon)
    for unit, delta in DELTAS.items():
        claimed = accounting.compute_epsilon(plan.all_releases(), delta, unit=unit)
        assert 0.98 * epsilon < claimed <= epsilon, unit
        for colluders in range(_configs(plan).dishonest + 1):
            assert _delta(claimed, _true_mu(plan, unit, colluders)) <= delta, (unit, colluders)
        worse = _true_mu(plan, unit, _configs(plan).dishonest + 2)
        kept = _delta(claimed - 25 * DISCRETISATION_SLACK, worse) <= delta
        # The normaliser's noise is the device's own, and most of what an utterance pays for.
        assert not kept or unit is PrivacyUnit.UTTERANCE, "more noise than promised is wasted"
        second = opacus_epsilon(tuple(plan.all_releases()), delta, unit=unit)
        assert second == pytest.approx(claimed, abs=0.05)


def test_a_user_s_noise_hides_an_utterance_better_than_its_own_would() -> None:
    """The rest of the utterance's budget goes to the normaliser."""
    local = noise_calibration.add_noise(
        noise_calibration.plan_without_noise(
            RECIPE, run="r", labels=("calm", "angry"), inputs=4, extractor="x", rounds=5
        ),
        PrivacyTarget(unit="both", shares=RECIPE.shares),
        RECIPE.bounds,
    )
    plan = _plan()

    assert plan.mechanism.noise_multiplier > local.mechanism.noise_multiplier
    assert plan.normaliser is not None
    assert local.normaliser is not None
    assert plan.normaliser.noise_multiplier < local.normaliser.noise_multiplier
    in_sum = [
        one.scheme.sum_noise_std(one, SumKind.UPDATE, devices=73, denominator=50.0)
        for one in (_plan(73), local)
    ]
    assert in_sum[0] < 0.6 * in_sum[1], "less noise in the model than with a trusted server"


def test_releases_name_both_assumptions_and_travel() -> None:
    plan = _plan()
    again = Plan.from_json(plan.to_json())

    assert again == plan
    assert again.scheme is scheme_for("both", secure=True)
    release = plan.gradient_release(1)
    assert release.shares == NoiseShares(devices=18, colluders=2)
    assert release.user is not None
    assert release.user.noised_by.value == "shares"
    assert plan.normaliser_release() is not None


@pytest.mark.parametrize("name", ["enrolment", "update", "calibration"])
def test_shares_that_are_too_small_for_either_are_refused(name: str) -> None:
    plan = _plan()
    assert plan.user is not None
    user, configs = plan.user, _configs(plan)
    config = getattr(configs, name)

    def changed(**changes: Any) -> Plan:
        other = replace(configs, **{name: replace(config, **changes)})
        return replace(plan, user=replace(user, secure=other))

    changed(noise=config.noise)
    with pytest.raises(SettingError, match="shares come to"):
        changed(noise=config.noise * (1 - 1e-5))
    with pytest.raises(SettingError, match="must be equal"):
        changed(sensitivity=config.sensitivity * 0.9)
    with pytest.raises(SettingError, match=r"shares come to"):
        replace(plan, mechanism=replace(plan.mechanism, noise_multiplier=100.0))


def test_a_promise_to_users_above_what_the_shares_come_to_is_refused() -> None:
    """Whatever an utterance is promised: its part of the bound is smaller, and noise the same."""
    plan = _plan()
    assert plan.user is not None
    assert plan.user.centre is not None
    assert plan.user.calibration is not None

    for name in ("counts", "centre", "update", "calibration"):
        one = getattr(plan.user, name)
        louder = replace(one, noise_multiplier=1.01 * one.noise_multiplier)
        with pytest.raises(SettingError, match="shares come to"):
            replace(plan.user, **{name: louder})


@pytest.mark.parametrize("name", ["enrolment", "update", "calibration"])
def test_a_lattice_that_is_too_coarse_for_users_alone_is_refused(name: str) -> None:
    """What moves the sum by a user's whole bound pays more for its steps than an utterance."""
    plan = _plan()
    assert plan.user is not None
    configs, coarser = _configs(plan), 4_096 if name == "update" else 16_384
    fine = getattr(configs, name)
    coarse = replace(fine, granularity=coarser * fine.granularity, noise=fine.noise / coarser)
    assert configs.discretisation_slack(coarse) <= DISCRETISATION_SLACK
    assert configs.discretisation_slack(coarse, whole=True) > DISCRETISATION_SLACK

    with pytest.raises(SettingError, match="discretisation slack"):
        replace(plan.user, secure=replace(configs, **{name: coarse}))


@pytest.mark.parametrize(
    ("name", "of_part"),
    [
        ("update_norm", "clip_norm"),
        ("centre_norm", "centre_radius"),
        ("counts_norm", "the bound on one count"),
        ("calibration_norm", "the bound on one clip's"),
    ],
)
def test_a_user_s_bound_below_an_utterance_s_is_named_with_it(name: str, of_part: str) -> None:
    bounds = replace(RECIPE.bounds, user=replace(RECIPE.user, **{name: 1e-3}))
    target = PrivacyTarget(unit="both", secure=True, shares=RECIPE.shares)
    facts: dict[str, Any] = {"run": "r", "labels": ("calm", "angry"), "inputs": 4}
    plain = noise_calibration.plan_without_noise(RECIPE, **facts, extractor="x", rounds=5)

    with pytest.raises(SettingError, match=rf"recipe\.user\.{name} is 0\.001 and {of_part} "):
        noise_calibration.add_noise(plain, target, bounds)


def test_a_sum_that_is_not_bounded_as_the_user_s_is_refused() -> None:
    plan = _plan()
    with pytest.raises(SettingError, match="bounded as the user's update"):
        replace(plan, mechanism=replace(plan.mechanism, sum_norm=3.0))
    with pytest.raises(SettingError, match="steps"):
        replace(plan, training=replace(plan.training, steps=2))


def test_more_insiders_need_more_noise() -> None:
    noises = [
        _configs(_plan(30, colluders=colluders)).update.noise for colluders in (0.0, 0.1, 0.2)
    ]
    assert noises == sorted(noises)
    assert UserLevelSettings().corruption == 0.1
