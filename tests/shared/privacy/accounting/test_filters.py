"""Whoever chooses the next release after seeing the last answer never passes a budget.

The adversary is computed exactly: over the first answers by quadrature, with the best choice at
every one of them. It shares no code with the accountant.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from builders import make_release
from scipy.special import ndtr

from sottovoce.shared.errors import BudgetSpent, LedgerError, SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget, find_costliest_release
from sottovoce.shared.privacy.release import (
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)

DELTA = 1e-5
RATES = (1.0, 0.3, 0.01, 1e-5)


class Step(NamedTuple):
    """A sampled Gaussian of sensitivity 1."""

    rate: float
    noise: float

    def release(self, number: int = 1) -> Release:
        return make_release(self.noise, rate=self.rate, number=number)


def _releases(steps: Sequence[Step]) -> list[Release]:
    return [step.release(number) for number, step in enumerate(steps, 1)]


# --- the adversary, without the accountant --------------------------------------------------------


def loss(step: Step, answers: np.ndarray, *, present: bool) -> np.ndarray:
    """Logarithm of how much likelier the answers are with the unit, or without it."""
    moved = (2 * answers - 1) / (2 * step.noise**2)
    with np.errstate(divide="ignore"):
        ratio = np.logaddexp(np.log1p(-step.rate), math.log(step.rate) + moved)
    return ratio if present else -ratio


def delta_left(step: Step, epsilon: np.ndarray, *, present: bool) -> np.ndarray:
    """The delta of one step at these epsilons, in closed form."""
    bound = np.exp(np.clip(epsilon if present else -epsilon, -600, 600)) - (1 - step.rate)
    scale = np.exp(np.clip(epsilon, -600, 600))
    with np.errstate(divide="ignore", invalid="ignore"):
        edge = step.noise**2 * np.log(bound / step.rate) + 0.5
    edge = np.where(bound > 0, edge, -np.inf)
    sign = -1 if present else 1
    absent_mass = ndtr(sign * edge / step.noise)
    moved_mass = ndtr(sign * (edge - 1) / step.noise)
    present_mass = (1 - step.rate) * absent_mass + step.rate * moved_mass
    first, second = (present_mass, absent_mass) if present else (absent_mass, present_mass)
    return np.maximum(first - scale * second, 0.0)


def expect(
    step: Step, value: Callable[[np.ndarray], np.ndarray], *, present: bool, points: int = 801
) -> np.ndarray:
    """Expectation over a step's answers, with the unit or without, by quadrature."""
    z = np.linspace(-9, 9, points)
    weights = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    absent, moved = step.noise * z, 1 + step.noise * z
    parts = [(1 - step.rate, absent), (step.rate, moved)] if present else [(1.0, absent)]
    return sum(share * (value(answers) @ weights) for share, answers in parts if share)


def realised_delta(
    first: Step, menus: Callable[[tuple[Step, ...]], Sequence[Step]], epsilon: float, *, rounds: int
) -> float:
    """The delta that the best choices of further steps reach, for either neighbour."""

    def value(history: tuple[Step, ...], spent: np.ndarray, left: int, present: bool) -> np.ndarray:
        """Most that can still be reached at these losses; stopping is one of the choices."""
        best = np.maximum(-np.expm1(np.minimum(epsilon - spent, 0)), 0.0)
        for step in menus(history):
            if left == 1:
                reached = delta_left(step, epsilon - spent, present=present)
            else:

                def later(answers: np.ndarray, step: Step = step) -> np.ndarray:
                    after = spent[..., None] + loss(step, answers, present=present)
                    return value((*history, step), after, left - 1, present)

                reached = expect(step, later, present=present, points=161)
            best = np.maximum(best, reached)
        return best

    def of(present: bool) -> float:
        def at(answers: np.ndarray) -> np.ndarray:
            return value((first,), loss(first, answers, present=present), rounds, present)

        return float(expect(first, at, present=present, points=801 if rounds == 1 else 161))

    return max(of(True), of(False))


def _admits(budget: PrivacyBudget, folder: Path) -> Callable[[Sequence[Step]], bool]:
    """Whether a ledger would let a life pass."""
    ledger = Ledger(folder / "none.jsonl")

    def admits(steps: Sequence[Step]) -> bool:
        try:
            ledger.check_budget(_releases(steps), (budget,))
        except BudgetSpent:
            return False
        return True

    return admits


def _least_noise(
    admits: Callable[[Sequence[Step]], bool], before: Sequence[Step], rate: float
) -> list[Step]:
    """The step of a rate with the least noise that passes; none where none does."""
    low, high = 1e-2, 1e3
    if not admits([*before, Step(rate, high)]):
        return []
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if admits([*before, Step(rate, middle)]) else (middle, high)
    return [Step(rate, high)]


# --- the fault, and that it is mended -------------------------------------------------------------

FIRST, CHOICES = Step(1.0, 1 / 1.4), (Step(1.0, 1.1075), Step(1e-5, 0.107))


def test_refusing_by_the_composed_epsilon_is_no_filter() -> None:
    for choice in CHOICES:
        # Coarse is an upper bound as well.
        assert accounting.compute_epsilon(_releases([FIRST, choice]), DELTA, fast=True) <= 8.0

    reached = realised_delta(FIRST, lambda _: CHOICES, 8.0, rounds=1)

    assert reached == pytest.approx(1.97e-5, rel=1e-2), "twice the delta that was promised"


def test_without_a_choice_the_composed_epsilon_holds() -> None:
    for choice in CHOICES:
        assert realised_delta(FIRST, lambda _, only=choice: (only,), 8.0, rounds=1) <= DELTA


@pytest.mark.parametrize("order", [None, 2.0, 2.25, 2.5, 3.0, 4.0, 8.0])
def test_no_filter_leaves_the_choice(order: float | None, tmp_path: Path) -> None:
    admits = _admits(PrivacyBudget(epsilon=8.0, delta=DELTA, renyi_order=order), tmp_path)
    menu = [choice for choice in CHOICES if admits([FIRST, choice])]

    assert len(menu) < len(CHOICES)
    assert not admits([FIRST]) or realised_delta(FIRST, lambda _: menu, 8.0, rounds=1) <= DELTA


@pytest.mark.parametrize("seed", range(12))
def test_the_best_adversary_never_passes_the_budget(seed: int, tmp_path: Path) -> None:
    rng = Random(seed)
    delta = 10 ** rng.uniform(-7, -2)
    epsilon = rng.uniform(0.5, 10)
    order = None if seed % 3 == 0 else rng.uniform(1.5, 3) - math.log(delta) / epsilon
    order = order and round(order * 4) / 4
    admits = _admits(PrivacyBudget(epsilon=epsilon, delta=delta, renyi_order=order), tmp_path)
    whole = _least_noise(admits, (), rng.choice((1.0, 0.5)))[0]
    first = whole._replace(noise=whole.noise * rng.uniform(1.05, 2))
    menu = [step for rate in RATES for step in _least_noise(admits, [first], rate)]

    assert menu, "or there would be nothing to choose"
    assert realised_delta(first, lambda _: menu, epsilon, rounds=1) <= delta * (1 + 1e-6)


@pytest.mark.parametrize("order", [None, 3.5])
def test_two_choices_in_a_row_do_not_pass_it(order: float | None, tmp_path: Path) -> None:
    admits = _admits(PrivacyBudget(epsilon=6.0, delta=1e-4, renyi_order=order), tmp_path)
    first = Step(1.0, 1.3)

    def menu(history: tuple[Step, ...]) -> list[Step]:
        found = (_least_noise(admits, history, rate) for rate in (1.0, 0.01))
        # Half of what is left first, so that there is a choice afterwards.
        share = 1.4 if len(history) == 1 else 1.0
        return [step._replace(noise=step.noise * share) for steps in found for step in steps]

    menus = {(first,): menu((first,))}
    menus |= {(first, step): menu((first, step)) for step in menus[first,]}

    assert all(menus.values())
    assert realised_delta(first, menus.__getitem__, 6.0, rounds=2) <= 1e-4 * (1 + 1e-6)


# --- random strategies, simulated -----------------------------------------------------------------


def _simulated_delta(
    menu: Sequence[Step], admits: Callable[[Sequence[Step]], bool], epsilon: float, seed: int
) -> tuple[float, float]:
    """The realised delta of a random strategy over four rounds, and its standard error."""
    rng, paths = np.random.default_rng(seed), 20_000
    spent, used = np.zeros(paths), np.zeros((paths, 4), dtype=int)
    edges = np.sort(rng.uniform(-1, epsilon + 1, 3))
    for number in range(4):
        # Which step is next follows from what was answered so far.
        table = rng.integers(1, len(menu) + 1, 4)
        wanted = table[np.searchsorted(edges, spent)]
        for history in {tuple(row) for row in np.c_[used[:, :number], wanted].tolist()}:
            steps = [menu[one - 1] for one in history if one]
            here = (np.c_[used[:, :number], wanted] == history).all(1)
            if not admits(steps):
                continue
            step, count = steps[-1], int(here.sum())
            answers = step.noise * rng.standard_normal(count) + (rng.random(count) < step.rate)
            spent[here] += loss(step, answers, present=True)
            used[here, number] = history[-1]
    passed = np.maximum(-np.expm1(np.minimum(epsilon - spent, 0)), 0.0)
    return float(passed.mean()), float(passed.std() / math.sqrt(paths))


@pytest.mark.parametrize("order", [None, 6.0])
def test_random_strategies_never_pass_the_budget(order: float | None, tmp_path: Path) -> None:
    budget = PrivacyBudget(epsilon=1.5, delta=0.01, renyi_order=order)
    admits = _admits(budget, tmp_path)
    for seed in range(4):
        rng = Random(seed)
        menu = [
            Step(rate, rng.uniform(0.5, 2) * step.noise)
            for rate in RATES[:3]
            for step in _least_noise(admits, (), rate)
        ]
        reached, error = _simulated_delta(menu, admits, budget.epsilon, seed)
        assert reached <= budget.delta + 4 * error


def test_the_simulation_finds_a_budget_that_is_passed() -> None:
    menu = [Step(1.0, 1.2), Step(0.3, 0.6)]

    reached, error = _simulated_delta(menu, lambda _: True, 1.5, seed=1)

    assert reached > 0.01 + 4 * error


# --- what the filters charge ----------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[Step(1.0, 2.0)], [Step(1.0, 3.0), Step(1.0, 0.9)], []])
def test_without_sampling_the_gaussian_filter_is_what_it_was(steps: list[Step]) -> None:
    charged = accounting.GAUSSIAN_FILTER.compute_epsilon(_releases(steps), DELTA)

    assert charged == accounting.compute_epsilon(_releases(steps), DELTA)
    assert accounting.choose_renyi_order(_releases(steps), DELTA) is None


def test_the_gaussian_filter_amplifies_nothing() -> None:
    sampled = [Step(0.01, 2.0), Step(0.5, 3.0)]
    whole = [step._replace(rate=1.0) for step in sampled]

    charged = accounting.GAUSSIAN_FILTER.compute_epsilon(_releases(sampled), DELTA)

    assert charged == accounting.compute_epsilon(_releases(whole), DELTA)


@pytest.mark.parametrize("order", [2.0, 4.5, 32.0])
def test_the_renyi_filter_is_the_formula(order: float) -> None:
    steps = [Step(1.0, 2.0), Step(1.0, 4.0)]
    divergence = order / 2 * (1 / 4 + 1 / 16)
    converted = (
        divergence
        + math.log((order - 1) / order)
        - (math.log(DELTA) + math.log(order)) / (order - 1)
    )

    charged = accounting.RenyiFilter(order).compute_epsilon(_releases(steps), DELTA)

    assert charged == pytest.approx(converted, rel=1e-9)


@pytest.mark.parametrize("order", [2.0, 5.0])
def test_the_divergence_of_a_sampled_step_is_its_integral(order: float) -> None:
    step = Step(0.2, 1.5)
    power = expect(
        step, lambda y: np.exp(order * loss(step, y, present=True)), present=False, points=4001
    )
    converted = (
        math.log(power) / (order - 1)
        + math.log((order - 1) / order)
        - (math.log(DELTA) + math.log(order)) / (order - 1)
    )

    charged = accounting.RenyiFilter(order).compute_epsilon([step.release()], DELTA)

    assert charged == pytest.approx(converted, rel=1e-6)


def test_the_slack_of_discrete_sums_adds_up_at_an_order() -> None:
    def hidden(sums: int, *, fine: bool) -> Release:
        user = SumMechanism(
            noise_multiplier=5.0,
            clip_norm=1.0,
            noised_by=NoiseSource.DISTRIBUTED,
            sums=sums,
            discrete=fine,
            near_gaussian=fine,
        )
        return Release(
            kind=ReleaseKind.GRADIENT, mechanism=Mechanism.GAUSSIAN, run="r", round=1, user=user
        )

    rule = accounting.RenyiFilter(5.0)
    fine, plain = (
        rule.compute_epsilon([hidden(7, fine=one)], DELTA, unit=PrivacyUnit.USER)
        for one in (True, False)
    )

    assert fine - plain == pytest.approx(7e-4 * 5 / 4, rel=1e-6)


def test_unprotected_releases_cost_every_filter_everything() -> None:
    unprotected = Release(kind=ReleaseKind.GRADIENT, mechanism=Mechanism.NONE, run="r", round=1)
    for rule in (accounting.GAUSSIAN_FILTER, accounting.RenyiFilter(3.0)):
        assert rule.compute_epsilon([Step(0.1, 1.0).release(), unprotected], DELTA) == math.inf
        assert rule.compute_epsilon([Step(0.5, 1e12).release()], DELTA) >= 0.0
        assert rule.compute_epsilon([], DELTA) == 0.0
        with pytest.raises(SettingError, match="delta"):
            rule.compute_epsilon([], math.nan)


@pytest.mark.parametrize("order", [1.0, 0.0, -2.0, math.nan, math.inf, 2000.0])
def test_an_order_that_is_none_is_refused(order: float) -> None:
    with pytest.raises(LedgerError, match="renyi_order"):
        PrivacyBudget(epsilon=8.0, delta=DELTA, renyi_order=order)


def test_planned_noise_is_admitted_by_the_filter_that_it_chose(tmp_path: Path) -> None:
    def plan(noise: float) -> list[Release]:
        return [Step(1.0, 5.0).release(), *(Step(0.2, noise).release(n) for n in range(5))]

    releases = plan(accounting.calibrate_noise_multiplier(plan, 4.0, DELTA))
    order = accounting.choose_renyi_order(releases, DELTA)

    assert order is not None
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.check_budget(releases, (PrivacyBudget(epsilon=4.0, delta=DELTA, renyi_order=order),))
    with pytest.raises(BudgetSpent, match="by the Gaussian filter"):
        ledger.check_budget(releases, (PrivacyBudget(epsilon=4.0, delta=DELTA),))


# --- the order of a life --------------------------------------------------------------------------


def _budget(order: float | None, epsilon: float = 8.0) -> PrivacyBudget:
    return PrivacyBudget(epsilon=epsilon, delta=DELTA, renyi_order=order)


@pytest.mark.parametrize(("first", "then"), list(itertools.permutations([None, 3.0, 8.0], 2)))
def test_another_order_in_the_middle_of_a_life_must_pass_both(
    first: float | None, then: float | None, tmp_path: Path
) -> None:
    path, step = tmp_path / "ledger.jsonl", Step(0.1, 2.0).release()
    Ledger(path).book_release("one", step, (_budget(first),))

    charged = Ledger(path).charged_epsilon(_budget(then))

    alone = [_budget(order).filter.compute_epsilon([step], DELTA) for order in (first, then)]
    assert charged == max(alone)
    limit = (min(alone) + max(alone)) / 2
    with pytest.raises(BudgetSpent):
        Ledger(path).check_budget([Step(0.1, 1e3).release(2)], (_budget(then, limit),))


def test_a_life_from_before_orders_is_charged_without_amplification(tmp_path: Path) -> None:
    path, step = tmp_path / "ledger.jsonl", Step(1e-3, 0.7).release()
    Ledger(path).book_release("one", step, (_budget(None),))

    assert "renyi_orders" not in json.loads(path.read_text()), "the line is what it always was"
    assert Ledger(path).first_orders == {}
    whole = accounting.compute_epsilon([Step(1.0, 0.7).release()], DELTA)
    assert Ledger(path).charged_epsilon(_budget(4.0)) == whole


def test_the_order_is_in_the_chained_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).book_release("one", Step(0.1, 2.0).release(), (_budget(4.0),))
    Ledger(path).book_release("two", Step(0.1, 2.0).release(2), (_budget(6.0),))

    assert Ledger(path).first_orders == {PrivacyUnit.UTTERANCE: 4.0}
    path.write_bytes(path.read_bytes().replace(b'"utterance": 4.0', b'"utterance": 9.0'))
    with pytest.raises(LedgerError, match="line 2"):
        Ledger(path)


@pytest.mark.parametrize("orders", [[], "x", {"utterance": True}, {"utterance": 1}, {"all": 3.0}])
def test_orders_that_are_none_are_refused(orders: object, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).book_release("one", Step(0.1, 2.0).release(), (_budget(4.0),))
    record = json.loads(path.read_text()) | {"renyi_orders": orders}
    path.write_text(json.dumps(record, sort_keys=True) + "\n")

    with pytest.raises(LedgerError, match="line 1"):
        Ledger(path)


def test_one_run_of_a_fixed_plan_is_composed_and_two_are_filtered(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "server.jsonl", plan_is_fixed=True)
    step = Step(0.01, 1.0).release()
    ledger.book_release("one", step, (_budget(None),))

    assert ledger.charged_epsilon(_budget(None)) == accounting.compute_epsilon([step], DELTA)
    with pytest.raises(BudgetSpent):
        ledger.book_release(
            "two", Release.from_dict(step.to_dict() | {"run": "s"}), (_budget(None, 5),)
        )


def test_a_torn_line_is_charged_as_the_costliest_by_every_rule() -> None:
    whole, sampled = Step(1.0, 3.0).release(), Step(0.001, 1.5).release(2)
    charged = find_costliest_release([whole, sampled])

    for rule in (accounting.FIXED_PLAN, accounting.GAUSSIAN_FILTER, accounting.RenyiFilter(4.0)):
        for one in (whole, sampled):
            assert rule.compute_epsilon([charged], DELTA) >= rule.compute_epsilon([one], DELTA)
