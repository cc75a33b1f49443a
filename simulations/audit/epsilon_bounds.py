"""Lower bounds on epsilon from an attacker's right and wrong guesses, with confidence.

There are three bounds. ``epsilon_from_rates`` needs nothing but independent trials, and cannot
exceed about ``log(trials)``. ``mu_from_rates`` assumes a Gaussian mechanism, as ours claims to
be, and is nearly tight. ``best_one_run_bound`` needs a single trial with many canaries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri
from scipy.stats import beta, binom

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError

Floats = NDArray[np.float64]

MAX_EPSILON = 500.0
"""Upper end of searches for an epsilon."""

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


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Compute the epsilon of a mechanism that is exactly mu-GDP, at ``delta``.

    Example:
        >>> round(gaussian_epsilon(1.666, 1e-5), 2)
        8.0
    """
    validation.require_non_negative(mu=mu)
    validation.require_between(0, 1, delta=delta)
    if mu == 0:
        return 0.0

    def reached(epsilon: float) -> float:
        # In logarithms: exp(epsilon) alone overflows, its product with the tail does not.
        tail = math.exp(min(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)), 0.0))
        return float(ndtr(-epsilon / mu + mu / 2)) - tail

    low, high = 0.0, MAX_EPSILON
    # Sixty halvings of 500 are far below a double's resolution of epsilon.
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) > delta else (low, middle)
    return low


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


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Compute the chance of so many correct guesses about one run, were it (epsilon, delta)-DP.

    Theorem 5.2 and Appendix D of Steinke, Nasr & Jagielski (2023, arXiv 2305.08846).

    Args:
        canaries: Examples that were included with probability 1/2 each, independently, m.
        guesses: How many of them were guessed, r, at most m.
        correct: How many guesses were right, v, at most r.
        epsilon: Epsilon of the hypothesis, 0 or above.
        delta: Delta of the hypothesis, in [0, 1).

    Example:
        >>> p_value(10, 10, 10, 0.0, 0.0) == 2**-10
        True
    """
    if not 0 <= correct <= guesses <= canaries:
        raise SettingError(
            f"{correct} correct of {guesses} guesses about {canaries} canaries; each must be at "
            "most the next"
        )
    # Randomised response is the worst case: each guess is right with e^eps / (1 + e^eps).
    right = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, right))
    # 0 right guesses are certain, and the correction for delta below has no terms.
    if not correct:
        return 1.0
    steps = np.arange(1, correct + 1)
    below = np.cumsum(binom.pmf(correct - steps, guesses, right))
    worst = max(0.0, float((below / steps).max()))
    return min(1.0, tail + worst * delta * 2 * canaries)


def bound_from_one_run(
    canaries: int, guesses: int, correct: int, *, delta: float, alpha: float
) -> float:
    """Find the largest epsilon that so many correct guesses refute; see :func:`p_value`.

    Args:
        canaries: As in :func:`p_value`.
        guesses: As in :func:`p_value`.
        correct: As in :func:`p_value`.
        delta: Delta of the promise, in [0, 1).
        alpha: Chance that the true epsilon is smaller, in (0, 1).

    Example:
        >>> round(bound_from_one_run(100, 100, 95, delta=0.0, alpha=0.05), 2)
        2.17
    """
    low, high = 0.0, 1.0
    # The p-value grows with epsilon: first a bracket, then halvings of it.
    while high < MAX_EPSILON and p_value(canaries, guesses, correct, high, delta) < alpha:
        high += 1
    for _ in range(40):
        middle = (low + high) / 2
        refuted = p_value(canaries, guesses, correct, middle, delta) < alpha
        low, high = (middle, high) if refuted else (low, middle)
    return low


def best_one_run_bound(
    scores: Floats,
    included: NDArray[np.bool_],
    guess_counts: Sequence[int],
    *,
    delta: float,
    confidence: float,
) -> tuple[float, int, int]:
    """Find the best bound over several numbers of guesses on one run.

    Each bound gets its share of the error probability.

    The surest are guessed, those furthest from 0.

    Args:
        scores: One a canary, above 0 where it seems to be in, below where out, shape (canaries,).
        included: Which were in, shape (canaries,).
        guess_counts: Numbers of guesses to try, each at most the number of canaries.
        delta: Delta of the promise.
        confidence: Confidence of the best bound, in (0, 1).

    Returns:
        Lower bound on epsilon, guesses and correct guesses behind it.
    """
    order = np.argsort(-np.abs(scores))
    # Union bound over the numbers of guesses.
    alpha = (1 - confidence) / len(guess_counts)
    found = []
    for size in guess_counts:
        surest = order[:size]
        correct = int(((scores[surest] > 0) == included[surest]).sum())
        epsilon = bound_from_one_run(len(scores), size, correct, delta=delta, alpha=alpha)
        found.append((epsilon, size, correct))
    return max(found)
