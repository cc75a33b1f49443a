"""The whole privacy curve of releases: mu, delta at every epsilon, and groups of units."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from dp_accounting import pld

from sottovoce.shared import validation
from sottovoce.shared.privacy.accounting.composition import Composition, compose_releases
from sottovoce.shared.privacy.accounting.loss_distributions import (
    COARSE_INTERVAL,
    DISCRETISATION_INTERVAL,
    MAX_PLD_PRECISION,
    MIN_DELTA,
    account_steps,
    approximate_precision,
    compose_losses,
    deviation_of,
    lacks_loss_distribution,
)
from sottovoce.shared.privacy.release import PrivacyUnit, Release

MAX_GROUP = 10**6
"""Largest group of units whose epsilon is computed."""

_MAX_MIXTURE = 100
"""Largest group of sampled units whose number in a step is a distribution of its own."""


def compute_mu(
    releases: Iterable[Release], *, unit: PrivacyUnit = PrivacyUnit.UTTERANCE
) -> float | None:
    """Compute the mu of Gaussian differential privacy of the releases together.

    The squared mus of Gaussians without sampling add up (Dong, Roth and Su 2022, corollary 3.3);
    sums of near-Gaussian discrete noise cost their slack beside it.

    Args:
        releases: Everything one device released, in any order.
        unit: Whose presence is hidden.

    Returns:
        At least 0, infinite where a release was unprotected. None where steps are sampled or noise
        is discrete on a coarse lattice: no single mu describes them.

    Example:
        >>> compute_mu([])
        0.0
    """
    spent = compose_releases(releases, unit)
    if spent.sampled or (spent.needs_renyi and not math.isinf(spent.precision)):
        return None
    return math.sqrt(spent.precision)


def discretisation_slack(
    releases: Iterable[Release], *, unit: PrivacyUnit = PrivacyUnit.UTTERANCE
) -> float:
    """Sum what near-Gaussian discrete noise costs beyond a Gaussian, in epsilon and log delta."""
    return compose_releases(releases, unit).slack


def compute_group_epsilon(
    releases: Iterable[Release],
    delta: float,
    *,
    changes: int,
    unit: PrivacyUnit = PrivacyUnit.UTTERANCE,
) -> float:
    """Compute what the releases cost a group of units that are all added or all removed.

    Args:
        releases: Everything one device released, in any order.
        delta: In (0, 1), the same for the group as for one unit.
        changes: Size k of the group, from 1 to ``MAX_GROUP``.
        unit: Whose presence is hidden.

    Returns:
        Epsilon of the group; infinity where a release was unprotected.

    Guarantees:
        - Never below the group's true epsilon, and that of ``compute_epsilon`` for one unit.
        - Gaussians without sampling: k units move them k times as far, so mu becomes k mu (Dong,
          Roth and Su 2022, theorem 2.14), which is exact; it holds for any k changes, and so for
          relabelling one utterance, which is one removed and one added. The slack of near-Gaussian
          sums grows with the distance at most: k times.
        - Sampled steps: of k units a binomial number takes part, which is a mixture of Gaussians
          (Ganesh 2024, "Tight group-level DP guarantees for DP-SGD with sampling"). Where its
          distribution of losses would fill the memory, as if each took part in every step.

    Raises:
        SettingError: ``delta`` outside (0, 1), NaN included, or ``changes`` outside its bounds.
    """
    validation.require_between(0, 1, delta=delta)
    validation.require_count(1, MAX_GROUP, changes=changes)
    spent = compose_releases(releases, unit)
    if changes == 1 or math.isinf(spent.precision):
        return account_steps(spent, delta, DISCRETISATION_INTERVAL, step_by_step=False)
    together = spent._replace(sampled=()).as_group(changes)
    if not spent.sampled:
        return account_steps(together, delta, DISCRETISATION_INTERVAL, step_by_step=False)
    reach = changes**2 * approximate_precision(spent)
    if lacks_loss_distribution(spent) or reach > MAX_PLD_PRECISION or changes > _MAX_MIXTURE:
        unamplified = spent.as_group(changes)
        return account_steps(unamplified, delta, DISCRETISATION_INTERVAL, step_by_step=False)
    slack = together.slack
    rest = delta * math.exp(-slack)
    if rest < MIN_DELTA:
        return math.inf
    return _group_losses(together.precision, spent.sampled, changes, rest) + slack


@lru_cache(maxsize=64)
def _group_losses(
    precision: float, sampled: tuple[tuple[float, float, int], ...], changes: int, delta: float
) -> float:
    """Epsilon of a Gaussian and of sampled steps in which a binomial number of units takes part."""
    # Losses of a group reach further: as many points, so that it takes no longer.
    interval = 2 * COARSE_INTERVAL * changes

    def mixture(rate: float, noise: float) -> Any:  # noqa: ANN401  (untyped)
        chances = [
            math.comb(changes, count) * rate**count * (1 - rate) ** (changes - count)
            for count in range(changes + 1)
        ]
        return pld.privacy_loss_distribution.from_mixture_gaussian_mechanism(
            noise, list(range(changes + 1)), chances, value_discretization_interval=interval
        )

    losses = compose_losses(precision, sampled, interval, mixture)
    return float(losses.get_epsilon_for_delta(delta))


def compute_deltas(
    releases: Iterable[Release],
    epsilons: Sequence[float],
    *,
    unit: PrivacyUnit = PrivacyUnit.UTTERANCE,
) -> list[float]:
    """Compute the least delta of the releases together at each of several epsilons.

    Args:
        releases: Everything one device released, in any order.
        epsilons: Each 0 or above.
        unit: Whose presence is hidden.

    Returns:
        A delta for each epsilon, in [0, 1]; 1 where a release was unprotected, or where noise is
        discrete on a coarse lattice, which has no closed distribution of losses.

    Guarantees:
        - Never below the true delta: exact for Gaussians without sampling (Balle and Wang 2018),
          pessimistic by discretisation where steps are sampled.
    """
    validation.require_non_negative(**{f"epsilons[{n}]": one for n, one in enumerate(epsilons)})
    spent = compose_releases(releases, unit)
    if not spent.precision and not spent.sampled:
        return [0.0] * len(epsilons)
    if math.isinf(spent.precision) or lacks_loss_distribution(spent):
        return [1.0] * len(epsilons)
    slack = spent.slack
    losses = _loss_function(spent)
    return [
        min(1.0, math.exp(slack) * float(losses.get_delta_for_epsilon(one - slack)))
        for one in epsilons
    ]


def _loss_function(spent: Composition) -> Any:  # noqa: ANN401  (untyped)
    """What tells delta at an epsilon: one Gaussian in closed form, or a distribution of losses."""
    if not spent.sampled:
        return pld.privacy_loss_mechanism.GaussianPrivacyLoss(deviation_of(spent.precision))

    def sampled_gaussian(rate: float, noise: float) -> Any:  # noqa: ANN401  (untyped)
        return pld.privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=COARSE_INTERVAL
        )

    return compose_losses(spent.precision, spent.sampled, COARSE_INTERVAL, sampled_gaussian)
