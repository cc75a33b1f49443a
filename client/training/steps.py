"""One step of local training: noised under Opacus' optimizer, or plain.

The weights are one flat vector. Opacus' ``DPOptimizer`` sees that vector as its only parameter, and
its gradients come with the norm of each utterance's whole gradient, so clipping is over all weights
by construction.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Protocol, cast

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim.sgd import sgd

from sottovoce.client.training.batch import Batch
from sottovoce.client.training.dense import Dense, is_dense
from sottovoce.client.training.gradients import Recorder, twin
from sottovoce.client.training.shares import Gradients
from sottovoce.shared.models.flat import unflatten
from sottovoce.shared.models.loss import Loss, losses, slopes
from sottovoce.shared.models.network import Network
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.noise import NoiseSource
from sottovoce.shared.training import LocalTraining, Mechanism, UtteranceNoise

_LEAST_FACTOR = torch.finfo(torch.float32).tiny
"""A gradient whose clip factor is no more is dropped: float32 would hold too few digits of it to
keep the bound."""

_GRADIENT_ROOM = 2**22
"""Numbers that per-utterance gradients may hold at once (16 MiB); larger batches go in parts, which
also spares the system from handing out, and taking back, the memory of all of them in each step."""


class Objective:
    """The loss of each utterance as a function of the flat weights, and its gradients."""

    def __init__(
        self, model: Network, current: nn.Parameter, weights: Tensor, training: LocalTraining
    ) -> None:
        self.current = current
        self.training = training
        self._model = model
        self._weights = weights
        self._loss: Loss = training.loss
        self._smoothing = training.label_smoothing
        self.leaves = unflatten(model, current.detach())
        """The weights, tensor by tensor; to write into one is to write into the flat vector."""
        self.dense = Dense.of(model, self.leaves)

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Of each utterance, shape (utterances,)."""
        labels = batch.examples.labels
        return losses(self._loss, logits, labels, self._weights, self._smoothing)

    def slopes(self, logits: Tensor, batch: Batch, scale: float) -> Tensor:
        """Of the summed losses in the logits, shape (utterances, classes)."""
        labels = batch.examples.labels
        return slopes(self._loss, logits, labels, self._weights, self._smoothing, scale)

    @cached_property
    def _recorder(self) -> Recorder:
        """Hears the layers of any model."""
        return Recorder(self._model, self.current)

    @cached_property
    def _asking(self) -> dict[str, Tensor]:
        """The leaves once more, asking for gradients."""
        return {name: leaf.detach().requires_grad_() for name, leaf in self.leaves.items()}

    @cached_property
    def _twin(self) -> Network:
        """The model on leaves that ask."""
        return twin(self._model, self._asking)

    def mean_gradients(self, batch: Batch) -> tuple[Tensor, ...]:
        """Of the mean loss in each of the leaves; there must be an utterance."""
        each = self.losses(self._twin(*batch.read()), batch)
        shares = torch.full_like(each, 1 / len(batch))  # the mean's own slopes: nobody reads it
        return torch.autograd.grad(each, tuple(self._asking.values()), shares)

    def gradients(self, batch: Batch) -> Gradients:
        """Of each utterance's loss; there must be an utterance."""
        if self.dense is None:
            return self._recorder.gradients(batch.read(), lambda said: self.losses(said, batch))
        features, _, keep = batch.read()
        return self.dense.gradients(
            features, keep, lambda logits, scale: self.slopes(logits, batch, scale)
        )


class _SourcedOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus has no types
    """Opacus' clip, sum, noise and scale over the flat weights, and SGD's own arithmetic.

    The noise comes from a ``NoiseSource``. What torch puts around a step (hooks, a profiler's
    marks, gradients of zeros) is left out: for a small model it costs more than the step.
    """

    def __init__(
        self,
        current: nn.Parameter,
        training: LocalTraining,
        mechanism: Mechanism,
        noise: NoiseSource,
    ) -> None:
        super().__init__(
            _Descent([current], training),
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip_norm,
            expected_batch_size=training.denominator,
        )
        self._noise = noise
        self._sum_norm = math.inf if mechanism.sum_norm is None else mechanism.sum_norm
        self._gradients: Gradients | None = None

    def take(self, gradients: Gradients | None, *, last: bool) -> None:
        """Clip a part of a batch and add it up; after the ``last`` part, noise the sum and step.

        Opacus keeps its count of parts by ``grad_sample``; the norms stand in for gradients that
        were never written out.
        """
        self.zero_grad()
        self._gradients = gradients
        for weight in self.params:
            weight.grad_sample = weight.new_zeros(0) if gradients is None else gradients.norms
        self.signal_skip_step(not last)
        self.step()

    def clip_and_accumulate(self) -> None:
        """As in Opacus, by the same formula, but in float64 and from norms and factors.

        A factor that float32 cannot hold leaves nothing of its gradient.
        """
        for weight in self.params:
            if self._gradients is not None:
                factors = (self.max_grad_norm / (self._gradients.norms + 1e-6)).clamp_(max=1.0)
                clipped = self._gradients.sum(torch.threshold(factors, _LEAST_FACTOR, 0.0))
                earlier = weight.summed_grad
                weight.summed_grad = clipped if earlier is None else earlier.add_(clipped)
            elif weight.summed_grad is None:
                weight.summed_grad = weight.new_zeros(weight.shape, dtype=torch.float64)

    def add_noise(self) -> None:
        """As in Opacus, but in float64, so that rounding comes after the noise; bounded before."""
        std = self.noise_multiplier * self.max_grad_norm
        for weight in self.params:
            total = bound.project(weight.summed_grad, self._sum_norm)
            noised = self._noise.normal(weight.shape, std).add_(total)
            weight.grad = noised.to(weight.dtype)


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
            weight.grad = None

    def step(self) -> None:
        """One step along the weights' own gradients, which must be there."""
        self.along([cast(Tensor, weight.grad) for weight in self.param_groups[0]["params"]])

    def along(self, gradients: Sequence[Tensor]) -> None:
        """One step."""
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


class Step(Protocol):
    """One step over one batch."""

    def __call__(self, batch: Batch) -> int:
        """Step; how many gradients were counted as zeros."""
        ...


class _NoisedStep:
    """Clip each utterance, noise the sum, step; large batches are clipped in parts."""

    def __init__(
        self, objective: Objective, mechanism: Mechanism, noise: NoiseSource, *, apart: bool
    ) -> None:
        current, training = objective.current, objective.training
        training.loss.check_alone()
        self._objective = objective
        self._room = 1 if apart else _room(current)
        self._optimizer = _SourcedOptimizer(current, training, mechanism, noise)

    def __call__(self, batch: Batch) -> int:
        parts = batch.split(self._room)
        zeroed = 0
        for left, part in zip(reversed(range(len(parts))), parts, strict=True):
            gradients = self._objective.gradients(part) if len(part) else None
            self._optimizer.take(gradients, last=left == 0)
            zeroed += gradients.zeroed if gradients else 0
        return zeroed


class _PlainStep:
    """Step along the mean gradient of the batch; an empty batch moves nothing.

    A gradient that is no number leaves weights that are none. That shows in the end, and then all
    is done again with care.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._leaves = list(objective.leaves.values())
        self._descent = _Descent(self._leaves, objective.training)

    def __call__(self, batch: Batch) -> int:
        if len(batch) == 0:
            return 0
        gradients, zeroed = self._gradients(batch)
        self._descent.along(gradients)
        return zeroed

    def _gradients(self, batch: Batch) -> tuple[tuple[Tensor, ...], int]:
        """The mean gradients, tensor by tensor, and how many were counted as zeros."""
        return self._objective.mean_gradients(batch), 0


class _DenseStep:
    """The same for heads on frozen features: gradients are added where they belong at once."""

    def __init__(self, objective: Objective) -> None:
        training = objective.training
        self._objective = objective
        self._leaves = list(objective.leaves.values())
        self._rate, self._momentum = training.learning_rate, training.momentum
        self._velocities = [torch.zeros_like(leaf) for leaf in self._leaves if self._momentum]

    def __call__(self, batch: Batch) -> int:
        if len(batch) and self._momentum:
            self._add(self._velocities, batch, kept=self._momentum, scale=1.0)
            for leaf, velocity in zip(self._leaves, self._velocities, strict=True):
                leaf.add_(velocity, alpha=-self._rate)
        elif len(batch):
            self._add(self._leaves, batch, kept=1.0, scale=-self._rate)
        return 0

    def _add(self, sums: list[Tensor], batch: Batch, *, kept: float, scale: float) -> None:
        """Mean gradients, scaled, to what is kept of some sums."""
        features, _, keep = batch.read()
        cast(Dense, self._objective.dense).add_mean(
            sums,
            features,
            keep,
            lambda logits, share: self._objective.slopes(logits, batch, share),
            kept=kept,
            scale=scale,
        )


class _CarefulStep(_PlainStep):
    """The same, where gradients that are no numbers are looked for, and count as zeros."""

    def _gradients(self, batch: Batch) -> tuple[tuple[Tensor, ...], int]:
        """See ``_PlainStep``; it finds out whose fault it is."""
        gradients, zeroed = super()._gradients(batch)
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            return gradients, zeroed
        current = self._objective.current
        total = torch.zeros_like(current.detach())
        for part in batch.split(_room(current)):
            found = self._objective.gradients(part)
            total += found.sum(torch.ones_like(found.norms))
            zeroed += found.zeroed
        parts = torch.split(total / len(batch), [leaf.numel() for leaf in self._leaves])
        return tuple(
            p.view(leaf.shape) for p, leaf in zip(parts, self._leaves, strict=True)
        ), zeroed


def steps(
    mechanism: Mechanism, noise: NoiseSource, model: Network, *, apart: bool = False
) -> tuple[Callable[[Objective], Step], ...]:
    """Ways to step, to be tried in this order until the weights come out as numbers.

    Noise is drawn once. With ``apart``, noised steps compute each utterance by itself.
    """
    if isinstance(mechanism, UtteranceNoise):
        return (partial(_NoisedStep, mechanism=mechanism, noise=noise, apart=apart),)
    return (_DenseStep if is_dense(model) else _PlainStep), _CarefulStep


def _room(current: Tensor) -> int:
    """How many utterances' gradients may be held at once."""
    return max(1, _GRADIENT_ROOM // current.numel())
