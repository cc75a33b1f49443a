"""No user outgrows the bound, and projecting brings nobody further apart."""

import math

import pytest
import torch

from sottovoce.shared.privacy import clipping

LIMIT = 2.0


@pytest.mark.parametrize("size", [0.0, 1e-30, 0.1, 1.0, 1e30, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_outgrows_the_bound(size: float, dtype: torch.dtype) -> None:
    bounded = clipping.clip_to_norm(torch.full((1_000,), size, dtype=dtype), LIMIT)

    assert bounded.dtype == dtype
    assert torch.linalg.vector_norm(bounded, dtype=torch.float64) <= LIMIT * (1 + 1e-6)


@pytest.mark.parametrize("limit", [1e-12, 1e-3, 1.0, 1e12])
@pytest.mark.parametrize("size", [1e25, 3e30, 1e32, 3.3e33, 1e35, 1e38, 3e38])
def test_nothing_outgrows_the_bound_where_floats_end(size: float, limit: float) -> None:
    """The factor itself may be one of the last that float32 has, with hardly a digit."""
    for numbers in (10, 1_000, 100_000):
        bounded = clipping.clip_to_norm(torch.full((numbers,), size), limit)
        assert torch.linalg.vector_norm(bounded, dtype=torch.float64) <= limit * (1 + 1e-6)


def test_what_lies_within_comes_back_as_it_was() -> None:
    vector = torch.tensor([1.2, -1.6])

    assert torch.equal(clipping.clip_to_norm(vector, LIMIT), vector)
    assert torch.equal(clipping.clip_to_norm(100 * vector, math.inf), 100 * vector)


def test_the_direction_stays() -> None:
    assert torch.allclose(
        clipping.clip_to_norm(torch.tensor([30.0, 40.0]), LIMIT), torch.tensor([1.2, 1.6])
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_broken_number_makes_zeros(bad: float) -> None:
    assert not clipping.clip_to_norm(torch.tensor([1.0, bad]), LIMIT).any()


def test_no_two_vectors_are_moved_apart() -> None:
    generator = torch.Generator().manual_seed(1)
    for scale in (0.1, 1.0, 10.0):
        one, other = scale * torch.randn(2, 500, 8, generator=generator, dtype=torch.float64)
        for first, second in zip(one, other, strict=True):
            moved = clipping.clip_to_norm(first, LIMIT) - clipping.clip_to_norm(second, LIMIT)
            assert moved.norm() <= (first - second).norm() * (1 + 1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bound_that_binds_nothing_still_lets_numbers_alone_through(bad: float) -> None:
    assert not clipping.clip_to_norm(torch.tensor([1.0, bad, -bad]), math.inf).any()
    large = torch.full((3,), 3e38)  # their sum passes what float32 holds

    assert torch.equal(clipping.clip_to_norm(large, math.inf), large)


@pytest.mark.parametrize("size", [0.0, 0.1, 1.0, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("limit", [LIMIT, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_length_that_is_known_changes_nothing(
    size: float, limit: float, dtype: torch.dtype
) -> None:
    vector = torch.full((1_000,), size, dtype=dtype)
    known = clipping.l2_norm(vector)

    assert torch.equal(
        clipping.clip_to_norm(vector, limit, known_norm=known), clipping.clip_to_norm(vector, limit)
    )
    assert known == pytest.approx(size * math.sqrt(1_000), nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_was_bounded_may_be_bounded_again(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(2)
    for _ in range(50):
        once = clipping.clip_to_norm(torch.randn(1_000, generator=random, dtype=dtype), LIMIT)
        twice = clipping.clip_to_norm(once, LIMIT)

        assert torch.allclose(twice, once, rtol=1e-6, atol=0)
        assert clipping.l2_norm(twice) <= LIMIT * (1 + 1e-6)
