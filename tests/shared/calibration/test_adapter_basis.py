"""A basis holds the directions in which public voices vary, the same on every machine."""

import math

import pytest
import torch
from torch import Tensor

from sottovoce.shared import seeding
from sottovoce.shared.calibration import AdapterBasis
from sottovoce.shared.calibration.adapter_basis import MAX_RANK, fit_basis
from sottovoce.shared.errors import ModelError

WIDTH = 50


def voices(clips: int = 400, width: int = WIDTH) -> Tensor:
    """Vectors that vary less in every next direction."""
    rng = seeding.torch_rng(0, "voices")
    turned, _ = torch.linalg.qr(torch.randn(width, width, generator=rng))
    scales = torch.linspace(3.0, 0.1, width)
    return 5 + (scales * torch.randn(clips, width, generator=rng)) @ turned


def test_coordinates_of_public_voices_are_white() -> None:
    basis = fit_basis(voices(), classes=8)
    assert basis is not None

    found = basis.project_vectors(voices())

    assert basis.rank == MAX_RANK
    assert found.shape == (400, MAX_RANK)
    torch.testing.assert_close(found.mean(0), torch.zeros(MAX_RANK).double(), atol=0.02, rtol=0)
    covariance = found.mT @ found / 400
    # Those few that lie beyond the farthest coordinate make it a little less than one.
    torch.testing.assert_close(covariance, torch.eye(MAX_RANK).double(), atol=0.03, rtol=0)


def test_the_directions_are_those_of_largest_variance() -> None:
    basis = fit_basis(voices(), classes=32)
    assert basis is not None
    _, _, directions = torch.linalg.svd(voices() - voices().mean(0), full_matrices=False)

    along = torch.nn.functional.normalize(basis.matrix, dim=1) @ directions[:8].mT
    torch.testing.assert_close(along.abs(), torch.eye(8), atol=1e-3, rtol=0)


def test_a_basis_repeats_and_has_a_tag_of_its_own() -> None:
    first, again = (fit_basis(voices(), classes=8) for _ in range(2))
    other = fit_basis(voices()[:200], classes=8)
    assert first is not None
    assert again is not None
    assert other is not None

    assert first.tag == again.tag != other.tag


def test_many_emotions_leave_less_room_for_directions() -> None:
    ranks = [
        found and found.rank for found in (fit_basis(voices(), each) for each in (8, 14, 32, 64))
    ]

    assert ranks == [MAX_RANK, 27, 8, None]


@pytest.mark.parametrize(
    ("vectors", "rank"),
    [
        (voices(40), 10),  # four clips a direction
        (voices(400, 7), 7),
        (torch.cat([voices(400, 7), torch.zeros(400, 20)], 1), 7),  # units that never speak
        (voices(3), None),
        (voices(0), None),
        (torch.ones(100, 5), None),
    ],
)
def test_there_are_no_more_directions_than_voices_show(vectors: Tensor, rank: int | None) -> None:
    basis = fit_basis(vectors, classes=8)

    assert (basis and basis.rank) == rank


def test_a_strange_recording_is_held_within_four_deviations() -> None:
    basis = fit_basis(voices(), classes=8)
    assert basis is not None

    assert float(basis.project_vectors(voices()[:1] * 1e6).abs().max()) == 4.0
    assert bool(basis.project_vectors(torch.full((1, WIDTH), math.nan)).isnan().all())
    with pytest.raises(ModelError, match="different models"):
        basis.project_vectors(torch.zeros(1, WIDTH + 1))


@pytest.mark.parametrize(
    ("centre", "matrix"),
    [
        (torch.zeros(3), torch.zeros(2, 4)),
        (torch.zeros(3, 1), torch.zeros(2, 3)),
        (torch.zeros(3), torch.zeros(0, 3)),
        (torch.zeros(40), torch.zeros(33, 40)),
        (torch.full((3,), math.nan), torch.zeros(2, 3)),
    ],
)
def test_a_basis_that_cannot_be_is_refused(centre: Tensor, matrix: Tensor) -> None:
    with pytest.raises(ModelError):
        AdapterBasis(centre=centre, matrix=matrix)
