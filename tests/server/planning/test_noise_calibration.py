"""A server plans a private run: from a recipe and a target, without simulations."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from sottovoce.server.planning import noise_calibration, recipe
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.losses import Loss
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.schemes import unit_names
from sottovoce.shared.privacy.target import BudgetShares, PrivacyTarget
from sottovoce.shared.protocol.training_plan import Plan

FACTS = {"run": "r", "labels": ("calm", "angry"), "inputs": 4, "extractor": "descriptors"}
WITHOUT_SIMULATIONS = """
import sys
from sottovoce.server.planning import noise_calibration, recipe
from sottovoce.shared.privacy.target import PrivacyTarget

own = recipe.default_recipe(unit="user")
target = PrivacyTarget(unit="user", epsilon=4.0, shares=own.shares)
plan = noise_calibration.plan_without_noise(
    own, run="r", labels=("calm", "angry"), inputs=4, extractor="descriptors", rounds=2
)
plan = noise_calibration.add_noise(plan, target, own.bounds)
assert plan.scheme.unit == "user"
assert not [name for name in sys.modules if name.startswith("sottovoce.simulations")]
"""


def _plan(own: recipe.Recipe) -> Plan:
    return noise_calibration.plan_without_noise(own, **FACTS, rounds=2)  # type: ignore[arg-type]


def test_a_server_plans_without_simulations() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_SIMULATIONS], check=True)


@pytest.mark.parametrize("unit", unit_names())
def test_a_plan_costs_each_promised_unit_its_epsilon_and_hardly_less(unit: str) -> None:
    own = recipe.default_recipe(unit=unit)
    target = PrivacyTarget(unit=unit, epsilon=2.0, shares=own.shares)

    plan = noise_calibration.add_noise(_plan(own), target, own.bounds)

    assert plan.scheme.unit == unit
    for budget in noise_calibration.device_budgets(target):
        spent = accounting.compute_epsilon(plan.all_releases(), budget.delta, unit=budget.unit)
        assert 0.99 * 2.0 < spent <= 2.0


def _spent(noise_multiplier: float) -> float:
    """Squared mu of one Gaussian release."""
    return 1 / noise_multiplier**2


def test_each_release_of_an_utterance_s_gets_its_share_of_the_budget() -> None:
    shares = BudgetShares(label_counts=0.06, centre=0.04, normaliser=0.1, head_statistics=0.03)
    own = replace(recipe.default_recipe(unit="utterance"), shares=shares)
    target = PrivacyTarget(unit="utterance", epsilon=2.0, shares=shares)

    plan = noise_calibration.add_noise(_plan(own), target, own.bounds)

    whole = accounting.gaussian_mu(2.0, target.delta) ** 2
    left = whole - _spent(plan.count_noise)  # label counts have a noise of their own
    assert plan.centre is not None
    assert plan.normaliser is not None
    assert plan.calibration is not None
    assert _spent(plan.centre.noise_multiplier) == pytest.approx(0.04 * left)
    assert _spent(plan.calibration.noise_multiplier) == pytest.approx(0.03 * left)
    # The normaliser's is a share of what the centre leaves.
    assert _spent(plan.normaliser.noise_multiplier) == pytest.approx(0.1 * 0.96 * left)


@pytest.mark.parametrize("unit", ["user", "both"])
def test_each_sum_over_users_gets_its_share_of_the_budget(unit: str) -> None:
    shares = BudgetShares(label_counts=0.06, centre=0.04, normaliser=0.1, head_statistics=0.03)
    own = replace(recipe.default_recipe(unit=unit), shares=shares)
    target = PrivacyTarget(unit=unit, epsilon=2.0, user_delta=1e-4, shares=shares)

    user = noise_calibration.add_noise(_plan(own), target, own.bounds).user

    whole = accounting.gaussian_mu(2.0, 1e-4) ** 2
    assert user is not None
    assert user.centre is not None
    assert user.calibration is not None
    assert _spent(user.counts.noise_multiplier) == pytest.approx(0.06 * whole)
    assert _spent(user.centre.noise_multiplier) == pytest.approx(0.04 * whole)
    assert _spent(user.calibration.noise_multiplier) == pytest.approx(0.03 * whole)


@pytest.mark.parametrize("centre", [True, False])
def test_one_secure_sum_brings_counts_and_centre_bounded_as_both_together(centre: bool) -> None:
    own = replace(recipe.default_recipe(unit="user", secure=True), centre=centre)
    target = PrivacyTarget(unit="user", secure=True, shares=own.shares)
    noised = noise_calibration.add_noise(_plan(own), target, own.bounds)

    plan = noise_calibration.add_secure_aggregation(noised, target, own.bounds, devices=20)

    assert plan.user is not None
    assert (plan.user.centre is not None) == centre
    assert plan.user.secure is not None
    enrolment = plan.user.secure.enrolment
    assert enrolment.clip_norm == math.sqrt(1 + centre), "each part is bounded by 1"
    assert enrolment.parameters == len(plan.labels) + centre * plan.model.inputs


def test_bounds_and_losses_that_a_unit_cannot_keep_are_refused() -> None:
    own = recipe.default_recipe(unit="both")
    target = PrivacyTarget(unit="both", shares=own.shares)
    grouped = replace(own.bounds, user=replace(own.user, min_separation=2))
    with pytest.raises(SettingError, match="need unit 'user'"):
        noise_calibration.add_noise(_plan(own), target, grouped)
    coupled = replace(own, loss=Loss(kind="mmce"))
    with pytest.raises(SettingError, match="couples the utterances"):
        noise_calibration.add_noise(_plan(coupled), target, own.bounds)
