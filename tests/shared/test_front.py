"""The front: a public, fixed map; equal fronts have equal digests, others do not."""

import math
from dataclasses import replace

import pytest
import torch

from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.front import Front, finish, identity

FEATURES, INPUTS = 6, 3


def front(**changes: object) -> Front:
    """A front of random numbers."""
    generator = torch.Generator().manual_seed(0)
    usual = Front(
        mean=torch.randn(FEATURES, generator=generator),
        matrix=torch.randn(FEATURES, INPUTS, generator=generator),
        length=1.0,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(FEATURES,), (7, FEATURES), (7, 4, FEATURES), (0, FEATURES)])
def test_the_last_axis_is_projected(shape: tuple[int, ...]) -> None:
    ours = front()
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    projected = ours.project(features)

    assert projected.shape == (*shape[:-1], INPUTS)
    assert torch.allclose(projected, (features - ours.mean) @ ours.matrix)


def test_features_of_another_extractor_are_refused() -> None:
    with pytest.raises(ModelError, match=f"{FEATURES + 1} wide .* reads {FEATURES}"):
        front().project(torch.zeros(2, FEATURES + 1))


def test_the_digest_names_every_number() -> None:
    ours = front()
    nudged = ours.matrix.clone()
    nudged[0, 0] += 1e-6
    others = [
        front(length=2.0),
        front(mean=ours.mean + 1e-6),
        front(matrix=nudged),
        Front(mean=ours.mean, matrix=ours.matrix[:, :2], length=1.0),
    ]
    digests = {ours.digest(), *(other.digest() for other in others)}

    assert len(digests) == 5
    assert front().digest() == ours.digest()
    assert front(matrix=ours.matrix.T.contiguous().T).digest() == ours.digest(), "layout is nothing"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_front_that_is_no_numbers_is_refused(value: float) -> None:
    with pytest.raises(ModelError, match="NaN or an infinity"):
        front(mean=torch.full((FEATURES,), value))
    with pytest.raises(ModelError, match="NaN or an infinity"):
        front(matrix=torch.full((FEATURES, INPUTS), value))
    with pytest.raises(SettingError, match="length"):
        front(length=value)


@pytest.mark.parametrize(
    ("mean", "matrix"), [((4,), (5, 3)), ((4, 1), (4, 3)), ((4,), (4,)), ((), (4, 3))]
)
def test_parts_that_do_not_fit_are_refused(mean: tuple[int, ...], matrix: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="does not fit"):
        Front(mean=torch.zeros(mean), matrix=torch.zeros(matrix))


def test_finished_rows_have_one_length_and_zeros_stay() -> None:
    projected = torch.tensor([[3.0, 4.0], [1e-20, 0.0], [1e30, 0.0], [1.0, 1.0]])
    inputs = finish(projected, torch.ones(2), torch.ones(4, dtype=torch.int64), length=16.0)

    norms = torch.linalg.vector_norm(inputs, dim=1)
    assert torch.allclose(norms[:2], torch.full((2,), 16.0))
    assert norms[2] == 0.0, "a row beyond what float32 can measure says nothing"
    assert norms[3] == 0.0, "a row on the mean has no direction"


def test_without_a_length_only_the_mean_comes_off() -> None:
    projected = torch.tensor([[3.0, 4.0]])
    ones = torch.ones(1, dtype=torch.int64)
    assert torch.equal(finish(projected, torch.ones(2), ones, length=0.0), projected - 1)


def test_padding_stays_zero_behind_a_mean() -> None:
    projected = torch.ones(2, 5, INPUTS)
    frames = torch.tensor([5, 2])

    inputs = finish(projected, torch.full((INPUTS,), 9.0), frames, length=1.0)

    assert inputs[1, 2:].count_nonzero() == 0
    assert inputs[1, :2].count_nonzero() == 2 * INPUTS


def test_the_front_that_changes_nothing() -> None:
    features = torch.randn(3, FEATURES)
    assert torch.equal(identity(FEATURES).project(features), features)
