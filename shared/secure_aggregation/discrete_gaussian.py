"""Discrete Gaussian noise, exact: Canonne, Kamath and Steinke 2020, algorithms 1 to 3.

Integer noise can be masked modulo a power of two, and there are no low-order bits of floating point
that could reveal a value (https://arxiv.org/abs/2004.00010).

Every decision of the algorithm is a Bernoulli draw with probability exp(-x), x rational. It
compares a uniform number with exp(-x): first 64 random bits with a float, which decides all but one
draw in 2^39; the others are decided by exact arithmetic with as many further bits as it takes. So
nothing is approximated, and a hundred thousand values take a tenth of a second.
"""

import math
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any, Final, Protocol

import numpy as np

from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.privacy.system_random import Words, draw_system_words

Integers = np.ndarray[Any, np.dtype[np.int64]]

MIN_STD: Final = 0.5
MAX_STD: Final = 2.0**40
_MARGIN: Final = 2.0**-40
"""Far more than the error of exp(-x) in float64; within it, exact arithmetic decides."""


class RandomWords(Protocol):
    """Source of random bits."""

    def draw_words(self, size: int) -> Words:
        """Draw independent uniform words of 64 bits, shape (size,); no two calls share one."""
        ...


class SystemRandomWords:
    """Random bits of the operating system, for real users; never repeatable."""

    def draw_words(self, size: int) -> Words:
        """See ``RandomWords.draw_words``."""
        return draw_system_words(size)


class SeededRandomWords:
    """Random bits of a seeded generator, for simulations. They protect nobody."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def draw_words(self, size: int) -> Words:
        """See ``RandomWords.draw_words``."""
        return self._generator.integers(0, 2**64, size=size, dtype=np.uint64)


def sample_discrete_gaussian(size: int, std: float, random: RandomWords) -> Integers:
    """Draw independent values z with probability proportional to exp(-z^2 / (2 std^2)), z whole.

    Args:
        size: Number of values, 0 or more.
        std: Scale in steps of the integer grid: 0, or from 0.5 to 2^40. The standard deviation is
            this or slightly less.
        random: ``SystemRandomWords`` for real users, ``SeededRandomWords`` in a simulation.

    Returns:
        The noise, shape (size,), int64.

    Raises:
        PrivacyError: ``std`` is NaN or out of range.

    Guarantees:
        - The distribution is exact for exactly this float ``std``; see the module.
        - A ``std`` of 0 gives zeros, a size of 0 no values.
        - Not promised: constant time. How long a draw takes depends on the values drawn (Jin et
          al. 2022); an attacker who can time a single device's draw is out of scope.

    Example:
        >>> random = SeededRandomWords(np.random.default_rng(0))
        >>> noise = sample_discrete_gaussian(1_000, std=4.0, random=random)
        >>> noise.dtype, bool(3.5 < noise.std() < 4.5)
        (dtype('int64'), True)
    """
    if not (std == 0 or MIN_STD <= std <= MAX_STD):
        raise PrivacyError(
            f"std of the discrete noise is {std} steps; it must be 0, or from {MIN_STD} to"
            f" {MAX_STD:.0f}: check granularity and noise"
        )
    if std == 0:
        return np.zeros(size, dtype=np.int64)
    return _collect(size, lambda count: _propose_gaussians(count, std, random))


def _collect(size: int, propose: Callable[[int], Integers]) -> Integers:
    """Draw proposals until ``size`` are accepted."""
    parts: list[Integers] = [np.zeros(0, dtype=np.int64)]
    missing = size
    while missing > 0:
        # The cut is by position only; which values are cut off does not depend on the values.
        parts.append(propose(missing + missing // 2 + 16)[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts)


def _propose_gaussians(count: int, std: float, random: RandomWords) -> Integers:
    """Algorithm 3: rejection sampling from discrete Laplace proposals of scale t."""
    # t = floor(std) + 1, as in algorithm 3; any t is correct, this one accepts most proposals.
    scale = math.floor(std) + 1
    proposals = _sample_laplaces(count, scale, random)
    variance = Fraction(std) ** 2
    centre = float(variance / scale)
    exponents = ((np.abs(proposals) - centre) / std) ** 2 / 2

    def exact(index: int) -> Fraction:
        return (abs(int(proposals[index])) - variance / scale) ** 2 / (2 * variance)

    accepted: Integers = proposals[sample_bernoulli_exp(exponents, exact, random)]
    return accepted


def _sample_laplaces(count: int, scale: int, random: RandomWords) -> Integers:
    """Algorithm 2: P(x) proportional to exp(-|x| / scale); fewer than ``count`` come back."""
    remainders = _uniform_below(count, scale, random)

    def exact(index: int) -> Fraction:
        return Fraction(int(remainders[index]), scale)

    remainders = remainders[sample_bernoulli_exp(remainders / scale, exact, random)]
    sizes = remainders + scale * _geometric_runs(len(remainders), random)
    negative = random.draw_words(len(sizes)) >> np.uint64(63) == 1
    accepted = ~(negative & (sizes == 0))  # else zero would come up twice as often
    signed: Integers = np.where(negative, -sizes, sizes)[accepted]
    return signed


def _geometric_runs(count: int, random: RandomWords) -> Integers:
    """Successes with probability exp(-1) before the first failure, for each of ``count``."""
    lengths = np.zeros(count, dtype=np.int64)
    running = np.arange(count)
    while len(running):
        running = running[
            sample_bernoulli_exp(np.ones(len(running)), lambda _: Fraction(1), random)
        ]
        lengths[running] += 1
    return lengths


def _uniform_below(count: int, limit: int, random: RandomWords) -> Integers:
    """Uniform integers in [0, limit), at most ``count``: words beyond a multiple are dropped."""
    words = random.draw_words(count)
    # Rejection keeps the remainder uniform; a plain modulo would favour small values.
    largest = 2**64 // limit * limit - 1
    return (words[words <= np.uint64(largest)] % np.uint64(limit)).astype(np.int64)


def sample_bernoulli_exp(
    exponents: np.ndarray[Any, np.dtype[np.float64]],
    exact: Callable[[int], Fraction],
    random: RandomWords,
    *,
    margin: float = _MARGIN,
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Draw Bernoulli variables with success probability exp(-x), exactly.

    Args:
        exponents: x as floats, at least 0, shape (draws,), with an error of at most 2^-45 of
            max(x, 1) if x is below 50.
        exact: Maps the index of a draw to its x as a fraction.
        random: Source of random bits.
        margin: Distance, relative to the probability, within which exact arithmetic decides
            instead of floats; every value gives the same distribution.

    Returns:
        Successes, shape (draws,), bool.

    Example:
        >>> random = SeededRandomWords(np.random.default_rng(0))
        >>> drawn = sample_bernoulli_exp(np.zeros(3), lambda index: Fraction(0), random)
        >>> drawn.tolist()  # exp(0) is 1
        [True, True, True]
    """
    words = random.draw_words(len(exponents))
    probabilities = np.exp(-exponents)
    # The uniform number lies in [word, word + 1) / 2^64; 2^-62 covers that and its rounding.
    gaps = words.astype(np.float64) * 2.0**-64 - probabilities
    close = np.abs(gaps) <= probabilities * margin + 2.0**-52 * probabilities + 2.0**-62
    result: np.ndarray[Any, np.dtype[np.bool_]] = gaps < 0
    for index in np.flatnonzero(close):
        result[index] = _decide_exactly(int(words[index]), exact(int(index)), random)
    return result


def _decide_exactly(word: int, exponent: Fraction, random: RandomWords) -> bool:
    """Whether the uniform number that begins with ``word`` lies below exp(-exponent)."""
    bits = 64
    while True:
        low, high = _exp_bounds(exponent, bits // 3 + 10)
        if Fraction(word + 1, 1 << bits) <= low:
            return True
        if Fraction(word, 1 << bits) >= high:
            return False
        # Still undecided: extend the uniform number's binary expansion. Ends with probability 1.
        word = word << 64 | int(random.draw_words(1)[0])
        bits += 64


def _exp_bounds(exponent: Fraction, digits: int) -> tuple[Fraction, Fraction]:
    """Bounds on exp(-exponent), some ``digits`` digits apart.

    ``Decimal.exp`` is right to half a unit in the last of ``digits`` + 10 places; the quotient it
    is given is too, which moves the result by less than (exponent + 1) such units.
    """
    # The default exponent range would underflow to 0 for large x.
    context = Context(prec=digits + 10, Emin=-(10**9), Emax=10**9)
    quotient = context.divide(Decimal(-exponent.numerator), Decimal(exponent.denominator))
    value = Fraction(context.exp(quotient))
    slack = (value * (2 + exponent)) / 10 ** (digits + 8)
    return value - slack, value + slack
