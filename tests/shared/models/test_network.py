import math

import pytest
import torch
from torch import Tensor, nn

from sottovoce.shared.errors import ModelError
from sottovoce.shared.models import (
    ModelSpec,
    Network,
    build_network,
    cross_entropy,
    flatten_parameters,
    load_parameters,
)

INPUTS, CLASSES = 6, 3
HEADS = [(kind, pooling) for kind in ("linear", "mlp") for pooling in ("mean-std", "attentive")]
WHOLE = [(kind, "none") for kind in ("cnn-attention", "tcn", "bilstm-attention")]
ON_FRAMES = [*HEADS, *WHOLE]
ON_VECTORS = [("linear", "none"), ("mlp", "none")]


def network(kind: str, pooling: str = "none", dropout: float = 0.0) -> Network:
    spec = ModelSpec(
        kind=kind, pooling=pooling, inputs=INPUTS, classes=CLASSES, hidden=8, dropout=dropout
    )
    model = build_network(spec, 0)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    return model


def padded(frames: Tensor, longest: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(len(frames), longest, INPUTS, generator=generator)
    return features * (torch.arange(longest) < frames.unsqueeze(1)).unsqueeze(2)


@pytest.mark.parametrize(("kind", "pooling"), ON_FRAMES)
@pytest.mark.parametrize("extra", [1, 2, 3, 50])
def test_padding_does_not_change_the_logits(kind: str, pooling: str, extra: int) -> None:
    model, frames = network(kind, pooling), torch.tensor([1, 2, 3, 17, 30])
    features = padded(frames, 30)
    logits = model(features, frames)

    longer = nn.functional.pad(features, (0, 0, 0, extra))
    torch.testing.assert_close(model(longer, frames), logits, atol=1e-5, rtol=1e-5)
    for index, length in enumerate(frames.tolist()):
        alone = model(features[index : index + 1, :length], frames[index : index + 1])
        torch.testing.assert_close(alone[0], logits[index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "pooling"), HEADS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_whatever_the_padding_holds_changes_neither_logits_nor_gradients(
    kind: str, pooling: str, value: float
) -> None:
    """A weight of 0 times an infinity is NaN."""
    model, frames = network(kind, pooling), torch.tensor([3, 1])
    features = padded(frames, 5)
    spoiled = features.clone()
    spoiled[0, 3:], spoiled[1, 1:] = value, value

    found = []
    for one in (features, spoiled):
        model.zero_grad()
        logits = model(one, frames)
        logits.square().sum().backward()
        found.append([logits, *(part.grad for part in model.parameters())])

    assert all(bool(part.isfinite().all()) for part in found[1])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(("kind", "pooling"), ON_FRAMES)
def test_real_frames_do_change_the_logits(kind: str, pooling: str) -> None:
    model, features = network(kind, pooling), padded(torch.tensor([30]), 30)

    assert not torch.allclose(
        model(features, torch.tensor([30])), model(features, torch.tensor([20]))
    )


@pytest.mark.parametrize(("kind", "pooling"), [*ON_FRAMES, *ON_VECTORS])
def test_an_utterance_is_read_the_same_in_any_company(kind: str, pooling: str) -> None:
    model, frames = network(kind, pooling), torch.tensor([9, 9, 9])
    features = padded(frames, 9) if model.axes == 3 else torch.randn(3, INPUTS)
    logits = model(features, frames)

    strangers = features.clone()
    strangers[1:] *= 100
    torch.testing.assert_close(model(strangers, frames)[0], logits[0], atol=1e-5, rtol=1e-5)
    assert logits.shape == (3, CLASSES)


@pytest.mark.parametrize(("kind", "pooling"), [*ON_FRAMES, *ON_VECTORS])
def test_no_utterance_gives_no_logits(kind: str, pooling: str) -> None:
    model, none = network(kind, pooling), torch.zeros(0, dtype=torch.int64)
    features = torch.zeros(0, 5, INPUTS) if model.axes == 3 else torch.zeros(0, INPUTS)

    assert model(features, none).shape == (0, CLASSES)


@pytest.mark.parametrize(("kind", "pooling"), [*ON_FRAMES, *ON_VECTORS])
def test_features_that_do_not_fit_are_refused(kind: str, pooling: str) -> None:
    model, frames = network(kind, pooling), torch.tensor([5])
    wide = torch.zeros(1, 5, INPUTS + 1) if model.axes == 3 else torch.zeros(1, INPUTS + 1)
    flat = torch.zeros(1, INPUTS) if model.axes == 3 else torch.zeros(1, 5, INPUTS)

    for features in (wide, flat):
        with pytest.raises(ModelError, match="6 inputs"):
            model(features, frames)


def test_no_model_normalises_over_a_batch() -> None:
    for kind, pooling in [*ON_FRAMES, *ON_VECTORS]:
        modules = network(kind, pooling).modules()
        assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)


def test_dropout_repeats_with_its_generator_and_differs_between_utterances() -> None:
    model = network("mlp", dropout=0.5)
    first = model.draw_dropout_mask(100, torch.Generator().manual_seed(1))

    assert torch.equal(first, model.draw_dropout_mask(100, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, model.draw_dropout_mask(100, torch.Generator().manual_seed(2)))
    assert not torch.equal(first[0], first[1])
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert first.mean().item() == pytest.approx(1, abs=0.2)


def test_without_a_mask_nothing_is_dropped() -> None:
    model, features = network("mlp", dropout=0.9), torch.randn(4, INPUTS)
    ones = torch.ones(4, dtype=torch.int64)

    assert torch.equal(model(features, ones), model(features, ones))
    assert torch.equal(model(features, ones), network("mlp")(features, ones))
    mask = model.draw_dropout_mask(4, torch.Generator().manual_seed(0))
    assert not torch.equal(model(features, ones, mask), model(features, ones))
    undropped = network("mlp").draw_dropout_mask(4, torch.Generator())
    assert torch.equal(model(features, ones, undropped), model(features, ones))


def test_a_linear_model_starts_without_an_opinion() -> None:
    model = build_network(ModelSpec(kind="linear", inputs=INPUTS, classes=CLASSES), 3)

    assert model(torch.randn(2, INPUTS), torch.ones(2, dtype=torch.int64)).count_nonzero() == 0


@pytest.mark.parametrize(("kind", "pooling"), [*ON_FRAMES, *ON_VECTORS])
def test_every_model_learns_a_small_set_by_heart(kind: str, pooling: str) -> None:
    model = network(kind, pooling)
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(12) % CLASSES
    frames = torch.randint(10, 20, (12,), generator=generator)
    centres = 2 * torch.eye(CLASSES, INPUTS)
    features = centres[labels] + 0.3 * torch.randn(12, INPUTS, generator=generator)
    if model.axes == 3:
        features = padded(frames, 20) * 0.3 + features.unsqueeze(1)
        features = features * (torch.arange(20) < frames.unsqueeze(1)).unsqueeze(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model(features, frames), labels, torch.ones(CLASSES)).mean().backward()
        optimizer.step()

    assert torch.equal(model(features, frames).argmax(dim=1), labels)


def test_the_bias_weighs_its_own_constant_input() -> None:
    spec = ModelSpec(kind="linear", inputs=INPUTS, classes=CLASSES, bias_feature=0.25)
    model = build_network(spec, 0)
    nn.init.constant_(model.head.bias, 8.0)

    logits = model(torch.randn(2, INPUTS), torch.ones(2, dtype=torch.int64))

    assert logits.tolist() == [[2.0] * CLASSES] * 2


def test_weights_of_one_model_do_what_they_did_in_another() -> None:
    model, features = network("tcn"), padded(torch.tensor([9]), 9)
    other = build_network(ModelSpec(kind="tcn", inputs=INPUTS, classes=CLASSES, hidden=8), 99)
    load_parameters(other, flatten_parameters(model))

    assert torch.equal(other(features, torch.tensor([9])), model(features, torch.tensor([9])))
