"""Lower bounds on epsilon from right guesses about many canaries of one run.

Each canary is in with probability 1/2, independently of all others; the surest are guessed. Two
analyses bound how often that succeeds: by (epsilon, delta)-DP alone (Steinke, Nasr & Jagielski
2023, arXiv 2305.08846), and by a trade-off function (Mahloujifar, Melis & Chaudhuri 2024, arXiv
2410.22235). The second takes any: that of (epsilon, delta)-DP supposes nothing and loses less to
delta, that of a Gaussian mechanism supposes one.

Devices that hold canaries of their own, and draw noise of their own, are together one run: their
product hides each canary as well as its own device does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.simulations.audit.bounds.gaussian import MAX_EPSILON, Floats

LeastWrong = Callable[[float], float]
"""From a rate of right guesses about one canary, the least rate of wrong ones that a trade-off
function f allows: f(1 - x), where both are joint with whatever else was seen."""

_MAX_MU: Final = 100.0
_PARTS: Final = (256, 64, 16, 4, 1)
_FEWEST: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Guesses:
    """Guesses about the canaries of one run.

    Attributes:
        canaries: Examples that were included with probability 1/2 each, independently, m.
        guesses: How many of them were guessed, at most m; the number must not depend on which were
            in.
        correct: How many guesses were right, at most ``guesses``.

    Raises:
        SettingError: More of one than of the one before.
    """

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.guesses <= self.canaries or self.canaries < 1:
            raise SettingError(
                f"{self.correct} correct of {self.guesses} guesses about {self.canaries} canaries; "
                "each must be at most the next, and one canary is the least"
            )


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Compute the chance of so many right guesses about one run, were it (epsilon, delta)-DP.

    Theorem 5.2 and Appendix D of Steinke, Nasr & Jagielski (2023).

    Args:
        guesses: What was guessed.
        epsilon: Epsilon of the hypothesis, 0 or above.
        delta: Delta of the hypothesis, in [0, 1).

    Example:
        >>> p_value(Guesses(canaries=10, guesses=10, correct=10), 0.0, 0.0) == 2**-10
        True
    """
    number, correct = guesses.guesses, guesses.correct
    # Randomised response is the worst case: each guess is right with e^eps / (1 + e^eps).
    right = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, number, right))
    # 0 right guesses are certain, and the correction for delta below has no terms.
    if not correct:
        return 1.0
    steps = np.arange(1, correct + 1)
    below = np.cumsum(binom.pmf(correct - steps, number, right))
    worst = max(0.0, float((below / steps).max()))
    return min(1.0, tail + worst * delta * 2 * guesses.canaries)


def bound_by_epsilon_delta(guesses: Guesses, *, delta: float, alpha: float) -> float:
    """Find the largest epsilon that so many right guesses refute; see :func:`p_value`.

    Args:
        guesses: What was guessed.
        delta: Delta of the promise, in [0, 1).
        alpha: Chance that the true epsilon is smaller, in (0, 1).

    Example:
        >>> guesses = Guesses(canaries=100, guesses=100, correct=95)
        >>> round(bound_by_epsilon_delta(guesses, delta=0.0, alpha=0.05), 2)
        2.17
    """
    _check(delta, alpha)
    return _largest(lambda epsilon: p_value(guesses, epsilon, delta) < alpha, MAX_EPSILON)


def refutes(guesses: Guesses, least_wrong: LeastWrong, *, alpha: float) -> bool:
    """Decide whether so many right guesses refute a trade-off function at ``alpha``.

    Algorithm 3 of Mahloujifar, Melis & Chaudhuri (2024), for canaries that are in or out. Let
    r(t) and h(t) be the rates per canary of right and wrong guesses in runs with at least t right
    ones. Had a canary been the other way, its right guess would be a wrong one and the run have one
    right guess less, so h(t - 1) >= f(1 - r(t)). Beginning with probability alpha for the number of
    right guesses that was seen, each step adds the least that f allows; if that comes to more
    guesses than there were, such a run was less likely than alpha.

    Args:
        guesses: What was guessed.
        least_wrong: The trade-off function as :func:`epsilon_delta_wrong` and
            :func:`gaussian_wrong` give it: convex and rising, 0 at 0.
        alpha: Chance to refute it though it is true, in (0, 1).

    Example:
        >>> everything = Guesses(canaries=100, guesses=100, correct=100)
        >>> refutes(everything, gaussian_wrong(1.0), alpha=0.05)
        True
        >>> refutes(everything, gaussian_wrong(5.0), alpha=0.05)
        False
    """
    number, canaries = guesses.guesses, guesses.canaries
    right = alpha * guesses.correct / canaries
    wrong = alpha * (number - guesses.correct) / canaries
    total = number / canaries
    for left in range(guesses.correct - 1, -1, -1):
        needed = least_wrong(right)
        # From here on nothing changes any more.
        if needed <= wrong:
            return False
        right, wrong = right + left / (number - left) * (needed - wrong), needed
        if right + wrong > total:
            return True
    return False


def epsilon_delta_wrong(epsilon: float, delta: float) -> LeastWrong:
    """Make the trade-off function of (epsilon, delta)-DP; it supposes nothing more.

    Example:
        >>> round(epsilon_delta_wrong(1.0, 0.0)(0.5), 3)  # 0.5 / e
        0.184
    """
    shrink, grow = math.exp(-epsilon), math.exp(epsilon)
    return lambda right: max(0.0, shrink * (right - delta), 1 - delta - grow * (1 - right))


def gaussian_wrong(mu: float) -> LeastWrong:
    """Make the trade-off function of a Gaussian mechanism of so much mu.

    Example:
        >>> round(gaussian_wrong(1.0)(0.5), 3)  # the normal distribution at -1
        0.159
    """
    return lambda right: float(ndtr(ndtri(right) - mu))


def bound_by_trade_off(guesses: Guesses, *, delta: float, alpha: float) -> float:
    """Find the largest epsilon whose trade-off function right guesses refute.

    It supposes no more than :func:`bound_by_epsilon_delta`, and is no weaker where delta matters:
    it need not grant that all of delta's failures fall together.

    Args:
        guesses: What was guessed.
        delta: Delta of the promise, in [0, 1).
        alpha: Chance that the true epsilon is smaller, in (0, 1).

    Example:
        >>> guesses = Guesses(canaries=20_000, guesses=1_000, correct=985)
        >>> round(bound_by_trade_off(guesses, delta=1e-5, alpha=0.01), 1)
        3.6
    """
    _check(delta, alpha)
    return _largest(
        lambda epsilon: refutes(guesses, epsilon_delta_wrong(epsilon, delta), alpha=alpha),
        MAX_EPSILON,
    )


def bound_mu(guesses: Guesses, *, alpha: float) -> float:
    """Find the largest mu of a Gaussian mechanism that right guesses refute.

    Args:
        guesses: What was guessed.
        alpha: Chance that the true mu is smaller, in (0, 1).

    Example:
        >>> round(bound_mu(Guesses(canaries=20_000, guesses=1_000, correct=985), alpha=0.01), 1)
        1.0
    """
    _check(0.0, alpha)
    return _largest(lambda mu: refutes(guesses, gaussian_wrong(mu), alpha=alpha), _MAX_MU)


def guess_counts(canaries: int) -> list[int]:
    """Choose the numbers of guesses to try, which depend on nothing but the number of canaries.

    Few sure guesses or many unsure ones: which is better depends on the noise.

    Example:
        >>> guess_counts(512)
        [8, 32, 128, 512]
    """
    return sorted({min(canaries, max(_FEWEST, canaries // part)) for part in _PARTS})


def count_guesses(scores: Floats, included: NDArray[np.bool_], numbers: list[int]) -> list[Guesses]:
    """Guess the canaries whose scores are furthest from 0, and count the right guesses.

    Args:
        scores: One a canary, above 0 where it seems to be in, below where out, shape (canaries,).
        included: Which were in, shape (canaries,).
        numbers: Numbers of guesses, each at most that of canaries.
    """
    order = np.argsort(-np.abs(scores))
    right = np.cumsum((scores[order] > 0) == included[order])
    return [
        Guesses(canaries=len(scores), guesses=number, correct=int(right[number - 1]))
        for number in numbers
    ]


def find_best(
    tried: list[Guesses], bound: Callable[[Guesses, float], float], *, confidence: float
) -> tuple[float, Guesses]:
    """Find the best bound over several numbers of guesses; all hold together at ``confidence``.

    Args:
        tried: What was guessed, by number of guesses.
        bound: From guesses and an error probability to a bound.
        confidence: In (0, 1).

    Returns:
        The bound, and the guesses behind it.
    """
    # Union bound over the numbers of guesses.
    alpha = (1 - confidence) / len(tried)
    found = [(bound(guesses, alpha), guesses) for guesses in tried]
    return max(found, key=lambda pair: (pair[0], pair[1].guesses))


def _check(delta: float, alpha: float) -> None:
    validation.require_between(0, 1, alpha=alpha)
    if not 0 <= delta < 1:
        raise SettingError(f"delta is {delta}; it must be in [0, 1)")


def _largest(is_refuted: Callable[[float], bool], limit: float) -> float:
    """The largest value that is refuted, where all smaller ones are too; 0 if there is none."""
    low, high = 0.0, 1.0
    # First a bracket, then halvings of it.
    while high < limit and is_refuted(high):
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return min(low, limit)
