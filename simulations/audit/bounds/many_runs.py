"""Lower bounds on epsilon from many independent trials, with and without a canary.

``epsilon_from_rates`` needs nothing but independent trials, and cannot exceed about
``log(trials)``. ``mu_from_rates`` assumes a Gaussian mechanism, as ours claims to be, and is nearly
tight.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.simulations.audit.bounds.gaussian import Floats, gaussian_epsilon

_THRESHOLDS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorRates:
    """Upper bounds on the error rates of a guess, at some confidence.

    Attributes:
        false_positive: Upper bound on the chance to see an absent canary, in (0, 1].
        false_negative: Upper bound on the chance to miss a present canary, in (0, 1].
    """

    false_positive: float
    false_negative: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EpsilonBound:
    """Lower bounds on epsilon from many trials.

    Attributes:
        epsilon: Lower bound without any assumption on the mechanism.
        epsilon_gaussian: Lower bound if the mechanism is a Gaussian one.
        mu: The Gaussian-DP parameter behind ``epsilon_gaussian``.
        ceiling: The largest ``epsilon`` that so many trials could have shown.
        trials: Trials that were counted, with and without the canary together.
    """

    epsilon: float
    epsilon_gaussian: float
    mu: float
    ceiling: float
    trials: int


def clopper_pearson_upper(hits: float, trials: int, alpha: float) -> float:
    """Compute the upper end of a one-sided Clopper-Pearson interval (1934).

    Args:
        hits: How often it happened, in [0, trials]; the expected figure where it is planned.
        trials: Of how many independent trials, at least 1.
        alpha: Chance that the true rate is higher, in (0, 1).

    Example:
        >>> round(clopper_pearson_upper(0, 100, 0.05), 4)
        0.0295
    """
    validation.require_at_least(1, trials=trials)
    validation.require_between(0, 1, alpha=alpha)
    if not 0 <= hits <= trials:
        raise SettingError(f"hits is {hits}; it must lie between 0 and trials, {trials}")
    return float(_clopper_pearson_upper(np.array([hits]), trials, alpha)[0])


def _clopper_pearson_upper(hits: Floats, trials: int, alpha: float) -> Floats:
    """The same for many figures at once."""
    # Beta(hits + 1, 0) is not defined; those entries are replaced by 1.
    left = np.maximum(trials - hits, 1e-12)
    found: Floats = np.where(hits >= trials, 1.0, beta.ppf(1 - alpha, hits + 1, left))
    return found


def epsilon_from_rates(rates: ErrorRates, delta: float) -> float:
    """Compute the least epsilon that allows these rates.

    Kairouz et al. 2015; as an audit, Jagielski et al. 2020.

    Example:
        >>> rates = ErrorRates(false_positive=0.1, false_negative=0.1)
        >>> round(epsilon_from_rates(rates, 0.0), 3)  # log(0.9 / 0.1)
        2.197
    """
    # (epsilon, delta)-DP is symmetric in the two kinds of errors: both inequalities must hold.
    wrong = (rates.false_positive, rates.false_negative)
    ratios = [(1 - delta - other) / one for one, other in (wrong, wrong[::-1])]
    return max(0.0, *(math.log(ratio) if ratio > 0 else 0.0 for ratio in ratios))


def mu_from_rates(rates: ErrorRates) -> float:
    """Compute the least mu whose Gaussian mechanism allows these rates (Nasr et al. 2023).

    Example:
        >>> round(mu_from_rates(ErrorRates(false_positive=0.1, false_negative=0.1)), 3)
        2.563
    """
    return max(0.0, float(ndtri(1 - rates.false_positive) - ndtri(rates.false_negative)))


def bound_from_trials(
    selection_scores: tuple[Floats, Floats],
    counted_scores: tuple[Floats, Floats],
    *,
    delta: float,
    confidence: float,
) -> EpsilonBound:
    """Compute lower bounds from the scores of independent trials without and with a canary.

    The thresholds are chosen on other trials than those that are counted, so each bound holds at
    ``confidence`` by itself.

    Args:
        selection_scores: Scores (without, with) that only choose thresholds, each shape (trials,).
        counted_scores: Scores (without, with) that are counted, each shape (trials,).
        delta: Delta of the promise, in (0, 1).
        confidence: In (0, 1).

    Guarantees:
        Whatever the scores are, and however the thresholds were chosen: if the mechanism is
        (e, delta)-DP, ``epsilon`` passes e with chance 1 - confidence at most; if it is e's
        Gaussian mechanism, so does ``epsilon_gaussian``.
    """
    validation.require_between(0, 1, confidence=confidence, delta=delta)
    # Half of the doubt for each kind of error (union bound).
    alpha = (1 - confidence) / 2
    sizes = len(counted_scores[0]), len(counted_scores[1])
    cuts = _thresholds(selection_scores)
    planned = _expected_rates(selection_scores, cuts, sizes, alpha)
    # Each bound is best at a threshold of its own.
    best = cuts[int(np.argmax([epsilon_from_rates(rates, delta) for rates in planned]))]
    tight = cuts[int(np.argmax([mu_from_rates(rates) for rates in planned]))]
    mu = mu_from_rates(_measured_rates(counted_scores, tight, alpha))
    # No error at all: the best that so many trials could have shown.
    least = ErrorRates(
        false_positive=clopper_pearson_upper(0, sizes[0], alpha),
        false_negative=clopper_pearson_upper(0, sizes[1], alpha),
    )
    return EpsilonBound(
        epsilon=epsilon_from_rates(_measured_rates(counted_scores, best, alpha), delta),
        epsilon_gaussian=gaussian_epsilon(mu, delta),
        mu=mu,
        ceiling=epsilon_from_rates(least, delta),
        trials=sum(sizes),
    )


def _thresholds(scores: tuple[Floats, Floats]) -> Floats:
    """Where a score may be cut: a grid over all that was seen, and the middle between the two."""
    everything = np.concatenate(scores)
    low, high = float(everything.min()), float(everything.max())
    grid = np.linspace(low, high, _THRESHOLDS)
    return np.concatenate([[(scores[0].mean() + scores[1].mean()) / 2], grid])


def _expected_rates(
    scores: tuple[Floats, Floats], cuts: Floats, sizes: tuple[int, int], alpha: float
) -> list[ErrorRates]:
    """What each cut would show on so many trials if scores were normal; smoother than counts."""
    without, present = scores
    # Keeps a score without noise from dividing by zero.
    least = 1e-9 * (1e-300 + float(np.abs(np.concatenate(scores)).max()))
    raised = ndtr((without.mean() - cuts) / max(float(without.std()), least))
    missed = ndtr((cuts - present.mean()) / max(float(present.std()), least))
    pairs = zip(
        _clopper_pearson_upper(raised * sizes[0], sizes[0], alpha),
        _clopper_pearson_upper(missed * sizes[1], sizes[1], alpha),
        strict=True,
    )
    return [
        ErrorRates(false_positive=float(one), false_negative=float(other)) for one, other in pairs
    ]


def _measured_rates(scores: tuple[Floats, Floats], cut: float, alpha: float) -> ErrorRates:
    """Clopper-Pearson bounds on both kinds of errors at one cut."""
    without, present = scores
    return ErrorRates(
        false_positive=clopper_pearson_upper(int((without > cut).sum()), len(without), alpha),
        false_negative=clopper_pearson_upper(int((present <= cut).sum()), len(present), alpha),
    )
