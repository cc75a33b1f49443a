import math
from dataclasses import dataclass

import pytest
import torch

from sottovoce.shared.errors import ModelError
from sottovoce.shared.models import (
    ModelSpec,
    Network,
    build_network,
    flatten_parameters,
    load_parameters,
    unflatten_parameters,
)
from sottovoce.shared.models.parameters import count_parameters, hash_model


@pytest.fixture
def model() -> Network:
    return build_network(ModelSpec(kind="mlp", inputs=5, classes=3, hidden=4), 0)


def test_weights_go_there_and_back(model: Network) -> None:
    wanted = torch.arange(count_parameters(model), dtype=torch.float64)
    load_parameters(model, wanted)

    assert torch.equal(flatten_parameters(model), wanted.float())
    assert flatten_parameters(model).dtype == torch.float32


def test_a_flat_view_is_a_copy(model: Network) -> None:
    vector = flatten_parameters(model)
    vector += 1

    assert not torch.equal(flatten_parameters(model), vector)


@pytest.mark.parametrize("off", [-1, 1])
def test_a_vector_of_the_wrong_length_is_refused(model: Network, off: int) -> None:
    with pytest.raises(ModelError, match=r"do not fit a model of 39"):
        load_parameters(model, torch.zeros(count_parameters(model) + off))


def test_a_vector_of_two_axes_is_refused(model: Network) -> None:
    with pytest.raises(ModelError, match="do not fit"):
        load_parameters(model, flatten_parameters(model).unsqueeze(0))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_weight_changes_nothing(model: Network, broken: float) -> None:
    before = flatten_parameters(model)
    vector = before + 1
    vector[-1] = broken

    with pytest.raises(ModelError, match="1 of 39"):
        load_parameters(model, vector)
    assert torch.equal(flatten_parameters(model), before)


def test_gradients_flow_through_the_views(model: Network) -> None:
    vector = flatten_parameters(model).requires_grad_()
    sum(view.sum() for view in unflatten_parameters(model, vector).values()).backward()

    assert vector.grad is not None
    assert torch.equal(vector.grad, torch.ones(count_parameters(model)))


@dataclass
class Plan:
    name: str

    def content_hash(self) -> str:
        return self.name


def test_a_digest_names_weights_and_plan(model: Network) -> None:
    vector = flatten_parameters(model)
    moved = vector.clone()
    moved[0] += 1

    assert hash_model(vector, Plan("a")) == hash_model(vector.double(), Plan("a"))
    hashes = {hash_model(*one) for one in ((vector, Plan("a")), (moved, Plan("a")))}
    assert len(hashes | {hash_model(vector, Plan("b"))}) == 3
