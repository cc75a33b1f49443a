"""One step of local training: noised under Opacus' optimizer, or plain.

The weights are one flat vector. Opacus' ``DPOptimizer`` sees that vector as its only parameter, and
its gradients come with the norm of each utterance's whole gradient, so clipping is over all weights
by construction.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Protocol, cast

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim.sgd import sgd

from sottovoce.client.training.curriculum_weights import compute_curriculum_weights
from sottovoce.client.training.gradient_factors import PerExampleGradients
from sottovoce.client.training.linear_gradients import DenseGradients, is_dense
from sottovoce.client.training.per_example_gradients import GradientRecorder, rebind_weights
from sottovoce.client.training.poisson_batch import Batch
from sottovoce.shared.models.losses import Loss, logit_gradients, utterance_losses
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.parameters import unflatten_parameters
from sottovoce.shared.privacy import clipping
from sottovoce.shared.privacy.gaussian_noise import GaussianSampler
from sottovoce.shared.protocol.local_training import (
    ExampleLevelMechanism,
    GradientMechanism,
    LocalTraining,
)

_MIN_CLIP_FACTOR = torch.finfo(torch.float32).tiny
"""A gradient whose clip factor is no more is dropped: float32 would hold too few digits of it to
keep the bound."""

MAX_GRADIENT_NUMBERS = 2**22
"""Numbers that per-utterance gradients may hold at once (16 MiB); larger batches go in parts, which
also spares the system from handing out, and taking back, the memory of all of them in each step."""


class TrainingObjective:
    """Loss of each utterance as a function of the flat weights, and its gradients."""

    def __init__(
        self,
        model: Network,
        flat_weights: nn.Parameter,
        class_weights: Tensor,
        training: LocalTraining,
        *,
        progress: float = 1.0,
    ) -> None:
        self.flat_weights = flat_weights
        self._progress = progress
        self.training = training
        self._model = model
        self._class_weights = class_weights
        self._loss: Loss = training.loss
        self._smoothing = training.label_smoothing
        self.weight_tensors = unflatten_parameters(model, flat_weights.detach())
        """The weights, tensor by tensor; to write into one is to write into the flat vector."""
        self.dense_gradients = DenseGradients.from_model(model, self.weight_tensors)

    def example_losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the loss of each utterance, shape (utterances,)."""
        targets = self._targets(batch)
        each = utterance_losses(self._loss, logits, targets, self._class_weights, self._smoothing)
        weights = self._curriculum_weights(logits, batch)
        return each if weights is None else each * weights

    def logit_gradients(self, logits: Tensor, batch: Batch, scale: float) -> Tensor:
        """Differentiate the summed losses in the logits, shape (utterances, classes)."""
        targets = self._targets(batch)
        # Before the loss's own gradient, which may take the logits' place.
        weights = self._curriculum_weights(logits, batch)
        found = logit_gradients(
            self._loss, logits, targets, self._class_weights, self._smoothing, scale
        )
        return found if weights is None else found.mul_(weights.unsqueeze(1))

    def _curriculum_weights(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """Factor of each utterance's loss; None where all count in full."""
        return compute_curriculum_weights(
            self.training.curriculum, logits, batch.examples, self._progress
        )

    def _targets(self, batch: Batch) -> Tensor:
        """What each utterance is trained towards: its class, or the shares of its votes."""
        # An utterance's votes are its own, so its gradient still depends on it alone.
        votes = batch.examples.votes if self.training.targets == "soft" else None
        return batch.examples.labels if votes is None else votes

    @cached_property
    def _recorder(self) -> GradientRecorder:
        """Recorder of the layers of any model."""
        return GradientRecorder(self._model, self.flat_weights)

    @cached_property
    def _differentiable_weights(self) -> dict[str, Tensor]:
        """Weight tensors once more, as leaves that require gradients."""
        # Leaves that share storage with the flat vector: a step on it is seen here at once.
        return {name: leaf.detach().requires_grad_() for name, leaf in self.weight_tensors.items()}

    @cached_property
    def _bound_model(self) -> Network:
        """Model on weights that require gradients."""
        return rebind_weights(self._model, self._differentiable_weights)

    def mean_gradients(self, batch: Batch) -> tuple[Tensor, ...]:
        """Differentiate the mean loss in each weight tensor; there must be an utterance."""
        each = self.example_losses(self._bound_model(*batch.model_inputs()), batch)
        shares = torch.full_like(each, 1 / len(batch))  # the mean's own gradient
        return torch.autograd.grad(each, tuple(self._differentiable_weights.values()), shares)

    def per_example_gradients(self, batch: Batch) -> PerExampleGradients:
        """Differentiate each utterance's loss; there must be an utterance."""
        if self.dense_gradients is None:
            return self._recorder.per_example_gradients(
                batch.model_inputs(), lambda outputs: self.example_losses(outputs, batch)
            )
        features, _, dropout_mask = batch.model_inputs()
        return self.dense_gradients.per_example_gradients(
            features, dropout_mask, lambda logits, scale: self.logit_gradients(logits, batch, scale)
        )


def clip_and_sum(gradients: PerExampleGradients, clip_norm: float) -> Tensor:
    """Clip each utterance's gradient and add them up, shape (params,), float64.

    A factor that float32 cannot hold leaves nothing of its gradient.
    """
    # Opacus' own formula, 1e-6 included: its accounting and ours must mean the same clip.
    factors = (clip_norm / (gradients.norms + 1e-6)).clamp_(max=1.0)
    return gradients.weighted_sum(torch.threshold(factors, _MIN_CLIP_FACTOR, 0.0))


class _SourcedOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus has no types
    """Opacus' clip, sum, noise and scale over the flat weights, and SGD's own arithmetic.

    The noise comes from a ``GaussianSampler``. What torch puts around a step (hooks, a profiler's
    marks, gradients of zeros) is left out: for a small model it costs more than the step.
    """

    def __init__(
        self,
        flat_weights: nn.Parameter,
        training: LocalTraining,
        mechanism: GradientMechanism,
        noise: GaussianSampler,
    ) -> None:
        self._flat: list[Any] = [flat_weights]  # Opacus puts attributes of its own on them
        super().__init__(
            _Descent(self._flat, training),
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip_norm,
            expected_batch_size=training.denominator,
        )
        self._noise = noise
        self._sum_norm = math.inf if mechanism.sum_norm is None else mechanism.sum_norm
        self._gradients: PerExampleGradients | None = None

    @property
    def params(self) -> list[Any]:
        """The flat weights; Opacus looks for them nine times a step in the optimizer's groups."""
        return self._flat

    def take(self, gradients: PerExampleGradients | None, *, last: bool) -> None:
        """Clip a part of a batch and add it up; after the ``last`` part, noise the sum and step.

        Opacus keeps its count of parts by ``grad_sample``; the norms stand in for gradients that
        were never written out.
        """
        self.zero_grad(set_to_none=True)  # as it always is here; else Opacus logs that it will be
        self._gradients = gradients
        for weight in self.params:
            weight.grad_sample = weight.new_zeros(0) if gradients is None else gradients.norms
        self.signal_skip_step(not last)
        self.step()

    def clip_and_accumulate(self) -> None:
        """Clip and add as Opacus does, by the same formula, in float64 from norms and factors."""
        for weight in self.params:
            if self._gradients is not None:
                clipped = clip_and_sum(self._gradients, self.max_grad_norm)
                earlier = weight.summed_grad
                weight.summed_grad = clipped if earlier is None else earlier.add_(clipped)
            elif weight.summed_grad is None:
                weight.summed_grad = weight.new_zeros(weight.shape, dtype=torch.float64)

    def add_noise(self) -> None:
        """Add noise as Opacus does, but in float64: rounding comes after it, the bound before."""
        std = self.noise_multiplier * self.max_grad_norm
        for weight in self.params:
            # The bound on a user's whole sum goes before the noise, which hides the bounded sum.
            total = clipping.clip_to_norm(weight.summed_grad, self._sum_norm)
            weight.grad = self._noise.add_noise(total, std).to(weight.dtype)


class _Descent:
    """``torch.optim.SGD``'s own arithmetic, less what surrounds it.

    Args:
        weights: Written into, tensor by tensor.
        training: Step size and momentum.
    """

    def __init__(self, weights: list[Tensor], training: LocalTraining) -> None:
        self.param_groups = [{"params": weights}]  # where Opacus looks for them
        self._weights = [weight.detach() for weight in weights]
        self._velocities: list[Tensor | None] = [None] * len(weights)
        self._rate, self._momentum = training.learning_rate, training.momentum

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002  (torch's signature)
        """Gradients are never added to: each takes the place of the last."""
        for weight in self.param_groups[0]["params"]:
            # In place of zeroing: the next gradient replaces it, and nothing is allocated.
            weight.grad = None

    def step(self) -> None:
        """Take one step along the weights' own gradients, which must be there."""
        self.step_along([cast(Tensor, weight.grad) for weight in self.param_groups[0]["params"]])

    def step_along(self, gradients: Sequence[Tensor]) -> None:
        """Take one step along these gradients."""
        sgd(
            self._weights,
            list(gradients),
            self._velocities,
            weight_decay=0.0,
            momentum=self._momentum,
            lr=self._rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            foreach=False,
        )


class TrainingStep(Protocol):
    """One step over one batch."""

    def __call__(self, batch: Batch) -> int:
        """Step; how many gradients were counted as zeros."""
        ...


class _NoisedStep:
    """Clip each utterance, noise the sum, step; large batches are clipped in parts."""

    def __init__(
        self,
        objective: TrainingObjective,
        mechanism: GradientMechanism,
        noise: GaussianSampler,
        *,
        isolate_examples: bool,
    ) -> None:
        current, training = objective.flat_weights, objective.training
        # A loss that couples utterances has no gradient of one alone that a clip could bound.
        training.loss.require_uncoupled()
        self._objective = objective
        self._part_size = 1 if isolate_examples else part_size(current)
        self._optimizer = _SourcedOptimizer(current, training, mechanism, noise)

    def __call__(self, batch: Batch) -> int:
        parts = batch.split(self._part_size)
        zeroed = 0
        for left, part in zip(reversed(range(len(parts))), parts, strict=True):
            # An empty part still takes its step: noise without data hides that nobody joined.
            gradients = self._objective.per_example_gradients(part) if len(part) else None
            self._optimizer.take(gradients, last=left == 0)
            zeroed += gradients.zeroed if gradients else 0
        return zeroed


class _PlainStep:
    """Step along the mean gradient of the batch; an empty batch moves nothing.

    A gradient that is no number leaves weights that are none. That shows in the end, and then all
    is done again with care.
    """

    def __init__(self, objective: TrainingObjective) -> None:
        self._objective = objective
        self._leaves = list(objective.weight_tensors.values())
        self._descent = _Descent(self._leaves, objective.training)

    def __call__(self, batch: Batch) -> int:
        if len(batch) == 0:
            return 0
        gradients, zeroed = self._gradients(batch)
        self._descent.step_along(gradients)
        return zeroed

    def _gradients(self, batch: Batch) -> tuple[tuple[Tensor, ...], int]:
        """Compute mean gradients, tensor by tensor, and how many were counted as zeros."""
        return self._objective.mean_gradients(batch), 0


class _DenseStep:
    """Plain step for heads on frozen features: gradients are added to the weights at once."""

    def __init__(self, objective: TrainingObjective) -> None:
        training = objective.training
        self._objective = objective
        self._leaves = list(objective.weight_tensors.values())
        self._rate, self._momentum = training.learning_rate, training.momentum
        self._velocities = [torch.zeros_like(leaf) for leaf in self._leaves if self._momentum]

    def __call__(self, batch: Batch) -> int:
        if len(batch) and self._momentum:
            self._add(self._velocities, batch, decay=self._momentum, scale=1.0)
            for leaf, velocity in zip(self._leaves, self._velocities, strict=True):
                leaf.add_(velocity, alpha=-self._rate)
        elif len(batch):
            self._add(self._leaves, batch, decay=1.0, scale=-self._rate)
        return 0

    def _add(self, sums: list[Tensor], batch: Batch, *, decay: float, scale: float) -> None:
        """Decay some sums, and add the mean gradients, scaled."""
        features, _, dropout_mask = batch.model_inputs()
        cast(DenseGradients, self._objective.dense_gradients).add_mean_gradient(
            sums,
            features,
            dropout_mask,
            lambda logits, share: self._objective.logit_gradients(logits, batch, share),
            decay=decay,
            scale=scale,
        )


class _CarefulStep(_PlainStep):
    """Plain step that looks for gradients that are no numbers, and counts them as zeros."""

    def _gradients(self, batch: Batch) -> tuple[tuple[Tensor, ...], int]:
        """See ``_PlainStep``; gradients that are no numbers are found and zeroed."""
        gradients, zeroed = super()._gradients(batch)
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            return gradients, zeroed
        current = self._objective.flat_weights
        total = torch.zeros_like(current.detach())
        for part in batch.split(part_size(current)):
            found = self._objective.per_example_gradients(part)
            total += found.weighted_sum(torch.ones_like(found.norms))
            zeroed += found.zeroed
        parts = torch.split(total / len(batch), [leaf.numel() for leaf in self._leaves])
        return tuple(
            p.view(leaf.shape) for p, leaf in zip(parts, self._leaves, strict=True)
        ), zeroed


def select_steps(
    mechanism: GradientMechanism,
    noise: GaussianSampler,
    model: Network,
    *,
    isolate_examples: bool = False,
) -> tuple[Callable[[TrainingObjective], TrainingStep], ...]:
    """Select ways to step, to be tried in this order until the weights come out as numbers.

    Noise is drawn once. With ``isolate_examples``, noised steps compute each utterance by itself.
    """
    if isinstance(mechanism, ExampleLevelMechanism):
        return (
            partial(
                _NoisedStep, mechanism=mechanism, noise=noise, isolate_examples=isolate_examples
            ),
        )
    return (_DenseStep if is_dense(model) else _PlainStep), _CarefulStep


def part_size(flat_weights: Tensor) -> int:
    """Count the utterances whose gradients may be held at once."""
    return max(1, MAX_GRADIENT_NUMBERS // flat_weights.numel())
