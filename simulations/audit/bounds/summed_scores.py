"""A lower bound on mu from the scores of many canaries of one run, taken as normal.

Guesses keep one bit of a score. The score of a canary whose server saw every round is a sum over
rounds of noisy signals, so it is close to normal, and two normal distributions, of canaries that
were in and of those that were not, say more (Agrawal et al. 2026, "Let's Ask Gauss", arXiv
2606.12733). Of that paper no more than the abstract and a summary were read here: that scores are
modelled as a pair of Gaussians, whose hockey-stick divergence gives epsilon. The intervals are
Student's and the chi-squared one.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, t

from sottovoce.shared import validation
from sottovoce.simulations.audit.bounds.gaussian import Floats, gaussian_epsilon


@dataclass(frozen=True, kw_only=True, slots=True)
class SummedScoresBound:
    """A lower bound on epsilon from scores, if the mechanism is a Gaussian one.

    Attributes:
        epsilon_gaussian: The bound.
        mu: The Gaussian-DP parameter behind it.
        canaries: How many were scored.
    """

    epsilon_gaussian: float
    mu: float
    canaries: int


def bound_from_scores(
    scores: Floats, included: NDArray[np.bool_], *, delta: float, confidence: float
) -> SummedScoresBound:
    """Compute a lower bound from how far the scores of canaries in and out lie apart.

    Args:
        scores: One a canary, larger where it seems to be in, shape (canaries,).
        included: Which were in, drawn independently of everything, shape (canaries,).
        delta: Delta of the promise, in (0, 1).
        confidence: Of the bound, in (0, 1).

    Guarantees:
        Scores that are normal, independent, and of one variance whose means lie at most mu standard
        deviations apart: ``mu`` passes that with chance 1 - confidence at most. Whatever else
        varies the scores makes it smaller.

    Example:
        >>> inside = np.arange(1000) % 2 == 0
        >>> bound_from_scores(np.zeros(1000), inside, delta=1e-5, confidence=0.95).mu
        0.0
    """
    validation.require_between(0, 1, confidence=confidence, delta=delta)
    present, absent = scores[included], scores[~included]
    if min(len(present), len(absent)) < 2:
        return SummedScoresBound(epsilon_gaussian=0.0, mu=0.0, canaries=len(scores))
    # Half of the doubt for the distance, half for the variance (union bound).
    alpha = (1 - confidence) / 2
    freedom = len(scores) - 2
    squares = float(np.square(present - present.mean()).sum())
    squares += float(np.square(absent - absent.mean()).sum())
    # The floor keeps scores without any noise from dividing by zero.
    largest = float(np.abs(scores).max())
    deviation = max(math.sqrt(squares / freedom), 1e-9 * largest, 1e-300)
    error = deviation * math.sqrt(1 / len(present) + 1 / len(absent))
    apart = float(present.mean() - absent.mean()) - float(t.isf(alpha, freedom)) * error
    widest = deviation * math.sqrt(freedom / float(chi2.ppf(alpha, freedom)))
    mu = max(0.0, apart / widest)
    return SummedScoresBound(
        epsilon_gaussian=gaussian_epsilon(mu, delta), mu=mu, canaries=len(scores)
    )
