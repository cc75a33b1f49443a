"""Gaussian noise for privacy: seeded in a simulation, from the operating system on a device.

Whoever can repeat the noise can subtract it again. A simulation must repeat, so its noise comes
from a seed and protects nobody; a device's and an operator's noise comes from the operating
system's entropy and cannot be repeated by anyone, themselves included.

Floating point betrays noise in another way. Which float64 values ``value + noise`` can reach
depends on ``value`` (Mironov 2012, "On significance of the least significant bits for differential
privacy"), and epsilon of the Gaussian mechanism says nothing of that. So what a device releases is
the mechanism's output over the real numbers, rounded to a coarse lattice: rounding is
post-processing, every multiple of the lattice can be reached from every value, and no accountant
needs to know of it. See ``SystemGaussianSampler``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import mpmath
import numpy as np
import torch
from torch import Tensor

from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.privacy.system_random import Words, draw_system_words

LATTICE_BITS: Final = 6
"""The lattice's step is the noise's scale, rounded down to a power of two, over 2 to this: at most
std / 64, which adds less than 3e-5 to the noise's variance."""

_UNIFORM_BITS = 52
"""Bits of a uniform number at first: its interval's midpoint must be a float64."""

_MARGIN = 2.0**-30
"""More than the error of a float64 draw, in units of the noise's scale, where ``_is_precise``."""

_MIN_PRECISE = 2.0**-20
"""Least uniform number and radius whose error is below the margin, see ``_is_precise``."""

_MIN_STD, _MAX_STD = 2.0**-900, 2.0**900
"""Scales whose lattice float64 can hold."""

_ONE = np.float64(1).view(np.uint64)
"""The bits of 1: its exponent, and a mantissa of zeros."""

_EXTENSION_BITS = 64
"""Bits by which an undecided uniform number is extended: one random word."""


class GaussianSampler(Protocol):
    """Source of privacy noise."""

    def add_noise(self, values: Tensor, std: float) -> Tensor:
        """Release values by the Gaussian mechanism.

        Args:
            values: What is to be hidden, any shape, finite.
            std: Standard deviation of the noise, in the units of the values: 0, or from 2^-900 to
                2^900.

        Returns:
            The noised values, of the same shape, float64. What is made of them is post-processing.

        Raises:
            PrivacyError: ``std`` is out of range or NaN, or a value is NaN or infinite.

        Guarantees:
            - A ``std`` of 0 gives the values themselves.
            - No two calls share a draw.
        """
        ...

    def sample_noise(self, shape: Sequence[int], std: float) -> Tensor:
        """Draw noise that is combined with other noise before anything is released.

        Args:
            shape: Shape of the result.
            std: Standard deviation, as in ``add_noise``.

        Returns:
            Independent draws from a normal distribution of mean 0, float64. Values that they are
            added to must be rounded by ``round_to_lattice`` before they are released.

        Raises:
            PrivacyError: ``std`` is out of range or NaN.
        """
        ...


class SeededGaussianSampler:
    """Noise that a simulation can repeat. It protects nobody: people need the system's.

    Drawn in float32, a fifth of the time that float64 takes (``make bench``, "private, simulated").
    What float32 cannot reach would give a secret away; what is simulated has none.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def add_noise(self, values: Tensor, std: float) -> Tensor:
        """See ``GaussianSampler.add_noise``."""
        _largest(values)
        return self.sample_noise(values.shape, std).add_(values)

    def sample_noise(self, shape: Sequence[int], std: float) -> Tensor:
        """See ``GaussianSampler.sample_noise``."""
        _check_std(std)
        draws = torch.randn(tuple(shape), generator=self._generator, dtype=torch.float32)
        return draws.double().mul_(std)


class SystemGaussianSampler:
    """Noise from the operating system's entropy, for devices and operators.

    ``add_noise`` returns round(value + std Z) for a real number Z that is exactly normal, rounded
    to a lattice that depends on ``std`` alone. Z is one half of a Box-Muller pair of two uniform
    real numbers, of which the first 52 bits are drawn at first. Float64 says where the sum lies, to
    an error that is bounded; if the whole interval rounds to one multiple of the lattice, that is
    the result, whatever the further bits. If not, which happens once in four million draws, further
    bits are drawn and interval arithmetic of growing precision decides. So nothing is approximated,
    both halves of a pair serve, and tails do not end.

    Args:
        draw_words: Source of uniform words of 64 bits; another one than the operating system's
            serves tests only.

    Example:
        >>> released = SystemGaussianSampler().add_noise(torch.zeros(1_000), std=3.0)
        >>> bool(2.5 < released.std() < 3.5)
        True
        >>> step = lattice_step(3.0)
        >>> step, bool((released / step == (released / step).round()).all())
        (0.03125, True)
    """

    def __init__(self, draw_words: Callable[[int], Words] = draw_system_words) -> None:
        self._draw_words = draw_words

    def add_noise(self, values: Tensor, std: float) -> Tensor:
        """See ``GaussianSampler.add_noise``; the result lies on the lattice of ``std``."""
        _check_std(std)
        flat = values.detach().double().reshape(-1)
        largest = _largest(flat)
        if std == 0 or not len(flat):
            return flat.reshape(values.shape).clone()
        step = lattice_step(std)
        draws = _PairedDraws(self._draw_words, len(flat))
        # Powers of two scale exactly: only the draws' product and the sum are rounded.
        exact = draws.values.mul_(std / step).add_(flat, alpha=1 / step)
        rounded = exact.round()
        # The sum's rounding error grows with what is added; a draw of 53 bits is below 9.
        margin = _MARGIN * std / step + 2.0**-50 * (2 * largest + 9 * std) / step
        distances = exact.sub_(rounded).abs_()
        # Nearly always all are far from a half, and float64 decides: then nothing is looked up.
        if not (draws.are_precise and float(distances.max()) < 0.5 - margin):
            # Near a half, or where float64 is not precise: the further bits may count.
            undecided = (distances >= 0.5 - margin).logical_or_(draws.find_imprecise())
            for index in undecided.nonzero().flatten().tolist():
                rounded[index] = draws.round_exactly(index, float(flat[index]), std, step)
        return rounded.mul_(step).reshape(values.shape)

    def sample_noise(self, shape: Sequence[int], std: float) -> Tensor:
        """See ``GaussianSampler.sample_noise``."""
        _check_std(std)
        draws = _PairedDraws(self._draw_words, math.prod(shape))
        return draws.values.mul_(std).reshape(tuple(shape))


def lattice_step(std: float) -> float:
    """Step of the lattice that noise of a scale is rounded to: a power of two, below std / 64.

    Args:
        std: Standard deviation of the noise, above 0.

    Example:
        >>> lattice_step(1.0), lattice_step(1.9), lattice_step(2.0)
        (0.015625, 0.015625, 0.03125)
    """
    _, exponent = math.frexp(std)
    return math.ldexp(1.0, exponent - 1 - LATTICE_BITS)


def round_to_lattice(values: Tensor, std: float) -> Tensor:
    """Round values whose noise was combined from draws, so that low-order bits betray nothing.

    Unlike ``SystemGaussianSampler.add_noise`` this is not exact: a draw's error in float64, 2^-49
    of the scale on average, can move a value across the middle between two multiples. That has a
    probability below 2^-41 for each number and each draw that is combined in it, which adds as much
    to delta.

    Args:
        values: Noised values, any shape, float64.
        std: Standard deviation of the newest independent draw in them; 0 leaves them as they are.

    Returns:
        The nearest multiples of ``lattice_step(std)``.
    """
    if std == 0:
        return values
    step = lattice_step(std)
    return (values / step).round_().mul_(step)


class _PairedDraws:
    """Normal draws in float64, and the bits from which each can be told more precisely.

    The halves of a pair lie apart: draw i and draw pairs + i come of the same two uniforms.
    """

    def __init__(self, draw_words: Callable[[int], Words], size: int) -> None:
        self._draw_words = draw_words
        self._pairs = (size + 1) // 2
        # Python's whole numbers hold what is drawn later; most pairs never need it.
        self._extended: dict[int, tuple[int, int, int]] = {}
        self._size = size
        self._words = draw_words(2 * self._pairs)
        bits = self._words >> np.uint64(64 - _UNIFORM_BITS)
        bits |= _ONE
        # Behind the exponent of 1 the bits are a float64 from 1 up to 2. Less what 1 is above half
        # a bit, it is the midpoint of an interval of 2^-52: at most 2^-53 from the real number.
        uniforms = torch.from_numpy(bits.view(np.float64)).sub_(1 - 2.0 ** -(_UNIFORM_BITS + 1))
        self._chances, angles = uniforms.view(2, -1)
        self._radii = self._chances.log().mul_(-2).sqrt_()
        angles.mul_(2 * math.pi)
        # Each half in its place: allocating and copying would cost as much as computing them.
        halves = torch.empty_like(uniforms).view(2, -1)
        torch.cos(angles, out=halves[0])
        torch.sin(angles, out=halves[1])
        self.values = halves.mul_(self._radii).view(-1)[:size]

    @property
    def are_precise(self) -> bool:
        """Whether all draws certainly are, by the ends of the range of their chances."""
        if not self._pairs:
            return True
        least, most = self._chances.aminmax()
        # A radius is at least sqrt(2 (1 - chance)), here 2^-19.5.
        return float(least) >= _MIN_PRECISE and float(most) <= 1 - _MIN_PRECISE**2

    def find_imprecise(self) -> Tensor:
        """Where a draw is not, see ``_is_precise``; shape (size,), bool."""
        imprecise = ~_is_precise(self._chances, self._radii)
        return torch.cat([imprecise, imprecise])[: self._size]

    def round_exactly(self, index: int, value: float, std: float, step: float) -> float:
        """Round (value + std x draw) / step, with as many further bits as that takes."""
        pair, is_sine = index % self._pairs, index >= self._pairs
        while True:
            low, high = self._bounds(pair, value, std, step, is_sine=is_sine)
            if low == high:
                return low
            # Ends with probability 1: no real number is drawn twice.
            self._extend(pair)

    def _extend(self, pair: int) -> None:
        """Draw the next bits of a pair's uniforms; the other half sees the same ones."""
        bits, chance, turn = self._digits(pair)
        more = [int(word) for word in self._draw_words(2)]
        self._extended[pair] = (
            bits + _EXTENSION_BITS,
            chance << _EXTENSION_BITS | more[0],
            turn << _EXTENSION_BITS | more[1],
        )

    def _digits(self, pair: int) -> tuple[int, int, int]:
        """How many bits of a pair are drawn, and its uniforms' bits as whole numbers."""
        if pair in self._extended:
            return self._extended[pair]
        first, second = int(self._words[pair]), int(self._words[self._pairs + pair])
        unused = 64 - _UNIFORM_BITS
        return _UNIFORM_BITS, first >> unused, second >> unused

    def _bounds(
        self, pair: int, value: float, std: float, step: float, *, is_sine: bool
    ) -> tuple[float, float]:
        """The multiples of the step between which the sum's rounding lies."""
        bits, chance, turn = self._digits(pair)
        if chance == 0:
            return -math.inf, math.inf  # nothing bounds the radius yet
        interval: Any = mpmath.ctx_iv.MPIntervalContext()  # its own: the shared one's precision is
        interval.prec = bits + _EXTENSION_BITS  # everybody's
        scale = interval.mpf(2) ** -bits
        squares = -2 * interval.log(interval.mpf([chance, chance + 1]) * scale)
        # Rounded outwards, the logarithm of 1 may lie above 0.
        radii = interval.sqrt(interval.mpf([max(squares.a, interval.mpf(0)), squares.b]))
        angles = 2 * interval.pi * interval.mpf([turn, turn + 1]) * scale
        draws = radii * (interval.sin(angles) if is_sine else interval.cos(angles))
        total = (interval.mpf(value) + interval.mpf(std) * draws) / interval.mpf(step)
        with mpmath.workprec(interval.prec):
            low, high = (mpmath.floor(mpmath.mpf(end.mid) + 0.5) for end in (total.a, total.b))
        return float(low), float(high)


def _is_precise(chances: Tensor, radii: Tensor) -> Tensor:
    """Where the float64 draw is within the margin of all real numbers that begin alike.

    A radius is sqrt(-2 ln u), so that of all u in an interval of half width h = 2^-53 around the
    midpoint m it is at most 2 h / ((m - h) r) from the midpoint's r: below 2^-31 where m and r are
    at least 2^-20. The angle's 2 pi h and the few units in the last place of the logarithm, the
    root and the cosine come to less than 2^-45.
    """
    return (chances >= _MIN_PRECISE).logical_and_(radii >= _MIN_PRECISE)


def _largest(values: Tensor) -> float:
    """Find the largest magnitude, 0 of nothing; refuse what no noise hides."""
    # One pass over them: NaN and infinity are the largest where there are any.
    if not values.numel():
        return 0.0
    least, most = map(float, values.aminmax())
    largest = max(-least, most)
    if not math.isfinite(largest):
        raise PrivacyError("a value to be noised is NaN or infinite, which noise cannot hide")
    return largest


def _check_std(std: float) -> None:
    """Refuse a scale that would silently be no noise, or no number."""
    if not (std == 0 or _MIN_STD <= std <= _MAX_STD):
        raise PrivacyError(
            f"std of the noise is {std}; it must be 0, or from 2^-900 to 2^900: "
            "check clip_norm and noise_multiplier"
        )
