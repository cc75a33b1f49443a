import math
from dataclasses import dataclass

import pytest
import torch

from sottovoce.shared.errors import ModelError
from sottovoce.shared.models import ModelSpec, Network, build, flatten, load_flat, unflatten
from sottovoce.shared.models.flat import count, digest


@pytest.fixture
def model() -> Network:
    return build(ModelSpec(kind="mlp", inputs=5, classes=3, hidden=4), 0)


def test_weights_go_there_and_back(model: Network) -> None:
    wanted = torch.arange(count(model), dtype=torch.float64)
    load_flat(model, wanted)

    assert torch.equal(flatten(model), wanted.float())
    assert flatten(model).dtype == torch.float32


def test_a_flat_view_is_a_copy(model: Network) -> None:
    vector = flatten(model)
    vector += 1

    assert not torch.equal(flatten(model), vector)


@pytest.mark.parametrize("off", [-1, 1])
def test_a_vector_of_the_wrong_length_is_refused(model: Network, off: int) -> None:
    with pytest.raises(ModelError, match=r"do not fit a model of 39"):
        load_flat(model, torch.zeros(count(model) + off))


def test_a_vector_of_two_axes_is_refused(model: Network) -> None:
    with pytest.raises(ModelError, match="do not fit"):
        load_flat(model, flatten(model).unsqueeze(0))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_weight_changes_nothing(model: Network, broken: float) -> None:
    before = flatten(model)
    vector = before + 1
    vector[-1] = broken

    with pytest.raises(ModelError, match="1 of 39"):
        load_flat(model, vector)
    assert torch.equal(flatten(model), before)


def test_gradients_flow_through_the_views(model: Network) -> None:
    vector = flatten(model).requires_grad_()
    sum(view.sum() for view in unflatten(model, vector).values()).backward()

    assert vector.grad is not None
    assert torch.equal(vector.grad, torch.ones(count(model)))


@dataclass
class Plan:
    name: str

    def digest(self) -> str:
        return self.name


def test_a_digest_names_weights_and_plan(model: Network) -> None:
    vector = flatten(model)
    moved = vector.clone()
    moved[0] += 1

    assert digest(vector, Plan("a")) == digest(vector.double(), Plan("a"))
    assert (
        len({digest(vector, Plan("a")), digest(moved, Plan("a")), digest(vector, Plan("b"))}) == 3
    )
