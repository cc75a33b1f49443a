"""Training on one device: Poisson batch, per-utterance gradients, clip, noise, step.

The weights travel through a round as one flat vector. Opacus' ``DPOptimizer`` sees that vector as
its only parameter, so clipping is over the whole gradient by construction, and the model handed
in is never changed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sottovoce.shared.errors import ModelError
from sottovoce.shared.examples import Examples
from sottovoce.shared.models.flat import flatten, unflatten
from sottovoce.shared.models.loss import cross_entropy
from sottovoce.shared.models.network import Gradients, Network
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.noise import NoiseSource
from sottovoce.shared.training import LocalTraining, Mechanism, NoPrivacy, UtteranceNoise

_GRADIENT_ROOM = 2**24
"""Numbers that per-utterance gradients may hold at once (64 MiB); larger batches go in parts."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Update:
    """What one round of training changed.

    Attributes:
        vector: Local minus global weights, shape (params,), float32, finite.
        zeroed: Gradients of single utterances that held a NaN or an infinity and were counted as
            zeros, over all steps. Not noised: it must not leave the device.
    """

    vector: Tensor
    zeroed: int


def local_update(
    model: Network,
    examples: Examples,
    weights: Tensor,
    training: LocalTraining,
    mechanism: Mechanism,
    noise: NoiseSource,
    generator: torch.Generator,
) -> Update:
    """Train on one device's utterances, starting from the weights of ``model``.

    In each step every utterance joins by its own coin (``sample_rate``), whoever else there is.

    Args:
        model: The shared model with the global weights; it is not changed.
        examples: The device's own utterances, already behind the front and the normaliser; none
            at all is allowed.
        weights: Public weight of each class, shape (classes,), float32, 0 or above.
        training: Steps, rates and the public denominator.
        mechanism: What bounds and hides one utterance; ``NoPrivacy`` takes the plain mean of the
            gradients of whoever joined.
        noise: Where the privacy noise comes from; ``SystemNoise`` on a device.
        generator: Draws batches and dropout. On a device its seed must be secret: amplification by
            sampling holds only against those who do not know who joined.

    Returns:
        The update, and how many gradients were not numbers.

    Raises:
        ModelError: Examples or weights that do not fit the model, or weights that training has
            driven to NaN or infinity; a smaller ``learning_rate`` helps.

    Guarantees:
        Under ``UtteranceNoise``, with C = ``clip_norm`` and S = ``noise_multiplier``:

        - A step sees the utterances only through the sum of their clipped gradients. Adding or
          removing one utterance moves that sum by at most C in L2 (to 1e-5, relative), whatever
          the utterance holds, and leaves the contributions of all others as they were, up to
          float rounding. This holds if the examples themselves do not depend on one another: a
          normaliser fitted on them must have been noised and booked.
        - The sum gets normal noise of standard deviation S x C in every weight, in every step, also
          when nobody joined and when there are no utterances at all.
        - With a ``sum_norm`` B, the sum is brought within B before the noise, so that one user
          changes it by at most B; that moves no two sums further apart.
        - The whole update is ``steps`` such releases with Poisson rate ``sample_rate``; momentum
          and step size only process what was released.
        - A gradient of zeros adds zeros. One with a NaN or an infinity adds zeros and is counted.
          One so large that its norm is infinite adds zeros.

        Under ``NoPrivacy`` nothing is bounded; gradients that are not numbers still add zeros and
        are counted.
    """
    _check(model, examples, weights)
    start = flatten(model)
    current = nn.Parameter(start.clone())
    step = _STEPS[type(mechanism)](
        _Objective(model, weights, training.label_smoothing), current, training, mechanism, noise
    )
    zeroed = 0
    for _ in range(training.steps):
        zeroed += step(_poisson(model, examples, training.sample_rate, generator))
    return Update(vector=_difference(current.detach(), start), zeroed=zeroed)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Who joined a step, and each one's dropout mask."""

    examples: Examples
    keep: Tensor

    def __len__(self) -> int:
        return len(self.examples)

    def split(self, size: int) -> list["_Batch"]:
        """Parts of at most ``size`` utterances; one, if empty, where nobody joined."""
        if len(self) <= size:
            return [self]
        parts = torch.split(torch.arange(len(self)), size)
        return [_Batch(self.examples.take(part), self.keep[part]) for part in parts]


def _poisson(
    model: Network, examples: Examples, sample_rate: float, generator: torch.Generator
) -> _Batch:
    """Toss each utterance's coin; cut the padding that nobody who joined needs."""
    chosen = examples.take(torch.rand(len(examples), generator=generator) < sample_rate)
    return _Batch(_trim(chosen), model.keep(len(chosen), generator))


def _trim(examples: Examples) -> Examples:
    """Without the frames that are padding for all."""
    if examples.features.dim() < 3 or len(examples) == 0:
        return examples
    longest = int(examples.frames.max())
    return Examples(
        features=examples.features[:, :longest], frames=examples.frames, labels=examples.labels
    )


class _Objective:
    """The loss of each utterance as a function of the flat weights, and its gradients."""

    def __init__(self, model: Network, weights: Tensor, smoothing: float) -> None:
        self._model = model
        self._weights = weights
        self._smoothing = smoothing
        self._each = _GRADIENTS[model.gradients]

    def losses(
        self, current: Tensor, features: Tensor, frames: Tensor, labels: Tensor, keep: Tensor
    ) -> Tensor:
        """Shape (utterances,)."""
        state = unflatten(self._model, current)
        logits = functional_call(self._model, state, (features, frames, keep))
        return cross_entropy(logits, labels, self._weights, self._smoothing)

    def mean_gradient(self, current: Tensor, batch: _Batch) -> Tensor:
        """Of the mean loss, shape (params,)."""
        loss = self.losses(current, *_fields(batch)).sum() / max(len(batch), 1)
        return torch.autograd.grad(loss, current)[0]

    def gradients(self, current: Tensor, batch: _Batch) -> tuple[Tensor, int]:
        """Of each utterance's loss, shape (utterances, params), and how many were zeroed."""
        if len(batch) == 0:
            return current.new_zeros(0, current.numel()), 0
        each = self._each(self, current.detach(), batch)
        broken = ~each.isfinite().all(dim=1)
        zeroed = int(broken.sum())
        return each.masked_fill_(broken.unsqueeze(1), 0) if zeroed else each, zeroed


def _fields(batch: _Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch as the arguments of ``_Objective.losses``."""
    examples = batch.examples
    return examples.features, examples.frames, examples.labels, batch.keep


def _together(objective: _Objective, current: Tensor, batch: _Batch) -> Tensor:
    """Per-utterance gradients in one vectorised pass, (utterances, params)."""

    def loss(weights: Tensor, *one: Tensor) -> Tensor:
        return objective.losses(weights, *(field.unsqueeze(0) for field in one)).squeeze(0)

    each: Tensor = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(current, *_fields(batch))
    return each


def _one_by_one(objective: _Objective, current: Tensor, batch: _Batch) -> Tensor:
    """Per-utterance gradients in a pass each, every utterance at its own length."""
    leaf = current.requires_grad_()
    rows = []
    for index in range(len(batch)):
        one = batch.examples.take(torch.tensor([index]))
        alone = _Batch(_trim(one), batch.keep[index : index + 1])
        rows.append(objective.mean_gradient(leaf, alone))
    return torch.stack(rows)


_GRADIENTS: dict[Gradients, Callable[[_Objective, Tensor, _Batch], Tensor]] = {
    Gradients.TOGETHER: _together,
    Gradients.ONE_BY_ONE: _one_by_one,
}


class _SourcedOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus has no types
    """Opacus' clip, sum and step over the flat weights; the noise comes from a ``NoiseSource``."""

    def __init__(
        self,
        current: nn.Parameter,
        training: LocalTraining,
        mechanism: Mechanism,
        noise: NoiseSource,
    ) -> None:
        super().__init__(
            _descent(current, training),
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip_norm,
            expected_batch_size=training.denominator,
        )
        self._noise = noise
        self._sum_norm = math.inf if mechanism.sum_norm is None else mechanism.sum_norm

    def add_noise(self) -> None:
        """As in Opacus, but in float64, so that rounding comes after the noise; bounded before."""
        std = self.noise_multiplier * self.max_grad_norm
        for weight in self.params:
            total = bound.project(weight.summed_grad.double(), self._sum_norm)
            noised = total + self._noise.normal(weight.shape, std)
            weight.grad = noised.to(weight.dtype)


def _descent(current: nn.Parameter, training: LocalTraining) -> torch.optim.SGD:
    """Plain gradient descent over the flat weights."""
    return torch.optim.SGD([current], lr=training.learning_rate, momentum=training.momentum)


class _Step(Protocol):
    """One step over one batch; how many gradients were zeroed."""

    def __init__(
        self,
        objective: _Objective,
        current: nn.Parameter,
        training: LocalTraining,
        mechanism: Mechanism,
        noise: NoiseSource,
    ) -> None: ...

    def __call__(self, batch: _Batch) -> int: ...


class _NoisedStep:
    """Clip each utterance, noise the sum, step; large batches are clipped in parts."""

    def __init__(
        self,
        objective: _Objective,
        current: nn.Parameter,
        training: LocalTraining,
        mechanism: Mechanism,
        noise: NoiseSource,
    ) -> None:
        self._objective = objective
        self._current = current
        self._optimizer = _SourcedOptimizer(current, training, mechanism, noise)

    def __call__(self, batch: _Batch) -> int:
        parts = batch.split(_room(self._current))
        zeroed = 0
        for left, part in zip(reversed(range(len(parts))), parts, strict=True):
            self._optimizer.zero_grad()
            each, broken = self._objective.gradients(self._current, part)
            self._current.grad_sample = each  # type: ignore[attr-defined]  # Opacus looks here
            self._optimizer.signal_skip_step(left > 0)
            self._optimizer.step()
            zeroed += broken
        return zeroed


class _PlainStep:
    """Step along the mean gradient of the batch; an empty batch moves nothing."""

    def __init__(
        self,
        objective: _Objective,
        current: nn.Parameter,
        training: LocalTraining,
        mechanism: Mechanism,  # noqa: ARG002  (one shape for both)
        noise: NoiseSource,  # noqa: ARG002
    ) -> None:
        self._objective = objective
        self._current = current
        self._optimizer = _descent(current, training)

    def __call__(self, batch: _Batch) -> int:
        if len(batch) == 0:
            return 0
        gradient, zeroed = self._objective.mean_gradient(self._current, batch), 0
        if not gradient.isfinite().all():  # find out whose fault it is; rare, so it may be slow
            gradient, zeroed = self._spared(batch)
        self._current.grad = gradient
        self._optimizer.step()
        return zeroed

    def _spared(self, batch: _Batch) -> tuple[Tensor, int]:
        """The mean gradient with broken ones counted as zeros, and how many those were."""
        total, zeroed = torch.zeros_like(self._current.detach()), 0
        for part in batch.split(_room(self._current)):
            each, broken = self._objective.gradients(self._current, part)
            total += each.sum(dim=0)
            zeroed += broken
        return total / len(batch), zeroed


_STEPS: dict[type[Mechanism], type[_Step]] = {UtteranceNoise: _NoisedStep, NoPrivacy: _PlainStep}


def _room(current: Tensor) -> int:
    """How many utterances' gradients may be held at once."""
    return max(1, _GRADIENT_ROOM // current.numel())


def _difference(local: Tensor, start: Tensor) -> Tensor:
    """Local minus global weights, if they are numbers still."""
    vector = local - start
    if not vector.isfinite().all():
        raise ModelError(
            "training drove the weights to NaN or infinity; they must stay finite: "
            "lower learning_rate, or raise denominator"
        )
    return vector


def _check(model: Network, examples: Examples, weights: Tensor) -> None:
    """Refuse what would fail half-way, or train on nonsense."""
    if weights.shape != (model.classes,) or not (weights.isfinite() & (weights >= 0)).all():
        raise ModelError(
            f"class weights {weights.tolist()} do not fit; there must be {model.classes}, "
            "finite and 0 or above"
        )
    labels = examples.labels
    if not ((labels >= 0) & (labels < model.classes)).all():
        raise ModelError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; they must lie in "
            f"[0, {model.classes}): check the plan's label order"
        )
