"""Noise is the discrete Gaussian of its scale and of no other, and nobody can repeat it."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.secure_aggregation import discrete_gaussian
from sottovoce.shared.secure_aggregation.discrete_gaussian import (
    Integers,
    RandomWords,
    SeededRandomWords,
    SystemRandomWords,
    sample_bernoulli_exp,
    sample_discrete_gaussian,
)

SIZE = 40_000
LIMIT = math.log(1e9)


def seeded(seed: int = 0) -> SeededRandomWords:
    return SeededRandomWords(np.random.default_rng(seed))


def unlikely(sample: Integers, std: float) -> float:
    """x such that draws of this scale come this far out with chance e^-x at most (chi-square)."""
    reach = math.ceil(12 * std)
    masses = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * std**2))
    masses /= masses.sum()
    counts = np.bincount(np.clip(sample, -reach, reach) + reach, minlength=len(masses))
    # Cells of some 50 draws or more: join neighbours from the left, the rest to the last.
    cells = np.minimum((np.cumsum(masses) * len(sample) // 50).astype(int), len(sample) // 50 - 1)
    expected = np.bincount(cells, masses * len(sample))
    found = np.bincount(cells, counts)[expected > 0]
    expected = expected[expected > 0]
    free = len(expected) - 1
    excess = max(float(((found - expected) ** 2 / np.maximum(expected, 1e-9)).sum()) - free, 0.0)
    return ((math.sqrt(free + 2 * excess) - math.sqrt(free)) / 2) ** 2


@pytest.mark.parametrize("std", [0.5, 0.9, 1.0, 2.5, 17.3, 400.0])
@pytest.mark.parametrize("random", [seeded(), SystemRandomWords()])
def test_it_has_its_scale_and_no_other(std: float, random: RandomWords) -> None:
    sample = sample_discrete_gaussian(SIZE, std, random)

    assert sample.dtype == np.int64
    assert unlikely(sample, std) < LIMIT
    assert unlikely(sample, std * 2 / 3) > LIMIT
    assert unlikely(sample, std * 3 / 2) > LIMIT
    assert unlikely(sample + max(1, round(std / 5)), std) > LIMIT


def test_rounded_continuous_noise_is_told_from_it() -> None:
    rounded = np.rint(np.random.default_rng(1).normal(0, 0.5, SIZE)).astype(np.int64)

    assert unlikely(rounded, 0.5) > LIMIT


def test_wide_noise_has_its_moments() -> None:
    sample = sample_discrete_gaussian(SIZE, 2.0**30, SystemRandomWords()) / 2.0**30

    assert abs(sample.mean()) < 6 / math.sqrt(SIZE)
    assert abs((sample**2).mean() - 1) < 6 * math.sqrt(2 / SIZE)
    assert abs((sample**4).mean() - 3) < 6 * math.sqrt(96 / SIZE)
    assert len(np.unique(sample)) > SIZE * 0.99


@pytest.mark.parametrize("exponent", [Fraction(0), Fraction(1, 3), Fraction(2), Fraction(30)])
def test_floats_and_exact_arithmetic_draw_the_same(exponent: Fraction) -> None:
    """With a margin of 2 every coin is settled exactly; on the same words nothing changes."""
    exponents = np.full(400, float(exponent))
    quick = sample_bernoulli_exp(exponents, lambda _: exponent, seeded(3))
    slow = sample_bernoulli_exp(exponents, lambda _: exponent, seeded(3), margin=2.0**70)

    assert (quick == slow).all()


class Stuck:
    """Words that a comparison of floats cannot settle, then ones that decide."""

    def __init__(self, first: int, rest: int) -> None:
        self.coming = [first, rest]

    def draw_words(self, size: int) -> np.ndarray:
        return np.full(size, self.coming.pop(0), dtype=np.uint64)


def test_a_close_call_takes_further_bits() -> None:
    """The first 64 bits of exp(-1) leave open whether a number is below it; 64 more do not."""
    first, second = divmod(
        int(Fraction("0.36787944117144232159552377016146086744581113103") * 2**128), 2**64
    )

    for rest, below in [(second - 2**60, True), (second + 2**60, False)]:
        drawn = sample_bernoulli_exp(np.ones(1), lambda _: Fraction(1), Stuck(first, rest))
        assert bool(drawn[0]) is below


def correlation(one: Integers, other: Integers) -> float:
    return float(np.corrcoef(one, other)[0, 1])


@pytest.mark.parametrize(
    ("one", "other"), [(seeded(1), seeded(2)), (SystemRandomWords(), SystemRandomWords())]
)
def test_two_devices_share_no_noise(one: RandomWords, other: RandomWords) -> None:
    first, second, third = (
        sample_discrete_gaussian(SIZE, 50.0, random) for random in (one, one, other)
    )

    limit = 6.2 / math.sqrt(SIZE)
    for pair in [(first, second), (first, third), (first[1:], first[:-1])]:
        assert abs(correlation(*pair)) < limit
    assert correlation(first, first + third) > limit


def test_a_simulation_repeats_its_noise_and_the_system_does_not() -> None:
    assert (
        sample_discrete_gaussian(50, 9.0, seeded(7)) == sample_discrete_gaussian(50, 9.0, seeded(7))
    ).all()
    assert (
        sample_discrete_gaussian(50, 9.0, seeded(7)) != sample_discrete_gaussian(50, 9.0, seeded(8))
    ).any()
    assert (
        sample_discrete_gaussian(50, 9.0, SystemRandomWords())
        != sample_discrete_gaussian(50, 9.0, SystemRandomWords())
    ).any()


def test_no_scale_is_no_noise() -> None:
    assert not sample_discrete_gaussian(5, 0.0, SystemRandomWords()).any()
    assert sample_discrete_gaussian(0, 5.0, SystemRandomWords()).shape == (0,)


@pytest.mark.parametrize("std", [-1.0, 0.3, math.nan, math.inf, 2.0**41])
def test_a_scale_that_is_none_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="discrete noise"):
        sample_discrete_gaussian(5, std, SystemRandomWords())


class ScriptedWords:
    """Words as a script gives them; each call is answered by one word, as often as asked."""

    def __init__(self, *words: int) -> None:
        self._words = iter(words)

    def draw_words(self, size: int) -> np.ndarray:
        return np.full(size, next(self._words), dtype=np.uint64)


@pytest.mark.parametrize("remainder", [1, 2])
def test_where_floats_cannot_tell_the_exact_chance_decides(remainder: int) -> None:
    """A uniform number just below exp(-remainder / 3): a Laplace proposal that is accepted."""
    with localcontext(prec=60):
        border = int((Decimal(-remainder) / 3).exp() * 2**64)
    # Remainder, its coin, no further run of scale 3, the sign, the coin of the Gaussian.
    words = ScriptedWords(remainder, border - 1_000, 2**64 - 1, 0, 0)

    assert sample_discrete_gaussian(1, 2.0, words).tolist() == [remainder]


@pytest.mark.parametrize("exponent", [Fraction(0), Fraction(1, 3), Fraction(7), Fraction(300)])
@pytest.mark.parametrize("digits", [5, 31, 60])
def test_bounds_on_a_chance_lie_on_either_side_of_it(exponent: Fraction, digits: int) -> None:
    low, high = discrete_gaussian._exp_bounds(exponent, digits)
    with localcontext(prec=120):
        true = Fraction((-Decimal(exponent.numerator) / exponent.denominator).exp())

    assert low < true < high
    assert high - low < true * Fraction(exponent + 3) / 10**digits
