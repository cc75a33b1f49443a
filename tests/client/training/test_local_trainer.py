import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from sottovoce.client.training.dp_sgd import TrainingObjective
from sottovoce.client.training.gradient_factors import PerExampleGradients
from sottovoce.client.training.local_trainer import (
    LocalUpdate,
    TrainingSettings,
    compute_gradient_sum,
    compute_local_update,
)
from sottovoce.client.training.poisson_batch import Batch
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.models import (
    ModelSpec,
    Network,
    build_network,
    cross_entropy,
    flatten_parameters,
    load_parameters,
)
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.losses import Loss, utterance_losses
from sottovoce.shared.privacy.gaussian_noise import (
    GaussianSampler,
    SeededGaussianSampler,
    SystemGaussianSampler,
)
from sottovoce.shared.protocol.local_training import (
    ExampleLevelMechanism,
    GradientMechanism,
    LocalTraining,
    NoPrivacy,
)

INPUTS, CLASSES, CLIP, SMOOTHING = 6, 3, 0.5, 0.1
WEIGHTS = torch.tensor([1.0, 2.0, 0.5])
PLAIN = LocalTraining(steps=1, sample_rate=1.0, learning_rate=1.0, denominator=1.0)
SMOOTH = replace(PLAIN, label_smoothing=SMOOTHING)
PRIVATE = ExampleLevelMechanism(clip_norm=CLIP, noise_multiplier=1.0)
UNCLIPPED = ExampleLevelMechanism(clip_norm=1e6, noise_multiplier=1.0)
KINDS = [
    ("linear", "none"),
    ("mlp", "none"),
    ("linear", "mean-std"),
    ("mlp", "attentive"),
    ("cnn-attention", "none"),
    ("tcn", "none"),
    ("bilstm-attention", "none"),
]
HOOKED = [pair for pair in KINDS if pair[0] != "bilstm-attention"]  # Opacus cannot hook nn.LSTM
FEW = [("linear", "none"), ("cnn-attention", "none"), ("bilstm-attention", "none")]


class Silence:
    """No noise, to see what lies below it."""

    def add_noise(self, values: Tensor, std: float) -> Tensor:
        return values.double()

    def sample_noise(self, shape: Sequence[int], std: float) -> Tensor:
        raise AssertionError("what is released must be rounded")


def network(kind: str = "linear", pooling: str = "none", dropout: float = 0.0) -> Network:
    spec = ModelSpec(
        kind=kind,
        pooling=pooling,
        inputs=INPUTS,
        classes=CLASSES,
        hidden=8,
        dropout=dropout,
        bias_feature=0.3,
    )
    model = build_network(spec, 0)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    return model


def utterances(model: Network, size: int, seed: int = 0, scale: float = 1.0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    if model.axes == 2:
        features = torch.randn(size, INPUTS, generator=generator)
        frames = torch.ones(size, dtype=torch.int64)
        return Examples(features=features * scale, frames=frames, labels=labels)
    frames = torch.randint(1, 20, (size,), generator=generator)
    features = torch.randn(size, 25, INPUTS, generator=generator)
    features *= (torch.arange(25) < frames.unsqueeze(1)).unsqueeze(2)
    return Examples(features=features * scale, frames=frames, labels=labels)


def together(*parts: Examples) -> Examples:
    return Examples(
        features=torch.cat([part.features for part in parts]),
        frames=torch.cat([part.frames for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
    )


def settings(
    mechanism: GradientMechanism, training: LocalTraining = PLAIN, weights: Tensor = WEIGHTS
) -> TrainingSettings:
    """Settings of a round."""
    return TrainingSettings(local_training=training, mechanism=mechanism, class_weights=weights)


def train(
    model: Network,
    examples: Examples,
    mechanism: GradientMechanism = PRIVATE,
    training: LocalTraining = PLAIN,
    noise: GaussianSampler | None = None,
    seed: int = 0,
) -> LocalUpdate:
    generator = torch.Generator().manual_seed(seed)
    source = noise or Silence()
    return compute_local_update(model, examples, settings(mechanism, training), source, generator)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many utterances' gradients Opacus' step was given, step by step."""
    seen: list[int] = []
    clip = DPOptimizer.pre_step

    def spy(self: DPOptimizer, closure: None = None) -> bool:
        seen.append(len(self.grad_samples[0]))
        return bool(clip(self, closure))

    monkeypatch.setattr(DPOptimizer, "pre_step", spy)
    return seen


@pytest.mark.parametrize(("kind", "pooling"), HOOKED)
@pytest.mark.parametrize("clip_norm", [1e-2, CLIP, 1e6])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the features need no gradient
def test_a_step_is_that_of_opacus_hooks_and_optimizer(
    kind: str, pooling: str, clip_norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(kind, pooling, dropout=0.5)
    examples, start = utterances(model, 7), flatten_parameters(model)
    mask = model.draw_dropout_mask(7, torch.Generator().manual_seed(5))
    monkeypatch.setattr(model, "draw_dropout_mask", lambda size, generator: mask)
    mechanism = ExampleLevelMechanism(clip_norm=clip_norm, noise_multiplier=1.0)
    mine = train(model, examples, mechanism, replace(SMOOTH, denominator=3.0)).vector

    module = GradSampleModule(model, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        expected_batch_size=3,
    )
    logits = module(examples.features, examples.frames, mask)
    cross_entropy(logits, examples.labels, WEIGHTS, SMOOTHING).sum().backward()
    optimizer.step()
    module.remove_hooks()
    torch.testing.assert_close(mine, flatten_parameters(model) - start, atol=1e-5, rtol=1e-5)
    assert mine.norm() > 1e-3


def extreme(model: Network, value: float) -> Examples:
    """One utterance whose features are all ``value``."""
    one = utterances(model, 1, seed=9)
    return replace(one, features=torch.full_like(one.features, value))


@pytest.mark.parametrize(("kind", "pooling"), FEW)
@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 1e4, 1e18, 1e30, 3e38, math.inf, math.nan])
def test_one_utterance_moves_the_sum_by_no_more_than_the_clip(
    kind: str, pooling: str, value: float
) -> None:
    model = network(kind, pooling)
    others = utterances(model, 5)
    without = train(model, others).vector
    having = train(model, together(others, extreme(model, value))).vector

    moved = torch.linalg.vector_norm(having.double() - without.double())
    assert moved <= CLIP * (1 + 1e-5)


@pytest.mark.parametrize("clip_norm", [1e-6, 1e-2, CLIP])
@pytest.mark.parametrize("value", [1e15, 1e30, 1e33, 1e36, 1e37, 3e37, 1e38])
def test_a_clip_holds_where_its_factors_leave_what_float32_holds(
    clip_norm: float, value: float
) -> None:
    model, training = network(), replace(PLAIN, denominator=clip_norm)
    mechanism = ExampleLevelMechanism(clip_norm=clip_norm, noise_multiplier=1.0)
    alone = train(model, extreme(model, value), mechanism, training).vector

    assert torch.linalg.vector_norm(alone.double()) <= 1 + 1e-5


@pytest.mark.parametrize("share", [0.6, 0.75, 1.6, 2.6])
def test_a_clip_holds_where_float32_would_round_its_factor_up(share: float) -> None:
    """Factors below float32's normal range have few digits: the smallest one stands for a half."""
    model = network()
    loud = extreme(model, 1e38)
    objective = TrainingObjective(model, nn.Parameter(flatten_parameters(model)), WEIGHTS, PLAIN)
    norm = float(objective.per_example_gradients(Batch(loud, None)).norms[0])
    clip_norm = norm * share * 2.0**-149
    mechanism = ExampleLevelMechanism(clip_norm=clip_norm, noise_multiplier=1.0)

    alone = train(model, loud, mechanism, replace(PLAIN, denominator=clip_norm)).vector

    assert torch.linalg.vector_norm(alone.double()) <= 1 + 1e-5


def test_without_privacy_one_utterance_can_move_far_more() -> None:
    model = network()
    others = utterances(model, 5)
    having = train(model, together(others, extreme(model, 1e4)), NoPrivacy()).vector

    assert torch.linalg.vector_norm(having - train(model, others, NoPrivacy()).vector) > 100 * CLIP


def test_a_clipped_utterance_reaches_the_bound_and_a_small_one_is_left_alone() -> None:
    model = network()
    far, near = utterances(model, 1, scale=100.0), utterances(model, 1, scale=1e-3)

    loud = torch.linalg.vector_norm(train(model, far).vector)
    assert loud.item() == pytest.approx(CLIP, rel=1e-4)
    free = train(model, near, UNCLIPPED).vector
    roomy = ExampleLevelMechanism(clip_norm=2 * float(free.norm()), noise_multiplier=1.0)
    torch.testing.assert_close(train(model, near, roomy).vector, free, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "pooling"), FEW)
@pytest.mark.parametrize("mechanism", [PRIVATE, NoPrivacy()])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_gradients_count_as_zeros(
    kind: str, pooling: str, mechanism: GradientMechanism, value: float
) -> None:
    model = network(kind, pooling)
    good = utterances(model, 5)
    update = train(model, together(good, extreme(model, value)), mechanism)
    alone = train(model, good, mechanism)

    shrunk = {ExampleLevelMechanism: 1.0, NoPrivacy: 5 / 6}[type(mechanism)]  # a mean over six
    torch.testing.assert_close(update.vector, alone.vector * shrunk, atol=1e-5, rtol=1e-4)
    assert (update.zeroed, alone.zeroed) == (1, 0)


@pytest.mark.parametrize("place", [0, 3, -1])
def test_gradients_that_are_broken_in_one_tensor_are_found(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network("cnn-attention")
    examples = utterances(model, 4)
    wanted = train(model, examples, NoPrivacy()).vector
    mean_gradients = TrainingObjective.mean_gradients

    def broken(objective: TrainingObjective, batch: Batch) -> tuple[Tensor, ...]:
        found = list(mean_gradients(objective, batch))
        found[place] = torch.full_like(found[place], math.inf)
        return tuple(found)

    monkeypatch.setattr(TrainingObjective, "mean_gradients", broken)
    torch.testing.assert_close(
        train(model, examples, NoPrivacy()).vector, wanted, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(("kind", "pooling"), FEW)
@pytest.mark.parametrize(("rate", "size"), [(1.0, 0), (1e-6, 4)])
def test_noise_comes_also_where_nobody_joined(
    kind: str, pooling: str, rate: float, size: int
) -> None:
    model = network(kind, pooling)
    training = LocalTraining(steps=4, sample_rate=rate, learning_rate=0.5, denominator=10.0)
    wanted = CLIP * PRIVATE.noise_multiplier * 0.5 / 10.0 * math.sqrt(4)
    updates = [
        train(
            model, utterances(model, size), PRIVATE, training, noise=SystemGaussianSampler()
        ).vector
        for _ in range(-(-2_000 // flatten_parameters(model).numel()))
    ]
    sample = torch.cat(updates)

    allowed = 6 / math.sqrt(2 * sample.numel())  # six standard errors
    assert abs(float(sample.square().mean().sqrt()) / wanted - 1) < allowed < 1 / 3
    still = train(model, utterances(model, size), NoPrivacy(), training)
    assert still.vector.count_nonzero() == 0


def test_noise_has_the_scale_that_was_promised_on_top_of_the_sum() -> None:
    model = build_network(ModelSpec(kind="linear", inputs=2_000, classes=4), 0)
    examples = Examples(
        features=torch.randn(5, 2_000, generator=torch.Generator().manual_seed(0)),
        frames=torch.ones(5, dtype=torch.int64),
        labels=torch.tensor([0, 1, 2, 3, 0]),
    )
    training = LocalTraining(steps=1, sample_rate=1.0, learning_rate=2.0, denominator=3.0)
    mechanism = ExampleLevelMechanism(clip_norm=CLIP, noise_multiplier=1.5)

    def update(noise: GaussianSampler) -> Tensor:
        rng = torch.Generator()
        return compute_local_update(
            model, examples, settings(mechanism, training, torch.ones(4)), noise, rng
        ).vector

    ratio = float((update(SystemGaussianSampler()) - update(Silence())).std()) / (
        1.5 * CLIP * 2.0 / 3.0
    )
    assert 0.95 < ratio < 1.05
    assert not 0.95 < ratio * 2 / 3 < 1.05
    assert not 0.95 < ratio * 3 / 2 < 1.05


def test_every_utterance_joins_by_its_own_coin(joined: list[int]) -> None:
    model, size, rate, steps = network(), 40, 0.25, 500
    training = LocalTraining(steps=steps, sample_rate=rate, learning_rate=1e-6, denominator=1.0)
    train(model, utterances(model, size), training=training)
    sizes = torch.tensor(joined, dtype=torch.float64)

    assert len(sizes) == steps
    spread = math.sqrt(rate * (1 - rate) * size)
    assert abs(sizes.mean() - rate * size) < 6 * spread / math.sqrt(steps)
    assert abs(sizes.std() / spread - 1) < 0.2  # shuffled batches would have none


def test_at_rate_one_everybody_joins_every_step(joined: list[int]) -> None:
    model = network()
    train(model, utterances(model, 40), training=replace(PLAIN, steps=5))

    assert joined == [40] * 5


@pytest.mark.parametrize(("kind", "pooling"), [*FEW, ("mlp", "none")])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_without_privacy_training_is_plain_gradient_descent(
    kind: str, pooling: str, momentum: float
) -> None:
    model = network(kind, pooling)
    examples, start = utterances(model, 6), flatten_parameters(model)
    training = LocalTraining(
        steps=4, sample_rate=1.0, learning_rate=0.1, denominator=1.0, momentum=momentum
    )
    update = train(model, examples, NoPrivacy(), training)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    for _ in range(4):
        optimizer.zero_grad()
        logits = model(examples.features, examples.frames)
        cross_entropy(logits, examples.labels, WEIGHTS).mean().backward()
        optimizer.step()
    torch.testing.assert_close(
        update.vector, flatten_parameters(model) - start, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(("kind", "pooling"), FEW)
def test_both_mechanisms_walk_the_same_way_when_nothing_is_hidden(kind: str, pooling: str) -> None:
    model = network(kind, pooling)
    examples = utterances(model, 6)
    training = LocalTraining(steps=3, sample_rate=1.0, learning_rate=0.1, denominator=6.0)

    hidden = train(model, examples, UNCLIPPED, training).vector
    plain = train(model, examples, NoPrivacy(), training).vector
    torch.testing.assert_close(hidden, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mechanism", [PRIVATE, NoPrivacy()])
def test_training_starts_where_it_is_told_to(mechanism: GradientMechanism) -> None:
    model, moved = network("mlp"), network("mlp")
    start = flatten_parameters(model) + 0.1
    load_parameters(moved, start)
    examples, before, random = utterances(model, 5), start.clone(), torch.Generator()
    update = compute_local_update(
        model, examples, settings(mechanism), Silence(), random, initial_weights=start
    )

    assert torch.equal(update.vector, train(moved, examples, mechanism).vector)
    assert not torch.equal(update.vector, train(model, examples, mechanism).vector)
    assert torch.equal(start, before)


@pytest.mark.parametrize(("kind", "pooling"), FEW)
@pytest.mark.parametrize("mechanism", [PRIVATE, NoPrivacy()])
def test_seeds_repeat_a_simulation(kind: str, pooling: str, mechanism: GradientMechanism) -> None:
    model = network(kind, pooling, dropout=0.5)
    examples, before = utterances(model, 12), torch.get_rng_state()
    training = LocalTraining(steps=3, sample_rate=0.5, learning_rate=0.1, denominator=6.0)

    def once(seed: int) -> Tensor:
        noise = SeededGaussianSampler(torch.Generator().manual_seed(seed))
        return train(model, examples, mechanism, training, noise, seed).vector

    first = once(1)
    torch.rand(7)
    assert torch.equal(once(1), first)
    assert not torch.equal(once(2), first)
    torch.set_rng_state(before)


def test_a_device_never_repeats_an_update() -> None:
    model = network()
    examples = utterances(model, 5)

    first = train(model, examples, noise=SystemGaussianSampler()).vector
    assert not torch.equal(train(model, examples, noise=SystemGaussianSampler()).vector, first)


@pytest.mark.parametrize("mechanism", [PRIVATE, NoPrivacy()])
def test_neither_model_nor_global_generator_is_touched(mechanism: GradientMechanism) -> None:
    model = network("mlp", dropout=0.5)
    before, state = flatten_parameters(model), torch.get_rng_state()
    train(model, utterances(model, 5), mechanism, noise=SystemGaussianSampler())

    assert torch.equal(flatten_parameters(model), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("kind", "pooling"), FEW)
@pytest.mark.parametrize("mechanism", [PRIVATE, NoPrivacy()])
def test_large_batches_in_parts_give_the_same_update(
    kind: str, pooling: str, mechanism: GradientMechanism, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(kind, pooling)
    examples = together(utterances(model, 7), extreme(model, math.nan))
    training = replace(PLAIN, steps=2, learning_rate=0.1)
    sizes = _watch_parts(monkeypatch)
    whole = train(model, examples, mechanism, training)
    assert sizes == [8, 8], "small batches stay whole"
    sizes.clear()
    room = 3 * flatten_parameters(model).numel()
    monkeypatch.setattr("sottovoce.client.training.dp_sgd.MAX_GRADIENT_NUMBERS", room)
    parts = train(model, examples, mechanism, training)

    torch.testing.assert_close(parts.vector, whole.vector, atol=1e-5, rtol=1e-5)
    assert parts.zeroed == whole.zeroed == 2
    assert sizes == [3, 3, 2] * 2, "no more gradients at once than there is room for"


def _watch_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the parts whose gradients are held at once, as they come."""
    sizes: list[int] = []
    gradients = TrainingObjective.per_example_gradients

    def watched(objective: TrainingObjective, batch: Batch) -> PerExampleGradients:
        sizes.append(len(batch))
        return gradients(objective, batch)

    monkeypatch.setattr(TrainingObjective, "per_example_gradients", watched)
    return sizes


def test_each_part_keeps_its_utterances_dropout() -> None:
    model = network()
    mask = torch.rand(7, INPUTS, generator=torch.Generator().manual_seed(1)) < 0.5

    parts = Batch(utterances(model, 7), mask).split(3)

    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.model_inputs()[2] for part in parts]), mask)


def test_parts_are_noised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    asked: list[float] = []

    class Counting(Silence):
        def add_noise(self, values: Tensor, std: float) -> Tensor:
            asked.append(std)
            return super().add_noise(values, std)

    sizes = _watch_parts(monkeypatch)
    monkeypatch.setattr("sottovoce.client.training.dp_sgd.MAX_GRADIENT_NUMBERS", 1)
    train(model, utterances(model, 7), training=replace(PLAIN, steps=2), noise=Counting())

    assert sizes == [1] * 14
    assert asked == [CLIP * PRIVATE.noise_multiplier] * 2


def test_on_a_device_each_utterance_is_computed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("cnn-attention")
    examples, sizes = utterances(model, 5), _watch_parts(monkeypatch)
    alone = replace(settings(PRIVATE), isolate_examples=True)
    update = compute_local_update(model, examples, alone, Silence(), torch.Generator())

    assert sizes == [1] * 5
    whole = train(model, examples)
    torch.testing.assert_close(update.vector, whole.vector, atol=1e-5, rtol=1e-5)
    assert sizes[5:] == [5]


def test_training_hidden_by_little_noise_still_learns() -> None:
    model = network("mlp")
    examples = utterances(model, 30)
    features = 3 * nn.functional.one_hot(examples.labels, INPUTS) + 0.1 * examples.features
    examples = replace(examples, features=features)
    training = LocalTraining(
        steps=60, sample_rate=0.8, learning_rate=1.0, denominator=24.0, momentum=0.5
    )
    mechanism = ExampleLevelMechanism(clip_norm=CLIP, noise_multiplier=0.5)
    noise = SeededGaussianSampler(torch.Generator().manual_seed(0))
    load_parameters(
        model, flatten_parameters(model) + train(model, examples, mechanism, training, noise).vector
    )

    assert torch.equal(model(examples.features, examples.frames).argmax(dim=1), examples.labels)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_the_model_does_not_know_are_refused(label: int) -> None:
    model = network()
    examples = utterances(model, 3)
    examples.labels[1] = label

    with pytest.raises(ModelError, match="labels run from"):
        train(model, examples)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 1.0, math.nan], [1.0, 1.0, -1.0]])
def test_class_weights_that_are_none_are_refused(weights: list[float]) -> None:
    model = network()
    rng = torch.Generator()

    with pytest.raises(ModelError, match="class weights"):
        compute_local_update(
            model,
            utterances(model, 3),
            settings(PRIVATE, weights=torch.tensor(weights)),
            Silence(),
            rng,
        )


def test_weights_that_run_away_are_refused() -> None:
    model = network()

    with pytest.raises(ModelError, match="lower learning_rate"):
        train(
            model, utterances(model, 3, scale=1e30), NoPrivacy(), replace(PLAIN, learning_rate=1e30)
        )


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"steps": math.nan},
        {"sample_rate": 0.0},
        {"sample_rate": 1.1},
        {"learning_rate": math.inf},
        {"denominator": 0.0},
        {"momentum": 1.0},
        {"momentum": math.nan},
        {"label_smoothing": 1.0},
        {"label_smoothing": math.nan},
    ],
)
def test_training_that_cannot_be_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(change))):
        replace(PLAIN, **change)


@pytest.mark.parametrize(
    "clip_norm", [0.0, -1.0, 5e-324, 1e-30, 9e-13, 1.1e12, 1e300, math.inf, math.nan]
)
def test_noise_without_a_bound_is_refused(clip_norm: float) -> None:
    with pytest.raises(SettingError, match=r"clip_norm is .* from 1e-12 to 1e\+12"):
        ExampleLevelMechanism(clip_norm=clip_norm, noise_multiplier=1.0)
    with pytest.raises(SettingError, match="sum_norm"):
        ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=1.0, sum_norm=clip_norm)


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0, math.inf, math.nan])
def test_a_bound_without_noise_is_refused(noise_multiplier: float) -> None:
    with pytest.raises(SettingError, match="noise_multiplier"):
        ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=noise_multiplier)


def test_no_privacy_has_the_shape_of_privacy() -> None:
    assert (NoPrivacy().clip_norm, NoPrivacy().noise_multiplier) == (math.inf, 0.0)


OTHER_LOSSES = [Loss(kind="focal", gamma=2.0), Loss(kind="brier")]


@pytest.mark.parametrize("loss", OTHER_LOSSES)
@pytest.mark.parametrize(("kind", "pooling"), FEW)
def test_other_losses_are_clipped_utterance_by_utterance(
    kind: str, pooling: str, loss: Loss
) -> None:
    model, training = network(kind, pooling), replace(PLAIN, loss=loss)
    examples, bound = (
        utterances(model, 5),
        ExampleLevelMechanism(clip_norm=0.05, noise_multiplier=1.0),
    )
    expected = torch.zeros_like(flatten_parameters(model))
    for index in range(5):
        model.zero_grad()
        one = examples.select(torch.tensor([index]))
        utterance_losses(
            loss, model(one.features, one.frames), one.labels, WEIGHTS
        ).sum().backward()
        grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
        gradient = torch.cat([grad.flatten() for grad in grads])
        expected -= gradient * min(1.0, 0.05 / float(gradient.norm()))

    found = train(model, examples, bound, training).vector

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", OTHER_LOSSES)
@pytest.mark.parametrize("value", [1e4, 1e30, math.inf, math.nan])
def test_one_utterance_stays_within_the_clip_under_any_loss(loss: Loss, value: float) -> None:
    model, training = network(), replace(PLAIN, loss=loss)
    others = utterances(model, 5)
    without = train(model, others, training=training).vector
    having = train(model, together(others, extreme(model, value)), training=training).vector

    assert torch.linalg.vector_norm(having.double() - without.double()) <= CLIP * (1 + 1e-5)


def test_a_loss_that_couples_utterances_trains_only_where_none_is_promised_anything() -> None:
    model, training = network(), replace(PLAIN, loss=Loss(kind="mmce", weight=3.0))
    examples = utterances(model, 5)

    with pytest.raises(SettingError, match="couples the utterances"):
        train(model, examples, PRIVATE, training)

    found = train(model, examples, NoPrivacy(), training).vector
    logits = model(examples.features, examples.frames)
    total = utterance_losses(training.loss, logits, examples.labels, WEIGHTS).mean()
    grads = torch.autograd.grad(total, list(model.parameters()))
    torch.testing.assert_close(found, -torch.cat([grad.flatten() for grad in grads]))
    assert not torch.allclose(found, train(model, examples, NoPrivacy()).vector)


def test_a_broken_utterance_spares_the_others_under_a_coupled_loss() -> None:
    model, training = network(), replace(PLAIN, loss=Loss(kind="mmce"))
    good = utterances(model, 5)
    update = train(model, together(good, extreme(model, math.nan)), NoPrivacy(), training)

    assert update.zeroed == 1
    assert bool(update.vector.isfinite().all())
    assert float(update.vector.norm()) > 0


# --- the public denominator -------------------------------------------------------------------


class _One:
    """Noise of the very standard deviation in every number."""

    def add_noise(self, values: Tensor, std: float) -> Tensor:
        return values.double() + std

    def sample_noise(self, shape: Sequence[int], std: float) -> Tensor:
        raise AssertionError("what is released must be rounded")


@pytest.mark.parametrize("denominator", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("isolated", [False, True])
def test_opacus_issue_819_the_denominator_is_public_whatever_the_batch(
    denominator: float, isolated: bool
) -> None:
    """Dividing the noised sum by a floor of the batch size tells small neighbours apart.

    Opacus issue 819, arXiv 2605.15648. Here noise and sum are divided by a number of the request:
    updates of parts of the data add up to that of the whole, and noise alone has one size.
    """
    model = network()
    many = utterances(model, 30)
    settings = TrainingSettings(
        local_training=replace(PLAIN, denominator=denominator),
        mechanism=PRIVATE,
        class_weights=WEIGHTS,
        isolate_examples=isolated,
    )

    def update(first: int, last: int, noise: GaussianSampler) -> Tensor:
        part = many.select(torch.arange(first, last))
        generator = torch.Generator().manual_seed(0)
        return compute_local_update(model, part, settings, noise, generator).vector

    nobody = update(0, 0, _One())
    assert torch.allclose(nobody, torch.full_like(nobody, -CLIP / denominator), atol=1e-6)
    whole = update(0, 30, Silence())
    for size in (1, 2, 7, 29):
        parts = update(0, size, Silence()) + update(size, 30, Silence())
        assert torch.allclose(parts, whole, atol=1e-5)
        with_noise = update(0, size, _One()) - update(0, size, Silence())
        assert torch.allclose(with_noise, nobody, atol=1e-5)


VOTED = replace(PLAIN, targets="soft")


def voted(examples: Examples, seed: int = 0) -> Examples:
    """Examples with shares of votes that have little to do with their labels."""
    shares = torch.rand(len(examples), CLASSES, generator=torch.Generator().manual_seed(seed))
    return replace(examples, votes=shares / shares.sum(1, keepdim=True))


@pytest.mark.parametrize(("kind", "pooling"), KINDS)
def test_one_voted_utterance_moves_the_sum_by_the_clip_at_most(kind: str, pooling: str) -> None:
    model = network(kind, pooling)
    everybody = voted(utterances(model, 6, scale=50.0))
    config = replace(settings(PRIVATE, VOTED), isolate_examples=True)

    def total(examples: Examples) -> Tensor:
        return compute_gradient_sum(model, examples, config, torch.Generator())

    # Loud features: each gradient is far over the bound, and only the clip keeps it.
    moved = total(everybody) - total(everybody.select(slice(5)))
    assert torch.linalg.vector_norm(moved) <= CLIP * (1 + 1e-5)
    assert torch.linalg.vector_norm(moved) > 0.9 * CLIP
    alone = total(everybody.select(slice(5, 6)))
    torch.testing.assert_close(moved, alone, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("kind", "pooling"), FEW)
def test_votes_are_trained_on_where_the_plan_says_so(kind: str, pooling: str) -> None:
    model = network(kind, pooling)
    examples = voted(utterances(model, 5))
    objective = TrainingObjective(model, nn.Parameter(flatten_parameters(model)), WEIGHTS, VOTED)
    batch = Batch(examples, None)

    found = objective.per_example_gradients(batch)
    summed = found.weighted_sum(torch.ones_like(found.norms)) / 5
    logits = model(*batch.model_inputs())
    shares = cast(Tensor, examples.votes)
    wanted = -(shares * WEIGHTS * torch.log_softmax(logits, 1)).sum(1).mean()
    slopes = torch.autograd.grad(wanted, list(model.parameters()))

    torch.testing.assert_close(
        summed.float(), torch.cat([s.flatten() for s in slopes]), atol=1e-5, rtol=1e-4
    )
    plain = train(model, examples, NoPrivacy()).vector
    assert torch.equal(plain, train(model, replace(examples, votes=None), NoPrivacy()).vector)
    assert not torch.allclose(plain, train(model, examples, NoPrivacy(), VOTED).vector)


@pytest.mark.parametrize("share", [math.nan, -0.5, 2.0])
def test_votes_that_are_no_shares_are_refused(share: float) -> None:
    model = network()
    examples = utterances(model, 2)

    with pytest.raises(ModelError, match="sum to 1"):
        train(model, replace(examples, votes=torch.full((2, CLASSES), share)), training=VOTED)
