import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.privacy.gaussian_noise import (
    GaussianSampler,
    SeededGaussianSampler,
    SystemGaussianSampler,
)

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


def test_system_noise_comes_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def silent(size: int) -> bytes:
        asked.append(size)
        return b"\xff" * size

    monkeypatch.setattr("sottovoce.shared.privacy.gaussian_noise.os.urandom", silent)
    sample = SystemGaussianSampler().sample_noise((10,), STD)

    assert sum(asked) >= 10 * 4 * 2 * 8
    assert sample.count_nonzero() == 0  # the logarithm of 1


def test_the_rarest_draw_is_still_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sottovoce.shared.privacy.gaussian_noise.os.urandom", lambda size: b"\0" * size
    )

    assert SystemGaussianSampler().sample_noise((10,), 1.0).isfinite().all()
