"""Epsilon by Opacus' accountants, as a second opinion.

Numerical composition of privacy random variables (Gopi et al. 2021,
https://arxiv.org/abs/2106.02848). It shares no code with ``shared.privacy.accounting``;
``recompute`` compares the two.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np

from sottovoce.shared.privacy.release import (
    DISCRETISATION_SLACK,
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
)

PRV_ERROR = 0.005
"""Error of the upper bound on epsilon."""

_MAX_CELLS = 2e7
"""Cells of a grid of losses that fit into memory, a gibibyte with all copies."""

_MIN_DELTA = 1e-100
"""Delta below which floats run out of digits."""

History = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sampling rate, steps) of every kind of step."""


def opacus_epsilon(
    releases: tuple[Release, ...],
    delta: float,
    *,
    unit: PrivacyUnit = PrivacyUnit.UTTERANCE,
    composition: str = "fixed-plan",
    renyi_order: float | None = None,
) -> float:
    """Compute an upper bound on epsilon by Opacus' accountants.

    Uses the PRV accountant, at most ``PRV_ERROR`` above the truth, and ``DISCRETISATION_SLACK`` for
    every sum of discrete noise. Where such noise may not be near Gaussian, uses the RDP accountant.

    Args:
        releases: Everything one device, or one server about its users, released, in any order.
        delta: In (0, 1).
        unit: Unit of privacy.
        composition: The rule that an account states. Under ``gaussian-filter`` sampling counts for
            nothing; under ``renyi-filter`` Opacus' RDP analysis is asked at one order alone.
        renyi_order: That order; None for other rules.

    Returns:
        Epsilon; 0 for nothing but ciphertext, infinite where one release was unprotected.
    """
    if any(release.mechanism is Mechanism.NONE for release in releases):
        return math.inf
    steps: dict[tuple[float, float], int] = {}
    near_gaussian_sums, coarse = 0, False
    correlated: dict[tuple[str, float, tuple[float, ...]], list[int]] = {}
    for release in releases:
        if release.mechanism is not Mechanism.GAUSSIAN:
            continue
        if unit is PrivacyUnit.USER and release.kind is ReleaseKind.NORMALISER:
            continue  # it leaves only inside updates, which hide the user or cost infinity
        noise, rate, number = _steps(release, unit)
        # "not >": NaN is unprotected.
        if not noise > 0:
            return math.inf
        discrete, near_gaussian = _discreteness(release, unit)
        coarse = coarse or (discrete and not near_gaussian)
        near_gaussian_sums += number if near_gaussian else 0
        column = _column(release, unit)
        if column:
            correlated.setdefault((release.run, noise, column), []).append(release.round)
            continue
        steps[noise, rate] = steps.get((noise, rate), 0) + number
    for (_, noise, column), rounds in correlated.items():
        # One round has the multiplier's own sensitivity; several move the correlated noise further.
        whole = noise * _participation_norm(column, [0]) / _participation_norm(column, rounds)
        steps[whole, 1.0] = steps.get((whole, 1.0), 0) + 1
    history = _history(steps, amplifies=composition != "gaussian-filter")
    if not history:
        return 0.0
    # Near-Gaussian noise is Gaussian up to a factor e^slack on probabilities: epsilon and delta
    # pay.
    slack = near_gaussian_sums * DISCRETISATION_SLACK
    left = delta * math.exp(-slack)
    return _compose_history(history, left, coarse=coarse, order=renyi_order) + slack


def _history(steps: Mapping[tuple[float, float], int], *, amplifies: bool) -> History:
    """Every kind of step, sorted; at rate 1 where sampling is not to count."""
    return tuple(
        sorted((noise, rate if amplifies else 1.0, count) for (noise, rate), count in steps.items())
    )


def _discreteness(release: Release, unit: PrivacyUnit) -> tuple[bool, bool]:
    """Whether a release's noise is discrete, and whether it is near Gaussian."""
    if release.user:
        return release.user.discrete, release.user.discrete and release.user.near_gaussian
    # Shares of noise hide an utterance, in sums that are near Gaussian.
    shared = release.shares is not None and unit is PrivacyUnit.UTTERANCE
    return shared, shared


def _column(release: Release, unit: PrivacyUnit) -> tuple[float, ...]:
    """The first column of C, where the noise that hides this unit is correlated over rounds."""
    user = release.user
    if (
        user is None
        or user.bands is None
        or (unit is PrivacyUnit.UTTERANCE and release.noise_multiplier)
    ):
        return ()
    return user.bands.coefficients


def _participation_norm(column: tuple[float, ...], rounds: Iterable[int]) -> float:
    """How far a user in these rounds moves CG, over the bound on one update.

    C's columns of these rounds are added up, and the user's updates all point one way, which is the
    worst they can do where C has no negative entry. Nothing is taken for granted about supports.
    """
    # Only rows that a participation reaches: a ledger may name any round.
    moved: dict[int, float] = defaultdict(float)
    for number in rounds:
        for back, weight in enumerate(column):
            moved[number + back] += weight
    return math.sqrt(math.fsum(value * value for value in moved.values()))


def _steps(release: Release, unit: PrivacyUnit) -> tuple[float, float, int]:
    """(noise multiplier, sampling rate, steps) of one release, written down anew for one unit."""
    user = release.user
    if unit is PrivacyUnit.USER:
        return (user.noise_multiplier, user.sample_rate, user.sums) if user else (0.0, 1.0, 1)
    # Half: the server knows its own share of the distributed noise, or a bound on what devices add.
    if not release.noise_multiplier and user and user.noised_by is NoiseSource.DISTRIBUTED:
        return user.noise_multiplier / 2, 1.0, user.sums  # what a server adds hides none from it
    return release.noise_multiplier, release.sample_rate, release.steps


def _compose_history(history: History, delta: float, *, coarse: bool, order: float | None) -> float:
    """Epsilon of a history, at one Renyi order if one is set; infinite where floats lose delta."""
    if delta < _MIN_DELTA:
        return math.inf
    if order is not None:
        return max(_by_renyi(history, delta, order), 0.0)
    compute = _by_renyi if coarse or not _fits_grid(history, delta) else _by_prv
    return compute(history, delta)


def _fits_grid(history: History, delta: float) -> bool:
    """Whether the grid of the PRV accountant fits into memory: a ledger may name any numbers."""
    steps = sum(number for _, _, number in history)
    # It spans the losses, about epsilon, in cells of this width (Gopi et al. 2021, theorem 5.5).
    cell = PRV_ERROR / math.sqrt(steps * math.log(12 / delta) / 2)
    return _by_renyi(history, delta) <= _MAX_CELLS * cell


@lru_cache(maxsize=1024)
def _by_prv(history: History, delta: float) -> float:
    """Opacus' figure for one history; users with the same releases share it."""
    # The only module but the trainer that uses Opacus.
    from opacus.accountants import PRVAccountant

    second = PRVAccountant()
    second.history = list(history)
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        # log(1 - rate) is minus infinity at rate 1, which is what the formula wants there.
        # Opacus also tells, of a bound that only sizes its grid, that it could be tighter.
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        try:
            return float(second.get_epsilon(delta, eps_error=PRV_ERROR))
        # At the ends of floats it finds no epsilon; Renyi divergences bound it there as well.
        except (ValueError, RuntimeError, ArithmeticError):
            return _by_renyi(history, delta)


@lru_cache(maxsize=1024)
def _by_renyi(history: History, delta: float, order: float | None = None) -> float:
    """Opacus' figure from Renyi divergences: at one order, or at the best of its own."""
    from opacus.accountants import RDPAccountant

    second = RDPAccountant()
    second.history = list(history)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        return float(second.get_epsilon(delta, alphas=None if order is None else [order]))
