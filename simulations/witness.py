"""The second opinion: epsilon by Opacus' accountants, which no device ever asked.

Numerical composition of privacy random variables (Gopi et al. 2021,
https://arxiv.org/abs/2106.02848). It shares no code with ``shared.privacy.accountant``; ``recount``
compares the two.
"""

import math
import warnings
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from sottovoce.shared.privacy.release import GRAIN, Kind, Mechanism, NoisedBy, Release, Unit

PRV_ERROR = 0.005
"""How loose the upper bound may be."""

History = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sampling rate, steps) of every kind of step."""


def independent(
    releases: tuple[Release, ...], delta: float, *, unit: Unit = Unit.UTTERANCE
) -> float:
    """Epsilon by Opacus' accountants: an upper bound.

    By its PRV accountant, ``PRV_ERROR`` loose or less, and a grain for every sum of discrete
    noise; by its RDP accountant where such noise is not known to be fine.

    Args:
        releases: Everything one device, or one server about its users, let out, in any order.
        delta: In (0, 1).
        unit: Whose presence is hidden.

    Returns:
        Epsilon; 0 for nothing but ciphertext, infinite where one release was unprotected.
    """
    if any(release.mechanism is Mechanism.NONE for release in releases):
        return math.inf
    steps: dict[tuple[float, float], int] = {}
    grains, coarse = 0, False
    turns: dict[tuple[str, float, tuple[float, ...]], list[int]] = {}
    for release in releases:
        if release.mechanism is not Mechanism.GAUSSIAN:
            continue
        if unit is Unit.USER and release.kind is Kind.NORMALISER:
            continue  # it leaves only inside updates, which hide the user or cost infinity
        noise, rate, number = _steps(release, unit)
        if not noise > 0:
            return math.inf
        if release.user and release.user.discrete:
            coarse = coarse or not release.user.fine
            grains += number if release.user.fine else 0
        column = _column(release, unit)
        if column:
            turns.setdefault((release.run, noise, column), []).append(release.round)
            continue
        steps[noise, rate] = steps.get((noise, rate), 0) + number
    for (_, noise, column), rounds in turns.items():
        whole = noise * _whole_norm(column, [0]) / _whole_norm(column, rounds)
        steps[whole, 1.0] = steps.get((whole, 1.0), 0) + 1
    history = tuple(sorted((noise, rate, number) for (noise, rate), number in steps.items()))
    if not history:
        return 0.0
    grain = grains * GRAIN
    price = _by_renyi if coarse else _by_prv
    return price(history, delta * math.exp(-grain)) + grain


def _column(release: Release, unit: Unit) -> tuple[float, ...]:
    """The first column of C, where the noise that hides this unit hangs together over rounds."""
    user = release.user
    if user is None or user.bands is None or (unit is Unit.UTTERANCE and release.noise_multiplier):
        return ()
    return user.bands.coefficients


def _whole_norm(column: tuple[float, ...], rounds: Iterable[int]) -> float:
    """How far a user in these rounds moves CG, over the bound on one update.

    C is written out, one column a round, and the user's updates all point one way, which is the
    worst they can do where C has no negative entry. Nothing is taken for granted about supports.
    """
    rounds = list(rounds)
    size = max(rounds) + len(column)
    matrix = np.zeros((size, size))
    for place in range(size):
        for back, weight in enumerate(column[: size - place]):
            matrix[place + back, place] = weight
    updates = np.zeros(size)
    for number in rounds:
        updates[number] += 1.0
    return float(np.linalg.norm(matrix @ updates))


def _steps(release: Release, unit: Unit) -> tuple[float, float, int]:
    """(noise multiplier, sampling rate, steps) of one release, written down anew for one unit."""
    user = release.user
    if unit is Unit.USER:
        return (user.noise_multiplier, user.sample_rate, user.sums) if user else (0.0, 1.0, 1)
    if not release.noise_multiplier and user and user.noised_by is NoisedBy.SHARES:
        return user.noise_multiplier / 2, 1.0, user.sums  # what a server adds hides none from it
    return release.noise_multiplier, release.sample_rate, release.steps


@lru_cache(maxsize=1024)
def _by_prv(history: History, delta: float) -> float:
    """Opacus' figure for one history; users with the same releases share it."""
    # The independent witness: the only place but the trainer that asks Opacus anything.
    from opacus.accountants import PRVAccountant

    witness = PRVAccountant()
    witness.history = list(history)
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        # log(1 - rate) is minus infinity at rate 1, which is what the formula wants there.
        # Opacus also tells, of a bound that only sizes its grid, that it could be tighter.
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        return float(witness.get_epsilon(delta, eps_error=PRV_ERROR))


@lru_cache(maxsize=1024)
def _by_renyi(history: History, delta: float) -> float:
    """Opacus' figure where all that is known of discrete noise is its Renyi divergence."""
    from opacus.accountants import RDPAccountant

    witness = RDPAccountant()
    witness.history = list(history)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        return float(witness.get_epsilon(delta))
