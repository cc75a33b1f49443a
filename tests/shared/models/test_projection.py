"""The projection: a public, fixed map; equal ones have equal hashes, others do not."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.models.projection import (
    PublicProjection,
    identity_projection,
    normalise_and_mask,
)

FEATURES, INPUTS = 6, 3


def projection(**changes: object) -> PublicProjection:
    """A projection of random numbers."""
    generator = torch.Generator().manual_seed(0)
    usual = PublicProjection(
        mean=torch.randn(FEATURES, generator=generator),
        matrix=torch.randn(FEATURES, INPUTS, generator=generator),
        row_norm=1.0,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(FEATURES,), (7, FEATURES), (7, 4, FEATURES), (0, FEATURES)])
def test_the_last_axis_is_projected(shape: tuple[int, ...]) -> None:
    ours = projection()
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    projected = ours.project_features(features)

    assert projected.shape == (*shape[:-1], INPUTS)
    assert torch.allclose(projected, (features - ours.mean) @ ours.matrix)


def test_features_of_another_extractor_are_refused() -> None:
    with pytest.raises(ModelError, match=f"{FEATURES + 1} wide .* reads {FEATURES}"):
        projection().project_features(torch.zeros(2, FEATURES + 1))


def test_the_hash_covers_every_number() -> None:
    ours = projection()
    nudged = ours.matrix.clone()
    nudged[0, 0] += 1e-6
    others = [
        projection(row_norm=2.0),
        projection(mean=ours.mean + 1e-6),
        projection(matrix=nudged),
        PublicProjection(mean=ours.mean, matrix=ours.matrix[:, :2], row_norm=1.0),
    ]
    hashes = {ours.content_hash(), *(other.content_hash() for other in others)}

    assert len(hashes) == 5
    assert projection().content_hash() == ours.content_hash()
    assert projection(matrix=ours.matrix.T.contiguous().T).content_hash() == ours.content_hash(), (
        "layout is nothing"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_projection_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ModelError, match="NaN or an infinity"):
        projection(mean=torch.full((FEATURES,), value))
    with pytest.raises(ModelError, match="NaN or an infinity"):
        projection(matrix=torch.full((FEATURES, INPUTS), value))
    with pytest.raises(SettingError, match="row_norm"):
        projection(row_norm=value)


@pytest.mark.parametrize(
    ("mean", "matrix"), [((4,), (5, 3)), ((4, 1), (4, 3)), ((4,), (4,)), ((), (4, 3))]
)
def test_parts_that_do_not_fit_are_refused(mean: tuple[int, ...], matrix: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="does not fit"):
        PublicProjection(mean=torch.zeros(mean), matrix=torch.zeros(matrix))


def test_normalised_rows_have_one_norm_and_zeros_stay() -> None:
    projected = torch.tensor([[3.0, 4.0], [1e-20, 0.0], [1e30, 0.0], [1.0, 1.0]])
    inputs = normalise_and_mask(
        projected, torch.ones(2), torch.ones(4, dtype=torch.int64), row_norm=16.0
    )

    norms = torch.linalg.vector_norm(inputs, dim=1)
    assert torch.allclose(norms[:2], torch.full((2,), 16.0))
    assert norms[2] == 0.0, "a row beyond what float32 can measure says nothing"
    assert norms[3] == 0.0, "a row on the mean has no direction"


def test_without_a_row_norm_only_the_mean_is_subtracted() -> None:
    projected = torch.tensor([[3.0, 4.0]])
    ones = torch.ones(1, dtype=torch.int64)
    assert torch.equal(
        normalise_and_mask(projected, torch.ones(2), ones, row_norm=0.0), projected - 1
    )


def test_padding_stays_zero_behind_a_mean() -> None:
    projected = torch.ones(2, 5, INPUTS)
    frames = torch.tensor([5, 2])

    inputs = normalise_and_mask(projected, torch.full((INPUTS,), 9.0), frames, row_norm=1.0)

    assert inputs[1, 2:].count_nonzero() == 0
    assert inputs[1, :2].count_nonzero() == 2 * INPUTS


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e38])
@pytest.mark.parametrize("row_norm", [0.0, 1.0])
def test_padding_is_zeros_whatever_it_held(value: float, row_norm: float) -> None:
    projected, frames = torch.ones(2, 5, INPUTS), torch.tensor([5, 2])
    projected[1, 2:] = value

    inputs = normalise_and_mask(projected, torch.full((INPUTS,), 9.0), frames, row_norm=row_norm)

    assert inputs.isfinite().all()
    assert inputs[1, 2:].count_nonzero() == 0


def test_the_identity_projection_changes_nothing() -> None:
    features = torch.randn(3, FEATURES)
    assert torch.equal(identity_projection(FEATURES).project_features(features), features)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1.0, 1e6, 1e18, 1e30])
@pytest.mark.parametrize("mean", [0.0, 1.0, -1e6])
def test_no_row_is_longer_than_the_row_norm(scale: float, mean: float) -> None:
    """A privacy property: it bounds what one utterance can do to a gradient."""
    rows = torch.randn(9, 4, INPUTS, generator=torch.Generator().manual_seed(1)) * scale
    ours = replace(identity_projection(INPUTS), row_norm=0.7)

    inputs = ours.prepare_inputs(rows, torch.full((INPUTS,), mean), torch.full((9,), 3))

    assert float(torch.linalg.vector_norm(inputs.double(), dim=-1).nan_to_num().max()) <= 0.7 * (
        1 + 1e-5
    )
    assert not inputs[:, 3:].any()


def test_no_utterance_moves_another_s_input() -> None:
    rows = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(2))
    ours, frames = replace(identity_projection(INPUTS), row_norm=1.0), torch.ones(5)
    changed = rows.clone()
    changed[2] = torch.tensor([math.nan, *[1e30] * (INPUTS - 1)])

    before = ours.prepare_inputs(rows, torch.ones(INPUTS), frames)
    after = ours.prepare_inputs(changed, torch.ones(INPUTS), frames)

    others = [0, 1, 3, 4]
    assert torch.equal(before[others], after[others])
    assert after[2].isnan().all()


def test_inputs_are_prepared_in_one_way() -> None:
    """Whoever composed it by hand could leave the row norm out, which privacy rests on."""
    house = Path(__file__).resolve().parents[3]
    allowed = {
        "shared/models/projection.py",
        "client/federation/model_inputs.py",  # of rows and their norm that enrolment stored
        "simulations/runs/fold.py",  # the learning curve, for display
    }
    callers = {
        path.relative_to(house).as_posix()
        for room in ("shared", "client", "server", "simulations")
        for path in (house / room).rglob("*.py")
        if "normalise_and_mask(" in path.read_text()
    }
    assert callers <= allowed
