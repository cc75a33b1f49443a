import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.privacy.gaussian_noise import (
    GaussianSampler,
    SeededGaussianSampler,
    SystemGaussianSampler,
    lattice_step,
    round_to_lattice,
)
from sottovoce.shared.privacy.system_random import draw_system_words

SIZE = 20_000
STD = 3.0


def seeded(seed: int = 0) -> SeededGaussianSampler:
    return SeededGaussianSampler(torch.Generator().manual_seed(seed))


def distance(sample: Tensor, std: float) -> float:
    """Kolmogorov and Smirnov's: the largest gap to the normal distribution function."""
    values = sample.flatten().sort().values / std
    below = (1 + torch.erf(values / math.sqrt(2))) / 2
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    return float(torch.maximum((below - steps[:-1]).abs(), (steps[1:] - below).abs()).max())


def looks_normal(sample: Tensor, std: float) -> bool:
    """Wrong about right noise once in 1e9 (Dvoretzky, Kiefer, Wolfowitz and Massart)."""
    return distance(sample, std) < math.sqrt(math.log(2e9) / (2 * sample.numel()))


@pytest.mark.parametrize("source", [seeded(), SystemGaussianSampler()])
def test_noise_is_normal_at_its_scale_and_at_no_other(source: GaussianSampler) -> None:
    sample = source.sample_noise((SIZE,), STD)

    assert looks_normal(sample, STD)
    assert not looks_normal(sample, STD * 2 / 3)
    assert not looks_normal(sample, STD * 3 / 2)
    assert not looks_normal(sample + STD / 5, STD)


@pytest.mark.parametrize("source", [seeded(), SystemGaussianSampler()])
def test_shape_is_kept_and_values_are_double(source: GaussianSampler) -> None:
    sample = source.sample_noise(torch.Size([3, 4]), STD)

    assert sample.shape == (3, 4)
    assert sample.dtype == torch.float64
    assert source.sample_noise((), STD).shape == ()
    assert source.sample_noise((0, 5), STD).shape == (0, 5)


@pytest.mark.parametrize("source", [seeded(), SystemGaussianSampler()])
def test_no_scale_is_no_noise(source: GaussianSampler) -> None:
    assert source.sample_noise((5,), 0.0).count_nonzero() == 0


@pytest.mark.parametrize("source", [seeded(), SystemGaussianSampler()])
@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_a_scale_that_is_none_is_refused(source: GaussianSampler, std: float) -> None:
    with pytest.raises(PrivacyError, match="std of the noise"):
        source.sample_noise((5,), std)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


@pytest.mark.parametrize(
    ("one", "other"), [(seeded(1), seeded(2)), (SystemGaussianSampler(), SystemGaussianSampler())]
)
def test_two_sources_and_two_calls_share_nothing(
    one: GaussianSampler, other: GaussianSampler
) -> None:
    first, second, third = (
        one.sample_noise((SIZE,), 1),
        one.sample_noise((SIZE,), 1),
        other.sample_noise((SIZE,), 1),
    )

    limit = 6.2 / math.sqrt(SIZE)  # passed by chance once in 1e9
    for pair in [(first, second), (first, third), (first[1:], first[:-1])]:
        assert abs(correlation(*pair)) < limit
    assert correlation(first, first + third) > limit


def test_a_simulation_repeats_its_noise() -> None:
    assert torch.equal(seeded(7).sample_noise((9,), STD), seeded(7).sample_noise((9,), STD))
    assert not torch.equal(seeded(7).sample_noise((9,), STD), seeded(8).sample_noise((9,), STD))


def test_a_device_never_repeats_its_noise() -> None:
    torch.manual_seed(7)
    first = SystemGaussianSampler().sample_noise((9,), STD)
    torch.manual_seed(7)

    assert not torch.equal(first, SystemGaussianSampler().sample_noise((9,), STD))


def test_added_noise_is_the_noise_around_the_values() -> None:
    values = torch.linspace(-50, 50, SIZE, dtype=torch.float64)
    for source in (seeded(), SystemGaussianSampler()):
        noised = source.add_noise(values, STD)

        assert looks_normal(noised - values, STD)
        assert not looks_normal(noised - values, STD * 2 / 3)
    assert torch.equal(
        seeded(7).add_noise(values, STD), values + seeded(7).sample_noise((SIZE,), STD)
    )


@pytest.mark.parametrize("source", [seeded(), SystemGaussianSampler()])
def test_without_noise_the_values_come_back_and_what_is_no_number_is_refused(
    source: GaussianSampler,
) -> None:
    values = torch.tensor([[0.1, -3.0]])

    assert torch.equal(source.add_noise(values, 0.0), values.double())
    assert source.add_noise(torch.zeros(0, 2), STD).shape == (0, 2)
    for wrong in (math.nan, math.inf):
        with pytest.raises(PrivacyError, match="NaN or infinite"):
            source.add_noise(torch.tensor([0.0, wrong]), STD)
        with pytest.raises(PrivacyError, match="std of the noise"):
            source.add_noise(values, wrong)


def test_a_devices_noise_comes_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same entropy, the same noise: nothing else is drawn from; and it is asked each time."""
    asked: list[int] = []

    def fixed(size: int) -> bytes:
        asked.append(size)
        return bytes(range(size))

    monkeypatch.setattr("sottovoce.shared.crypto.os.urandom", fixed)
    first = SystemGaussianSampler().add_noise(torch.zeros(1_000), STD)
    again = SystemGaussianSampler().add_noise(torch.zeros(1_000), STD)

    assert asked == [32, 32]
    assert torch.equal(first, again)
    assert looks_normal(first, STD)


# --- no value betrays what was noised ---------------------------------------------------------


class Words:
    """Chosen words first, then the operating system's; what was asked."""

    def __init__(self, *first: int) -> None:
        self.asked: list[int] = []
        self._first = first

    def __call__(self, size: int) -> Any:
        self.asked.append(size)
        if len(self.asked) > 1:
            return draw_system_words(size)
        return np.array(self._first, dtype=np.uint64)


def words_of_draw(draw: float) -> tuple[int, int]:
    """Words of a pair whose cosine half is nearly this."""
    chance = min(math.exp(-draw * draw / 2), 1 - 2.0**-53)
    return int(chance * 2**64), 2**63 if draw < 0 else 0


@pytest.mark.parametrize("std", [1.0, 0.7, 31.3, 2.0**-40])
@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3, -0.1234567])
def test_every_multiple_of_the_lattice_can_be_reached_from_every_value(
    value: float, std: float
) -> None:
    """So no released number is impossible without one utterance: all of them, to 6 std."""
    step = lattice_step(std)
    centre = round(value / step)
    for multiple in range(centre - int(6 * std / step), centre + int(6 * std / step)):
        draw = (multiple * step - value) / std
        source = SystemGaussianSampler(Words(*words_of_draw(draw)))

        released = source.add_noise(torch.tensor([value], dtype=torch.float64), std)

        assert float(released) == multiple * step


def test_noise_that_is_added_in_floats_leaves_values_that_betray() -> None:
    """What the lattice is for: sums of floats lie off it, each where its value lets it."""
    value = torch.full((1_000,), 1 / 3, dtype=torch.float64)
    naive = value + SystemGaussianSampler().sample_noise((1_000,), 1.0)
    step = lattice_step(1.0)

    assert not torch.equal((naive / step).round() * step, naive)
    released = SystemGaussianSampler().add_noise(value, 1.0)
    assert torch.equal((released / step).round() * step, released)
    assert torch.equal(round_to_lattice(naive, 1.0), (naive / step).round() * step)
    assert round_to_lattice(naive, 0.0) is naive


@pytest.mark.parametrize("std", [2.0**-890, 1e-30, 0.999, 1.0, 3.7e8, 2.0**890])
def test_the_lattice_is_a_power_of_two_below_a_64th_of_the_scale(std: float) -> None:
    step = lattice_step(std)

    assert math.frexp(step)[0] == 0.5
    assert std / 128 < step <= std / 64
    released = SystemGaussianSampler().add_noise(torch.zeros(100), std) / step
    assert torch.equal(released, released.round())
    assert released.count_nonzero() > 50


def reference(chance: int, turn: int, bits: int, value: float, std: float) -> list[float]:
    """Where both halves round to, by decimals of high precision at the interval's midpoint."""
    with mpmath.workprec(bits + 200):
        u, v = (mpmath.mpf(2 * word + 1) / 2 ** (bits + 1) for word in (chance, turn))
        radius = mpmath.sqrt(-2 * mpmath.log(u))
        halves = (mpmath.cos(2 * mpmath.pi * v), mpmath.sin(2 * mpmath.pi * v))
        step = lattice_step(std)
        return [
            float(mpmath.nint((mpmath.mpf(value) + std * radius * half) / step)) * step
            for half in halves
        ]


def test_draws_round_as_exact_arithmetic_says() -> None:
    words = np.random.default_rng(2).integers(0, 2**64, size=2_000, dtype=np.uint64)
    values = torch.randn(2_000, generator=torch.Generator().manual_seed(1)).double()
    source = Words(*(int(word) for word in words))

    released = SystemGaussianSampler(source).add_noise(values, 1.7)

    for pair in range(1_000):
        chance, turn = int(words[pair]) >> 12, int(words[1_000 + pair]) >> 12
        for half, index in enumerate((pair, 1_000 + pair)):
            expected = reference(chance, turn, 52, float(values[index]), 1.7)[half]
            assert float(released[index]) == expected


@pytest.mark.parametrize("value", [0.0, 1.25, 1e9])
def test_a_draw_in_the_middle_between_two_multiples_is_decided_by_further_bits(
    value: float,
) -> None:
    """Words whose 52 bits leave open which multiple is nearest, one in two goes either way."""
    step = lattice_step(1.0)
    # The radius of chance 2^-52 x [0, 1) has no bound: only further bits can tell.
    results = set()
    for _ in range(40):
        source = Words(0, 0)
        released = SystemGaussianSampler(source).add_noise(
            torch.tensor([value], dtype=torch.float64), 1.0
        )
        assert len(source.asked) > 1
        results.add(float(released) - value)
    assert len(results) > 1
    assert all(8.3 < one < 20 for one in results)
    # And in the bulk: a value chosen so that its draw falls on the middle, to the last bit.
    chance, turn = 2**51 + 12345, 2**49 + 777
    with mpmath.workprec(300):
        radius = mpmath.sqrt(-2 * mpmath.log(mpmath.mpf(2 * chance + 1) / 2**53))
        draw = radius * mpmath.cos(2 * mpmath.pi * mpmath.mpf(2 * turn + 1) / 2**53)
        offset = float(step / 2 - draw)
    sides = set()
    for _ in range(40):
        source = Words(chance << 12, turn << 12)
        released = SystemGaussianSampler(source).add_noise(
            torch.tensor([offset], dtype=torch.float64), 1.0
        )
        assert len(source.asked) > 1
        sides.add(float(released) / step)
    assert sides == {0.0, 1.0}


def test_further_bits_serve_both_halves_of_a_pair() -> None:
    """Else the halves would come of two different pairs, and the result of none."""
    for _ in range(10):
        source = Words(0, 2**61)  # an eighth of a turn: both halves are as far out
        first, second = SystemGaussianSampler(source).add_noise(torch.zeros(2), 1.0).tolist()

        assert first == pytest.approx(second, abs=2 * lattice_step(1.0))


def test_the_float_draw_is_as_near_as_its_margin_says() -> None:
    """Against exact arithmetic at both ends of the interval that the drawn bits leave open."""
    words = np.random.default_rng(3).integers(0, 2**64, size=600, dtype=np.uint64)
    draws = SystemGaussianSampler(Words(*(int(word) for word in words))).sample_noise((600,), 1.0)
    for pair in range(300):
        chance, turn = int(words[pair]) >> 12, int(words[300 + pair]) >> 12
        with mpmath.workprec(200):
            for far in (0, 1):
                u, v = (mpmath.mpf(word + far) / 2**52 for word in (chance, turn))
                exact = mpmath.sqrt(-2 * mpmath.log(u)) * mpmath.cos(2 * mpmath.pi * v)
                assert abs(float(exact - mpmath.mpf(float(draws[pair])))) < 2.0**-40
