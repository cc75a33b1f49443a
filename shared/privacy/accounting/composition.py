"""Composition of releases: what each costs one unit, added up as far as that needs no accountant.

Two neighbouring relations, one for each unit: add or remove one utterance of a user, or all that a
user has (the device stays and adds nothing: that it takes part is no secret). Gaussian releases
without sampling compose exactly into one Gaussian. Rounds under correlated noise (``bands``)
compose like others as long as they are separated by at least as many rounds as there are bands;
nearer ones are charged as if they all moved the sum in one direction.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from sottovoce.shared.privacy.release import (
    DISCRETISATION_SLACK,
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)

NEIGHBOURING_RELATIONS = {
    PrivacyUnit.UTTERANCE: "add or remove one utterance",
    PrivacyUnit.USER: "add or remove everything that one user has",
}


class Composition(NamedTuple):
    """All steps of a ledger, such that two ledgers with the same releases are equal.

    Attributes:
        precision: Squared mu of all unsampled Gaussian steps, infinite if one is unprotected.
        sampled: (sampling rate, noise multiplier, steps) of every kind of sampled step, sorted.
        needs_renyi: Whether a step has no closed privacy-loss distribution.
        near_gaussian_sums: Sums whose noise is discrete, but near-Gaussian.
    """

    precision: float
    sampled: tuple[tuple[float, float, int], ...]
    needs_renyi: bool
    near_gaussian_sums: int = 0

    @property
    def slack(self) -> float:
        """Cost of near-Gaussian sums beyond a Gaussian, in epsilon and in the log of delta."""
        return self.near_gaussian_sums * DISCRETISATION_SLACK

    def unamplified(self) -> "Composition":
        """Charge the same steps as if every unit took part in each."""
        return self.as_group(1) if self.sampled else self

    def as_group(self, changes: int) -> "Composition":
        """Charge so many units together, as if each took part in every step."""
        whole = self.precision + math.fsum(steps / noise**2 for _, noise, steps in self.sampled)
        return self._replace(
            precision=float(f"{whole * changes**2:.12g}"),
            sampled=(),
            near_gaussian_sums=self.near_gaussian_sums * changes,
        )


class _MechanismSteps(NamedTuple):
    """What one release costs one unit."""

    rate: float
    noise: float
    steps: int
    needs_renyi: bool = False
    bands: int = 0
    near_gaussian_sums: int = 0


_UNPROTECTED = _MechanismSteps(1.0, 0.0, 1)
_NO_COST = _MechanismSteps(1.0, math.inf, 1)


def _utterance_step(release: Release) -> _MechanismSteps:
    """What it costs one utterance."""
    if release.noise_multiplier > 0:
        step = _MechanismSteps(release.sample_rate, release.noise_multiplier, release.steps)
        # Discrete noise in a secure sum, sampled or not: see noise_accounting.
        return step._replace(near_gaussian_sums=release.steps) if release.shares else step
    user = release.user
    if user is None or user.noised_by is not NoiseSource.DISTRIBUTED:
        # A promise to an utterance holds against the server too, which sees this in the clear.
        return _UNPROTECTED
    # The user stays, with another update: both lie in the ball, so up to two clip norms apart.
    return _sum_step(user, 1.0, user.noise_multiplier / 2)


def _user_step(release: Release) -> _MechanismSteps:
    """What it costs the whole user."""
    user = release.user
    if release.kind is ReleaseKind.NORMALISER:
        # It stays on the device and shapes updates, which are bounded and booked as a whole, or
        # else are unprotected themselves.
        return _NO_COST
    if user is None:
        return _UNPROTECTED
    return _sum_step(user, user.sample_rate, user.noise_multiplier)


def _sum_step(user: SumMechanism, rate: float, noise: float) -> _MechanismSteps:
    """What noise in sums over users costs, at a rate and a multiplier."""
    bands = user.bands.band_count if user.bands else 0
    near_gaussian = user.sums if user.near_gaussian else 0
    needs_renyi = user.discrete and not user.near_gaussian
    return _MechanismSteps(rate, noise, user.sums, needs_renyi, bands, near_gaussian)


_STEP_BY_UNIT = {PrivacyUnit.UTTERANCE: _utterance_step, PrivacyUnit.USER: _user_step}


def compose_releases(releases: Iterable[Release], unit: PrivacyUnit) -> Composition:
    """Add up what releases cost one unit.

    Args:
        releases: Everything one device released, in any order.
        unit: Whose presence is hidden.

    Returns:
        All that was spent; one unprotected release makes its precision infinite.
    """
    # Squared mus of Gaussians without sampling add up: all of them are one Gaussian.
    precision, needs_renyi, near_gaussian = 0.0, False, 0
    sampled: dict[tuple[float, float], int] = {}
    correlated: dict[str, list[tuple[int, int, float]]] = {}
    for release in releases:
        if release.mechanism is Mechanism.ENCRYPTION:
            continue
        step = _STEP_BY_UNIT[unit](release)
        if release.mechanism is Mechanism.NONE or not step.noise > 0:
            return Composition(math.inf, (), needs_renyi=False)
        needs_renyi = needs_renyi or step.needs_renyi
        near_gaussian += step.near_gaussian_sums
        if step.bands:
            rounds = correlated.setdefault(release.run, [])
            rounds.append((release.round, step.bands, math.sqrt(step.steps) / step.noise))
        elif step.rate == 1.0:
            precision += step.steps / step.noise**2
        else:
            key = (step.rate, step.noise)
            sampled[key] = sampled.get(key, 0) + step.steps
    precision += sum(map(_correlated_precision, correlated.values()))
    kinds = tuple(sorted((rate, noise, steps) for (rate, noise), steps in sampled.items()))
    # Summation order must not show: two ledgers with the same releases cost the same.
    return Composition(float(f"{precision:.12g}"), kinds, needs_renyi, near_gaussian)


def _correlated_precision(rounds: list[tuple[int, int, float]]) -> float:
    """Squared mu of one run's rounds under correlated noise.

    A round's noise reaches as far as its bands. Rounds out of each other's reach move coordinates
    of their own, and their squares add up. Rounds within reach may move the same ones, one way:
    their sum is squared.

    Args:
        rounds: Each with its bands and its own mu.
    """
    rounds = sorted(rounds)
    clusters = [rounds[0][2]]
    reach = rounds[0][1]
    for (before, _, _), (number, bands, mu) in pairwise(rounds):
        reach = max(reach, bands)
        if number - before < reach:
            clusters[-1] += mu
        else:
            clusters.append(mu)
            reach = bands
    return sum(mu * mu for mu in clusters)
