"""The noise that is found keeps its budget, and wastes hardly any."""

import math
from dataclasses import replace

import pytest
from builders import make_release, make_sum_release

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.release import (
    DISCRETISATION_SLACK,
    Mechanism,
    PrivacyUnit,
    Release,
    ReleaseKind,
)

DELTA = 1e-5
OPEN = Release(kind=ReleaseKind.GRADIENT, mechanism=Mechanism.NONE, run="r", round=1)


@pytest.mark.parametrize(
    ("budget", "rate", "steps"), [(0.5, 1.0, 1), (2.0, 1.0, 16), (8.0, 1.0, 4), (1.0, 0.1, 50)]
)
def test_calibration_never_errs_on_the_weak_side(budget: float, rate: float, steps: int) -> None:
    def plan(noise: float) -> list[Release]:
        return [make_release(10.0), make_release(noise, rate=rate, steps=steps)]

    noise = accounting.calibrate_noise_multiplier(plan, budget, DELTA)

    assert accounting.compute_epsilon(plan(noise), DELTA) <= budget
    chosen = accounting.filter_of_order(accounting.choose_renyi_order(plan(noise), DELTA))
    assert chosen.compute_epsilon(plan(noise), DELTA) <= budget
    less = plan(noise * 0.998)
    chosen = accounting.filter_of_order(accounting.choose_renyi_order(less, DELTA))
    assert chosen.compute_epsilon(less, DELTA) > budget, "and wastes hardly any"


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_that_is_none_is_refused(budget: float) -> None:
    with pytest.raises(SettingError, match="epsilon"):
        accounting.calibrate_noise_multiplier(lambda noise: [make_release(noise)], budget, DELTA)


def test_a_plan_that_spends_it_all_elsewhere_is_refused() -> None:
    with pytest.raises(SettingError, match=r"0\.1 at delta 1e-05 is too small"):
        accounting.calibrate_noise_multiplier(
            lambda noise: [make_release(1.0), make_release(noise)], 0.1, DELTA
        )
    with pytest.raises(SettingError, match="too small"):
        accounting.calibrate_noise_multiplier(lambda noise: [OPEN, make_release(noise)], 8.0, DELTA)


def test_calibration_leaves_room_for_grains() -> None:
    def plan(noise: float) -> list[Release]:
        return [make_sum_release(noise, discrete=True, near_gaussian=True)] * 40

    noise = accounting.calibrate_noise_multiplier(plan, 2.0, DELTA, unit=PrivacyUnit.USER)

    assert accounting.compute_epsilon(plan(noise), DELTA, unit=PrivacyUnit.USER) <= 2.0
    without = [make_sum_release(noise)] * 40
    assert (
        accounting.compute_epsilon(without, DELTA, unit=PrivacyUnit.USER)
        <= 2.0 - 40 * DISCRETISATION_SLACK
    )
    with pytest.raises(SettingError, match="too small"):
        accounting.calibrate_noise_multiplier(
            plan, 39 * DISCRETISATION_SLACK, DELTA, unit=PrivacyUnit.USER
        )


@pytest.mark.parametrize("unit", PrivacyUnit)
def test_calibration_keeps_the_budget_of_either_unit(unit: PrivacyUnit) -> None:
    def plan(noise: float) -> list[Release]:
        return [replace(make_sum_release(noise), noise_multiplier=noise, sensitivity=1.0)] * 3

    noise = accounting.calibrate_noise_multiplier(plan, 2.0, DELTA, unit=unit)

    assert accounting.compute_epsilon(plan(noise), DELTA, unit=unit) <= 2.0


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0.0, DELTA), (-1.0, DELTA), (math.nan, DELTA), (math.inf, DELTA), (1.0, 0.0), (1.0, 1.0)],
)
def test_a_promise_that_is_none_has_no_mu(epsilon: float, delta: float) -> None:
    with pytest.raises(SettingError, match=r"epsilon|delta"):
        accounting.gaussian_mu(epsilon, delta)
