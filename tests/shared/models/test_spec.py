import json
import math
from typing import Any

import pytest
import torch

from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.models import ModelSpec, build_network, flatten_parameters
from sottovoce.shared.models.parameters import count_parameters

GOOD: dict[str, Any] = {"kind": "mlp", "inputs": 5, "classes": 3, "hidden": 4, "dropout": 0.1}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "transformer"},
        {"pooling": "max"},
        {"kind": "tcn", "pooling": "attentive"},
        {"kind": "bilstm-attention", "hidden": 5},
        {"inputs": 0},
        {"inputs": 2.5},
        {"inputs": math.nan},
        {"classes": 1},
        {"hidden": 0},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"dropout": math.nan},
        {"bias_feature": 0.0},
        {"bias_feature": math.nan},
    ],
)
def test_a_model_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(reversed(change))):
        ModelSpec(**(GOOD | change))


def test_a_spec_survives_json() -> None:
    spec = ModelSpec(**GOOD)

    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "change", [{"layers": 3}, {"kind": "transformer"}, {"inputs": "5"}, {"dropout": None}]
)
def test_a_damaged_spec_is_a_model_error(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        ModelSpec.from_dict(ModelSpec(**GOOD).to_dict() | change)


def test_a_spec_with_a_missing_key_is_a_model_error() -> None:
    values = ModelSpec(**GOOD).to_dict()
    del values["pooling"]

    with pytest.raises(ModelError, match="pooling"):
        ModelSpec.from_dict(values)


@pytest.mark.parametrize(
    ("kind", "pooling", "frames"),
    [("linear", "none", False), ("mlp", "attentive", True), ("tcn", "none", True)],
)
def test_a_spec_says_whether_it_reads_frames(kind: str, pooling: str, frames: bool) -> None:
    spec = ModelSpec(kind=kind, pooling=pooling, inputs=5, classes=3)

    assert spec.reads_frames is frames
    assert build_network(spec, 0).axes == (3 if frames else 2)


def test_the_seed_says_every_weight_and_the_global_generator_rests() -> None:
    spec = ModelSpec(kind="bilstm-attention", inputs=5, classes=3, hidden=4)
    before = torch.get_rng_state()
    first = flatten_parameters(build_network(spec, 1))

    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(flatten_parameters(build_network(spec, 1)), first)
    assert not torch.equal(flatten_parameters(build_network(spec, 2)), first)


@pytest.mark.parametrize("kind", ["cnn-attention", "tcn", "bilstm-attention"])
def test_whole_models_are_small(kind: str) -> None:
    assert (
        80_000
        < count_parameters(build_network(ModelSpec(kind=kind, inputs=64, classes=8), 0))
        < 180_000
    )
