"""Utterances in secure sums: the booked noise is that of the honest devices, and no more."""

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch

from sottovoce.server.aggregation.private_sums import PrivateAggregator
from sottovoce.server.aggregation.released_sums import ReleasedSum
from sottovoce.server.planning import noise_calibration, recipe
from sottovoce.shared.calibration.head_statistics import SENSITIVITY
from sottovoce.shared.errors import LedgerError, MessageError, SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.bounds import UserLevelSettings
from sottovoce.shared.privacy.release import (
    DISCRETISATION_SLACK,
    NoiseShares,
    PrivacyUnit,
    Release,
    ReleaseKind,
)
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.privacy.user_level import SecureSumConfigs
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.secure_aggregation import parameter_selection
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.simulations.verification.second_accountant import opacus_epsilon

RECIPE = recipe.default_recipe(unit="utterance", secure=True)
DELTA = 1e-5
SCHEME = scheme_for("utterance", secure=True)


def _plan(
    devices: int,
    *,
    answers: bool = True,
    epsilon: float = 8.0,
    sample_rate: float = 1.0,
    colluders: float = 0.1,
    dropout: float = 0.1,
    centre: bool = True,
) -> Plan:
    """The plan of a cohort, as a run makes it."""
    usual = replace(RECIPE, sample_rate=sample_rate, centre=centre)
    target = PrivacyTarget(unit="utterance", secure=True, epsilon=epsilon, shares=usual.shares)
    bounds = replace(usual.bounds, user=UserLevelSettings(dropout=dropout, corruption=colluders))
    facts: dict[str, Any] = {"run": "r", "labels": ("calm", "angry"), "inputs": 4}
    plain = noise_calibration.plan_without_noise(usual, **facts, extractor="x", rounds=5)
    plain = plain if answers else replace(plain, calibration=None)
    noised = noise_calibration.add_noise(plain, target, bounds)
    return noise_calibration.add_secure_aggregation(noised, target, bounds, devices=devices)


def test_a_plan_that_asks_for_no_head_statistics_has_no_sum_of_them() -> None:
    for answers in (True, False):
        secure = _plan(20, answers=answers).secure_sums
        assert secure is not None
        assert (secure.calibration is not None) == answers


def _configs(plan: Plan) -> SecureSumConfigs:
    assert plan.secure_sums is not None
    return plan.secure_sums


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of Gaussian differential privacy, by bisection on Balle and Wang's delta."""
    normal = NormalDist()
    low, high = 0.0, 200.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        found = normal.cdf(-middle / mu + mu / 2) - math.exp(middle) * normal.cdf(
            -middle / mu - mu / 2
        )
        low, high = (middle, high) if found > delta else (low, middle)
    return high


def _true_mu(plan: Plan, honest_lost: int) -> float:
    """Mu against a server that knows the noise of some devices, written down anew.

    Args:
        plan: The run's.
        honest_lost: How many devices of a sum of the quorum side with the server.
    """
    configs = _configs(plan)
    squares = []

    def add(config: SecureAggregationConfig, reach: float) -> None:
        # What one utterance changes, rounded up: each value may come out a step off.
        moved = reach / config.granularity + math.sqrt(config.parameters)
        squares.append(moved**2 / ((config.quorum - honest_lost) * config.noise**2))

    assert plan.normaliser is not None
    units = [1 / plan.scheme.sum_unit(plan, SumKind.LABEL_COUNTS)]
    if plan.centre:
        units.append(plan.centre.clip_norm / plan.scheme.sum_unit(plan, SumKind.CENTRE))
    add(configs.enrolment, math.hypot(*units))
    for _ in range(plan.rounds):
        add(configs.update, plan.mechanism.clip_norm)
    if configs.calibration:
        add(configs.calibration, SENSITIVITY)
    return math.sqrt(sum(squares) + 1 / plan.normaliser.noise_multiplier**2)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("devices", [12, 20, 73])
def test_the_claim_is_what_the_honest_devices_noise_comes_to(devices: int, epsilon: float) -> None:
    """Insiders as stated, and dropouts down to the quorum: recomputed from each device's noise."""
    plan = _plan(devices, epsilon=epsilon)
    configs = _configs(plan)
    claimed = accounting.compute_epsilon(plan.all_releases(), DELTA)
    slack = 25 * DISCRETISATION_SLACK

    assert claimed <= epsilon
    assert configs.dishonest == math.ceil(devices / 10)
    for colluders in range(devices // 2 + 1):
        if configs.update.quorum - colluders < 1:
            break
        true = _gaussian_epsilon(_true_mu(plan, colluders), DELTA)
        if colluders <= configs.dishonest:
            assert true <= claimed
        else:
            assert true > claimed - slack, "more noise than promised is wasted"
    assert _gaussian_epsilon(_true_mu(plan, configs.dishonest), DELTA) >= claimed - slack


@pytest.mark.parametrize("devices", [8, 30, 100])
def test_more_insiders_are_paid_for_with_more_noise(devices: int) -> None:
    """From none to as many as a graph can bear; above it there is no plan."""
    noises = []
    for colluders in (0.0, 0.1, 0.2, 0.3, 0.5):
        with suppress(SettingError):  # more than a graph of so few can bear
            plan = _plan(devices, colluders=colluders)
            configs = _configs(plan)
            assert _gaussian_epsilon(_true_mu(plan, configs.dishonest), DELTA) <= 8.0
            noises.append(configs.update.noise * configs.update.granularity)
    assert len(noises) >= 2
    assert noises == sorted(noises)


def test_both_accountants_agree_with_sampling_too() -> None:
    for rate in (1.0, 0.25):
        plan = _plan(20, sample_rate=rate)
        releases = tuple(plan.all_releases())
        order = accounting.choose_renyi_order(releases, DELTA)
        rule = accounting.filter_of_order(order)
        first = rule.compute_epsilon(releases, DELTA)
        second = opacus_epsilon(releases, DELTA, composition=rule.kind, renyi_order=order)

        assert first == pytest.approx(second, abs=0.05)
        assert first <= 8.0
    assert order is not None, "sampled steps are amplified"


def test_the_ledger_names_the_assumption_and_pays_the_slack() -> None:
    plan = _plan(20)
    of_sums = [one for one in plan.all_releases() if one.kind is not ReleaseKind.NORMALISER]
    own = plan.normaliser_release()

    assert own is not None
    assert own.shares is None, "the normaliser's noise is the device's own, in full"
    assert {one.shares for one in of_sums} == {NoiseShares(devices=18, colluders=2)}
    without = [replace(one, shares=None) for one in plan.all_releases()]
    paid = accounting.compute_epsilon(plan.all_releases(), DELTA)
    assert paid - accounting.compute_epsilon(without, DELTA) > len(of_sums) * DISCRETISATION_SLACK
    assert accounting.compute_epsilon(
        plan.all_releases(), DELTA, unit=PrivacyUnit.USER
    ) == math.inf  # fmt: skip
    for one in plan.all_releases():
        assert Release.from_dict(one.to_dict()) == one
    assert "shares" not in own.to_dict(), "records without shares are those of before"


@pytest.mark.parametrize(
    "shares",
    [{"devices": 1, "colluders": 0}, {"devices": 5, "colluders": 5}, {"devices": 5}, [], "x", 3],
)
def test_shares_that_make_no_sense_are_refused(shares: object) -> None:
    record = _plan(20).counts_release().to_dict()
    with pytest.raises(LedgerError):
        Release.from_dict(record | {"shares": shares})


def _with(plan: Plan, name: str, **changes: Any) -> Plan:
    """The plan with one sum's settings changed."""
    configs = _configs(plan)
    return replace(
        plan, secure_sums=replace(configs, **{name: replace(getattr(configs, name), **changes)})
    )


@pytest.mark.parametrize("name", ["enrolment", "update", "calibration"])
def test_a_plan_whose_shares_are_too_small_is_refused(name: str) -> None:
    """A server that states more noise than devices add, by whatever number it can turn."""
    plan = _plan(20)
    config = getattr(_configs(plan), name)
    _with(plan, name, noise=config.noise)

    with pytest.raises(SettingError, match="shares come to"):
        _with(plan, name, noise=config.noise * (1 - 1e-6))
    with pytest.raises(SettingError, match="must be equal"):
        _with(plan, name, sensitivity=config.sensitivity * 0.9)
    with pytest.raises(SettingError, match=r"must be equal|discretisation slack"):
        _with(plan, name, sensitivity=0.0)
    with pytest.raises(SettingError, match=r"shares come to|does not hide"):
        _with(plan, name, quorum=config.quorum - 1)
    with pytest.raises(SettingError, match="discretisation slack"):
        _with(plan, name, granularity=config.granularity * 400, noise=config.noise / 400)
    with pytest.raises(SettingError, match="must be equal"):
        _with(plan, name, parameters=config.parameters + 1)


def test_more_dishonest_devices_than_noise_was_made_for_are_refused() -> None:
    plan = _plan(20)
    with pytest.raises(SettingError, match=r"shares come to|does not hide"):
        replace(plan, secure_sums=replace(_configs(plan), dishonest=3))
    with pytest.raises(SettingError, match="or neither"):
        replace(plan, secure_sums=replace(_configs(plan), calibration=None))


def test_what_a_sum_cannot_hide_is_refused() -> None:
    plan = _plan(20)
    assert plan.calibration is not None

    with pytest.raises(SettingError, match=r"steps is 2; it must be 1"):
        replace(plan, training=replace(plan.training, steps=2))
    with pytest.raises(SettingError, match=r"calibration_subtracted_share is 0\.5"):
        replace(plan, calibration=replace(plan.calibration, subtracted_share=0.5))


@pytest.mark.parametrize("centre", [True, False])
def test_a_plan_travels_whole(centre: bool) -> None:
    plan = _plan(20, centre=centre)
    again = Plan.from_json(plan.to_json())

    assert again == plan
    assert again.scheme is SCHEME
    with pytest.raises(MessageError):
        Plan.from_json(plan.to_json().replace('"dishonest": 2', '"dishonest": -2'))


def test_the_same_noise_is_a_fraction_of_the_local_one() -> None:
    """What 20 devices have to add each, and what the server finds in the sum."""
    plan = _plan(20)
    local = noise_calibration.add_noise(
        noise_calibration.plan_without_noise(
            RECIPE, run="r", labels=("calm", "angry"), inputs=4, extractor="x", rounds=5
        ),
        PrivacyTarget(unit="utterance", shares=RECIPE.shares),
        RECIPE.bounds,
    )
    for kind in SumKind:
        one, all_of_it = (
            each.scheme.sum_noise_std(each, kind, devices=20, denominator=50.0)
            for each in (plan, local)
        )
        # 16 of 20 are counted on.
        assert one / all_of_it == pytest.approx(math.sqrt(20 / 16) / math.sqrt(20), rel=0.01), kind


def test_so_few_or_so_many_devices_have_no_such_plan() -> None:
    with pytest.raises(SettingError, match="no graph"):
        _plan(4)
    with pytest.raises(SettingError, match="sum fewer devices"):
        parameter_selection.select_part_parameters(
            5_000, 100_000, 0.5, dropout=0.1, corruption=0.1, noise_multiplier=1.0
        )


def test_a_real_server_keeps_each_sum_that_it_opened(tmp_path: Path) -> None:
    """Asked for again, a sum would cost every device's budget once more."""
    plan = _plan(20)
    opened = ReleasedSum(total=torch.ones(3, dtype=torch.float64), devices=18, users=("ada",))
    server = PrivateAggregator(plan, tmp_path, budgets=(), seed=None)
    booking = server.book_release("round-1", plan.gradient_release(1), may_be_observed=True)
    server.store_released_sum("round-1", [booking], opened)

    again = PrivateAggregator(plan, tmp_path, budgets=(), seed=None).get_released_sum("round-1")
    assert again is not None
    assert (again.devices, again.users) == (18, ("ada",))


def test_words_say_whom_it_holds_against() -> None:
    plan = _plan(20)
    target = PrivacyTarget(unit="utterance", secure=True)

    assert "at most 2 devices side with it" in plan.scheme.statement(plan, target)
    assert any("at least 18 devices" in one for one in plan.scheme.assumptions(plan))
    assert any("does not follow the protocol" in one for one in plan.scheme.not_protected(plan))


def _kinds(releases: Iterable[Release]) -> set[ReleaseKind]:
    return {one.kind for one in releases}


def test_everything_that_leaves_is_booked() -> None:
    assert _kinds(_plan(20).all_releases()) == {
        ReleaseKind.LABEL_COUNTS,
        ReleaseKind.CENTRE,
        ReleaseKind.NORMALISER,
        ReleaseKind.GRADIENT,
        ReleaseKind.HEAD_STATISTICS,
    }
