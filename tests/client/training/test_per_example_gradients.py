import math
from collections.abc import Callable

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from sottovoce.client.training import gradient_factors
from sottovoce.client.training import per_example_gradients as rules
from sottovoce.client.training.gradient_factors import (
    MaterialisedGradients,
    OuterProductGradients,
    ParameterGradients,
    PerExampleGradients,
    collect_gradients,
)
from sottovoce.client.training.linear_gradients import DenseGradients, LogitGradient, is_dense
from sottovoce.client.training.lstm_gradients import run_lstm
from sottovoce.client.training.per_example_gradients import GradientRecorder
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models import (
    ModelSpec,
    Network,
    build_network,
    cross_entropy,
    flatten_parameters,
)
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.layers import BidirectionalLstm
from sottovoce.shared.models.losses import Loss, logit_gradients
from sottovoce.shared.models.parameters import unflatten_parameters
from sottovoce.shared.models.spec import MODEL_KINDS, POOLINGS

INPUTS, CLASSES, SIZE = 6, 3, 7
WEIGHTS = torch.tensor([1.0, 2.0, 0.5])
SHIPPED = [
    (kind, pooling)
    for kind in MODEL_KINDS
    for pooling in POOLINGS
    if pooling == "none" or kind in ("linear", "mlp")
]
DENSE = ("linear", "mlp")
HOOKED = [pair for pair in SHIPPED if pair[0] != "bilstm-attention"]  # Opacus cannot hook nn.LSTM


def network(kind: str, pooling: str = "none") -> Network:
    spec = ModelSpec(
        kind=kind,
        pooling=pooling,
        inputs=INPUTS,
        classes=CLASSES,
        hidden=8,
        dropout=0.5,
        bias_feature=0.3,
    )
    model = build_network(spec, 0)
    random = torch.Generator().manual_seed(1)
    for weight in model.parameters():  # no scale of 1, no bias of 0: they would hide mistakes
        nn.init.normal_(weight, std=0.5, generator=random)
    return model


def utterances(model: Network, size: int = SIZE) -> tuple[Examples, Tensor]:
    """Some, of different lengths, and their dropout masks."""
    random = torch.Generator().manual_seed(2)
    labels = torch.randint(CLASSES, (size,), generator=random)
    frames = torch.randint(1, 20, (size,), generator=random)
    features = torch.randn(size, 25, INPUTS, generator=random)
    features *= (torch.arange(25) < frames.unsqueeze(1)).unsqueeze(2)
    if model.axes == 2:
        features, frames = features[:, 0] + 0.1, torch.ones(size, dtype=torch.int64)
    examples = Examples(features=features, frames=frames, labels=labels)
    return examples, model.draw_dropout_mask(size, random)


def losses(model: nn.Module, examples: Examples, keep: Tensor) -> Tensor:
    logits = model(examples.features, examples.frames, keep)
    return cross_entropy(logits, examples.labels, WEIGHTS, 0.1)


def recorded(model: Network, examples: Examples, keep: Tensor) -> PerExampleGradients:
    return heard(GradientRecorder(model, flatten_parameters(model)), examples, keep)


def heard(recorder: GradientRecorder, examples: Examples, keep: Tensor) -> PerExampleGradients:
    return recorder.per_example_gradients(
        (examples.features, examples.frames, keep),
        lambda logits: cross_entropy(logits, examples.labels, WEIGHTS, 0.1),
    )


def closed(model: Network, examples: Examples, keep: Tensor) -> PerExampleGradients:
    dense = DenseGradients.from_model(model, unflatten_parameters(model, flatten_parameters(model)))
    assert dense is not None
    return dense.per_example_gradients(examples.features, keep, slope_in(examples))


def slope_in(examples: Examples) -> LogitGradient:
    return lambda logits, scale: logit_gradients(
        Loss(), logits, examples.labels, WEIGHTS, smoothing=0.1, scale=scale
    )


Way = Callable[[Network, Examples, Tensor], PerExampleGradients]
WAYS: list[tuple[str, str, Way]] = [
    *((kind, pooling, recorded) for kind, pooling in SHIPPED),
    *((kind, "none", closed) for kind in DENSE),
]


def each_of(gradients: PerExampleGradients) -> Tensor:
    """Written out, shape (utterances, params)."""
    return torch.stack([gradients.weighted_sum(one) for one in torch.eye(len(gradients)).double()])


def hooked(model: Network, examples: Examples, keep: Tensor) -> Tensor:
    """By Opacus' own hooks."""
    module = GradSampleModule(model, loss_reduction="sum")
    losses(module, examples, keep).sum().backward()
    rows = [weight.grad_sample.flatten(1) for weight in module.parameters()]
    module.remove_hooks()
    return torch.cat(rows, dim=1)


def looped(model: Network, examples: Examples, keep: Tensor) -> Tensor:
    """By plain autograd, one utterance at a time."""
    rows = []
    for index in range(len(examples)):
        one = examples.select(torch.tensor([index]))
        loss = losses(model, one, keep[index : index + 1]).sum()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in grads]))
    return torch.stack(rows)


def agree(found: PerExampleGradients, wanted: Tensor) -> bool:
    norms = torch.linalg.vector_norm(wanted.double(), dim=1)
    return torch.allclose(each_of(found), wanted.double(), atol=1e-5, rtol=1e-5) and torch.allclose(
        found.norms, norms, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("kind", "pooling", "way"), [way for way in WAYS if way[:2] in HOOKED])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the features need no gradient
def test_gradients_are_those_of_opacus_hooks(kind: str, pooling: str, way: Way) -> None:
    model = network(kind, pooling)
    arguments = utterances(model)

    assert agree(way(model, *arguments), hooked(model, *arguments))


@pytest.mark.parametrize(("kind", "pooling", "way"), WAYS)
def test_gradients_are_those_of_single_utterances(kind: str, pooling: str, way: Way) -> None:
    model = network(kind, pooling)
    examples, keep = utterances(model)
    found, wanted = way(model, examples, keep), looped(model, examples, keep)

    assert agree(found, wanted)
    assert not torch.allclose(wanted[0], wanted[1])
    assert not agree(found, looped(model, examples, keep.flip(0))), "dropout masks do not matter"


@pytest.mark.parametrize(("kind", "pooling", "way"), WAYS)
def test_a_share_that_is_forgotten_is_seen(kind: str, pooling: str, way: Way) -> None:
    """The comparison itself: it notices every single tensor of weights, biases too."""
    model = network(kind, pooling)
    examples, keep = utterances(model)
    found, wanted = way(model, examples, keep), looped(model, examples, keep)

    for lost, share in enumerate(found.parameter_gradients):
        if share.squared_norms().max() < 1e-10:  # a softmax does not feel the bias below it
            continue
        rest = [other for index, other in enumerate(found.parameter_gradients) if index != lost]
        squares = torch.stack([other.squared_norms() for other in rest]).sum(dim=0)
        empty: ParameterGradients = share.zero_examples(torch.ones(SIZE, dtype=torch.bool))
        shares = (*found.parameter_gradients[:lost], empty, *found.parameter_gradients[lost + 1 :])
        assert not agree(PerExampleGradients(shares, found.norms), wanted), lost
        if share.squared_norms().max() > 1e-3:  # or the norm feels it less than its tolerance
            assert not agree(
                PerExampleGradients(found.parameter_gradients, squares.sqrt()), wanted
            ), lost


def test_a_bias_read_without_its_feature_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("linear")
    arguments = utterances(model)
    monkeypatch.setitem(rules.LAYER_RULES, type(model.head), rules.LAYER_RULES[nn.Linear])

    assert not agree(recorded(model, *arguments), looped(model, *arguments))


@pytest.mark.parametrize(("kind", "pooling", "way"), WAYS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_utterance_is_zeros_and_leaves_the_others_alone(
    kind: str, pooling: str, way: Way, value: float
) -> None:
    model = network(kind, pooling)
    examples, keep = utterances(model)
    good = each_of(way(model, examples, keep))
    examples.features[3] = value
    before = examples.features.clone()
    found = way(model, examples, keep)

    good[3] = 0
    assert found.zeroed == 1
    torch.testing.assert_close(each_of(found), good, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        found.norms, torch.linalg.vector_norm(good, dim=1), rtol=1e-5, atol=0
    )
    assert torch.equal(examples.features, before) or math.isnan(value)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_tensor_that_is_no_number_zeroes_the_utterance_in_all(place: int, value: float) -> None:
    parts = [torch.ones(3, 2, 1), torch.ones(3, 1, 1), torch.ones(3, 1, 2)]
    parts[place][1, 0, 0] = value

    found = collect_gradients(tuple(map(MaterialisedGradients, parts)))

    assert found.zeroed == 1
    assert found.norms.tolist() == pytest.approx([math.sqrt(5), 0.0, math.sqrt(5)])
    assert found.weighted_sum(torch.ones(3, dtype=torch.float64)).tolist() == [2.0] * 5


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e18, 3e30])
def test_norms_hold_where_squares_pass_what_float32_holds(size: float) -> None:
    slopes, read = torch.full((2, 3), 2.0), torch.full((2, 4), 0.5) * size
    rows = torch.full((2, 3, 4), size)

    assert OuterProductGradients(slopes, read).squared_norms().sqrt()[0] == pytest.approx(
        12**0.5 * size, rel=1e-6
    )
    assert MaterialisedGradients(rows).squared_norms().sqrt()[1] == pytest.approx(
        12**0.5 * size, rel=1e-6
    )


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-30, 1e-15, 1.0, 1e14, 1e16, 1e30, 3e37])
@pytest.mark.parametrize("other", [0.0, 1e-40, 1e-30, 1.0, 1e30, 3e37])
def test_clipped_outer_products_keep_their_norm_whatever_their_factors(
    size: float, other: float
) -> None:
    random = torch.Generator().manual_seed(4)
    slopes, read = torch.randn(2, 5, generator=random), torch.randn(2, 7, generator=random)
    slopes[0] *= size
    read[0] *= other
    found = OuterProductGradients(slopes, read)
    norms = found.squared_norms().sqrt()
    if norms.max() > 8e37:  # the trainer gives such a gradient no factor
        norms[0] = math.inf
    factors = (0.5 / norms).clamp(max=1.0)
    summed = found.weighted_sum(factors.float()).double().view(5, 7)

    exact = torch.einsum("u,uo,ui->oi", factors, slopes.double(), read.double())
    assert torch.linalg.vector_norm(summed - exact) <= 0.5e-5
    assert found.weighted_sum(factors.float()).dtype == torch.float32


def test_scaled_slopes_that_float32_cannot_hold_would_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slopes, read = torch.full((1, 1), 1e-6), torch.full((1, 1), 3e38)
    factors = torch.tensor([1e-38 / 3])  # a clip norm of 1e-6

    assert float(OuterProductGradients(slopes, read).weighted_sum(factors)) == pytest.approx(
        1e-6, rel=1e-5
    )
    monkeypatch.setattr(gradient_factors, "MAX_ACTIVATION_NORM", math.inf)
    assert float(OuterProductGradients(slopes, read).weighted_sum(factors)) != pytest.approx(
        1e-6, rel=1e-5
    )


@pytest.mark.parametrize("longest", [1, 2, 19, 25])
def test_a_memory_written_out_remembers_the_same(longest: int) -> None:
    random = torch.Generator().manual_seed(3)
    memory = BidirectionalLstm(INPUTS, 8)
    for weight in memory.parameters():
        nn.init.normal_(weight, generator=random)
    frames = torch.randint(1, longest + 1, (SIZE,), generator=random)
    features = torch.randn(SIZE, longest, INPUTS, generator=random)

    found = run_lstm(memory, features, frames).outputs
    torch.testing.assert_close(found, memory(features, frames), atol=1e-6, rtol=1e-5)


def test_a_twin_reads_present_weights_and_the_model_is_not_changed() -> None:
    model = network("mlp")
    examples, keep = utterances(model)
    before, moving = flatten_parameters(model), flatten_parameters(model)
    recorder = GradientRecorder(model, moving)
    moving += 0.1
    moved = each_of(heard(recorder, examples, keep))

    assert torch.equal(flatten_parameters(model), before)
    assert all(weight.requires_grad for weight in model.parameters())
    assert not model.head._forward_hooks
    assert not torch.allclose(moved, each_of(recorded(model, examples, keep)))


def test_a_layer_without_a_rule_is_refused() -> None:
    model = network("linear")
    model.backbone.odd = nn.Bilinear(2, 2, 2)

    with pytest.raises(ModelError, match=r"backbone\.odd, a Bilinear"):
        GradientRecorder(model, flatten_parameters(model))


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize(("decay", "scale"), [(1.0, -0.3), (0.9, 1.0), (0.0, 1.0)])
def test_mean_gradients_in_closed_form_are_those_of_autograd(
    kind: str, decay: float, scale: float
) -> None:
    model = network(kind)
    examples, keep = utterances(model)
    dense = DenseGradients.from_model(model, unflatten_parameters(model, flatten_parameters(model)))
    before = [torch.randn_like(weight) for weight in model.parameters()]
    sums = [one.clone() for one in before]
    assert dense is not None
    dense.add_mean_gradient(
        sums, examples.features, keep, slope_in(examples), decay=decay, scale=scale
    )

    mean = losses(model, examples, keep).mean()
    for found, was, wanted in zip(
        sums, before, torch.autograd.grad(mean, list(model.parameters())), strict=True
    ):
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(found, decay * was + scale * wanted, atol=1e-6, rtol=1e-5)


def test_only_heads_on_vectors_have_a_closed_form() -> None:
    found = {pair: is_dense(network(*pair)) for pair in SHIPPED}

    assert [pair for pair, dense in found.items() if dense] == [(kind, "none") for kind in DENSE]
    pooled = network("mlp", "mean-std")
    assert (
        DenseGradients.from_model(pooled, unflatten_parameters(pooled, flatten_parameters(pooled)))
        is None
    )
