"""The whole privacy curve of some releases: mu, trade-off function, groups and other deltas.

A pair (epsilon, delta) is one point of a curve. The curve itself is the trade-off function f (Dong,
Roth and Su 2022, "Gaussian differential privacy", JRSS B 84): whoever tests from all that was
released whether one unit was there, and wrongly says so with probability alpha, overlooks it with
probability at least f(alpha). ``accounting`` computes every epsilon, delta and mu; here they become
curves.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.release import PrivacyUnit, Release

GROUP_SIZES: Final = (2, 5, 10)
"""Units that are hidden together."""

OTHER_DELTAS: Final = (1e-3, 1e-5, 1e-10)
"""Deltas at which the same noise is stated too: for one user, for one utterance, in production."""

FALSE_ALARMS: Final = (
    *(0.0, 0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2),
    *(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
)
"""The alphas of a curve."""

USUAL_FALSE_ALARM: Final = 0.05
"""The alpha that sentences name, the usual level of a test."""

GAUSSIAN_BASIS: Final = (
    "Gaussian differential privacy, exactly: all releases are one Gaussian mechanism (Dong, Roth "
    "and Su 2022); k changes have k times its mu"
)
SLACK_BASIS: Final = (
    "Gaussian differential privacy but for the slack of discrete noise (Dong, Roth and Su 2022, "
    "proposition 2.12, from delta at every epsilon); k changes have k times its mu and slack"
)
SAMPLED_BASIS: Final = (
    "pessimistic privacy-loss distributions of the plan as fixed in advance (Dong, Roth and Su "
    "2022, proposition 2.12, from delta at every epsilon); k changes, all added or all removed, "
    "are a mixture of Gaussians (Ganesh 2024), or as if nothing were sampled where that is too wide"
)
DIVERGENCE_BASIS: Final = (
    "Renyi divergence (Mironov 2017), which has no exact curve: none is stated; k changes have k "
    "squared times its divergence"
)

_LAST_LOSS_DELTA: Final = 1e-9
"""Delta up to which epsilons are looked at: later ones move no beta that anybody could plot."""

_CURVE_POINTS: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyCurve:
    """Whole privacy curve of some releases, for one unit.

    Attributes:
        unit: Whose presence is hidden.
        delta: The promised delta.
        epsilon: What the releases cost one unit at ``delta``.
        mu: Of Gaussian differential privacy; None where no single Gaussian describes them.
        basis: How curve and groups were computed, with the source.
        alphas: Chances of a false alarm, rising from 0 to 1.
        betas: Least chance to overlook a unit at each; empty where no curve is known.
        groups: Epsilon at ``delta`` of so many units together, by their number.
        other_deltas: Epsilon of one unit at other deltas, by delta.
    """

    unit: PrivacyUnit
    delta: float
    epsilon: float
    mu: float | None
    basis: str
    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    groups: tuple[tuple[int, float], ...]
    other_deltas: tuple[tuple[float, float], ...]

    def to_record(self) -> dict[str, Any]:
        """JSON's view of the curve; an epsilon that is infinite becomes null."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "mu": self.mu,
            "basis": self.basis,
            "tradeoff": {"alpha": list(self.alphas), "beta": list(self.betas)},
            "groups": [
                {"changes": changes, "epsilon": _finite(epsilon)}
                for changes, epsilon in self.groups
            ],
            "other_deltas": [
                {"delta": delta, "epsilon": _finite(epsilon)}
                for delta, epsilon in self.other_deltas
            ],
        }


def compute_privacy_curve(
    releases: Iterable[Release],
    delta: float,
    *,
    unit: PrivacyUnit = PrivacyUnit.UTTERANCE,
    group_sizes: Sequence[int] = GROUP_SIZES,
) -> PrivacyCurve | None:
    """Compute the whole curve of some releases.

    Args:
        releases: Everything that was released of one unit.
        delta: The promised delta, in (0, 1).
        unit: Whose presence is hidden.
        group_sizes: Units that are hidden together, each at least 1.

    Returns:
        The curve; None where a release was unprotected.

    Guarantees:
        - No beta is above the true trade-off function, no epsilon below the true one.

    Raises:
        SettingError: ``delta`` outside (0, 1), or a group below 1.
    """
    releases = list(releases)
    epsilon = accounting.compute_epsilon(releases, delta, unit=unit)
    if math.isinf(epsilon):
        return None
    mu = accounting.compute_mu(releases, unit=unit)
    slack = accounting.discretisation_slack(releases, unit=unit)
    if mu is not None and not slack:
        basis, betas = GAUSSIAN_BASIS, [gaussian_tradeoff(mu, one) for one in FALSE_ALARMS]
    else:
        last = accounting.compute_epsilon(releases, _LAST_LOSS_DELTA, unit=unit)
        epsilons = [last * n / (_CURVE_POINTS - 1) for n in range(_CURVE_POINTS)]
        deltas = accounting.compute_deltas(releases, epsilons, unit=unit)
        basis = SAMPLED_BASIS if mu is None else SLACK_BASIS
        betas = [tradeoff_from_deltas(epsilons, deltas, one) for one in FALSE_ALARMS]
        if deltas[-1] == 1.0:
            basis, betas = DIVERGENCE_BASIS, []
    return PrivacyCurve(
        unit=unit,
        delta=delta,
        epsilon=epsilon,
        mu=mu,
        basis=basis,
        alphas=FALSE_ALARMS if betas else (),
        betas=tuple(betas),
        groups=tuple(
            (size, accounting.compute_group_epsilon(releases, delta, changes=size, unit=unit))
            for size in group_sizes
        ),
        other_deltas=tuple(
            (other, accounting.compute_epsilon(releases, other, unit=unit))
            for other in OTHER_DELTAS
            if other != delta
        ),
    )


def gaussian_tradeoff(mu: float, alpha: float) -> float:
    """Compute the trade-off function of one Gaussian mechanism.

    Dong, Roth and Su 2022, equation 6: Phi(Phi^-1(1 - alpha) - mu).

    Args:
        mu: Distance of the means over the standard deviation, at least 0.
        alpha: Chance of a false alarm, in [0, 1].

    Returns:
        The least chance to overlook what is tested for, in [0, 1].

    Example:
        >>> round(gaussian_tradeoff(1.0, 0.05), 3), gaussian_tradeoff(0.0, 0.5)
        (0.74, 0.5)
    """
    if alpha in (0.0, 1.0):
        return 1.0 - alpha
    # By the complementary error function: it keeps its digits in the tails.
    return 0.5 * math.erfc((mu + NormalDist().inv_cdf(alpha)) / math.sqrt(2))


def tradeoff_from_deltas(epsilons: Sequence[float], deltas: Sequence[float], alpha: float) -> float:
    """Compute the trade-off function that all pairs (epsilon, delta) together guarantee.

    Dong, Roth and Su 2022, propositions 2.5 and 2.12: each pair guarantees
    max(0, 1 - delta - e^epsilon alpha, e^-epsilon (1 - delta - alpha)), and all hold at once.

    Args:
        epsilons: Each 0 or above.
        deltas: The delta of each; larger than the true one is safe.
        alpha: Chance of a false alarm, in [0, 1].

    Returns:
        The least chance to overlook what is tested for, in [0, 1].

    Example:
        >>> tradeoff_from_deltas([0.0], [0.1], alpha=0.2)
        0.7
    """
    # e^-epsilon times what the other line has: floats overflow where epsilon passes 709.
    lines = (
        max(
            1 - delta - math.exp(min(epsilon, 700.0)) * alpha,
            math.exp(-epsilon) * (1 - delta - alpha),
        )
        for epsilon, delta in zip(epsilons, deltas, strict=True)
    )
    return max(0.0, *lines)


def _finite(value: float) -> float | None:
    """What JSON can hold."""
    return value if math.isfinite(value) else None
