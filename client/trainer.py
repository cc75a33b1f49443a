"""Training on one device: Poisson batch, per-utterance gradients, clip, noise, step.

The weights travel through a round as one flat vector. Opacus' ``DPOptimizer`` sees that vector as
its only parameter, and its gradients come with the norm of each utterance's whole gradient, so
clipping is over all weights by construction, and the model handed in is never changed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn.functional import threshold
from torch.optim.sgd import sgd

from sottovoce.client.gradients import Gradients, Recorder, twin
from sottovoce.shared.errors import ModelError
from sottovoce.shared.examples import Examples
from sottovoce.shared.models.flat import flatten, unflatten
from sottovoce.shared.models.loss import Loss, losses
from sottovoce.shared.models.network import Network
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.noise import NoiseSource
from sottovoce.shared.training import LocalTraining, Mechanism, NoPrivacy, UtteranceNoise

_LEAST_FACTOR = torch.finfo(torch.float32).tiny
"""A gradient whose clip factor is no more is dropped: float32 would hold too few digits of it to
keep the bound."""

_GRADIENT_ROOM = 2**22
"""Numbers that per-utterance gradients may hold at once (16 MiB); larger batches go in parts, which
also spares the system from handing out, and taking back, the memory of all of them in each step."""


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
    start: Tensor | None = None,
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
        start: The weights to start from as one vector, shape (params,), float32, finite; None
            starts from those of ``model``.

    Returns:
        The update, and how many gradients were not numbers.

    Raises:
        ModelError: Examples or weights that do not fit the model, or weights that training has
            driven to NaN or infinity; a smaller ``learning_rate`` helps.
        SettingError: A loss that couples utterances, under ``UtteranceNoise``.

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
          One so large (a norm of some 8e37 x C) that float32 cannot hold its clip factor in full
          adds zeros.

        Under ``NoPrivacy`` nothing is bounded; gradients that are not numbers still add zeros and
        are counted.
    """
    _check(model, examples, weights)
    start, began = flatten(model) if start is None else start, generator.get_state()
    for kind in _STEPS[type(mechanism)]:
        generator.set_state(began)
        current = nn.Parameter(start.clone())
        objective = _Objective(model, current, weights, training)
        step = kind(objective, current, training, mechanism, noise)
        batches = (
            _poisson(model, examples, training.sample_rate, generator)
            for _ in range(training.steps)
        )
        zeroed = sum(step(batch) for batch in batches)
        vector = current.detach().sub_(start)
        # A sum that is a number says that all are, at a fraction of the cost of looking at each.
        if math.isfinite(vector.sum()) or vector.isfinite().all():
            return Update(vector=vector, zeroed=zeroed)
    raise ModelError(
        "training drove the weights to NaN or infinity; they must stay finite: "
        "lower learning_rate, or raise denominator"
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Who joined a step, and each one's dropout mask; None where nothing is dropped."""

    examples: Examples
    keep: Tensor | None

    def __len__(self) -> int:
        return len(self.examples)

    def read(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a model is called with."""
        return self.examples.features, self.examples.frames, self.keep

    def split(self, size: int) -> list["_Batch"]:
        """Parts of at most ``size`` utterances; one, if empty, where nobody joined."""
        if len(self) <= size:
            return [self]
        keep = self.keep
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [
            _Batch(self.examples.take(part), None if keep is None else keep[part]) for part in parts
        ]


def _poisson(
    model: Network, examples: Examples, sample_rate: float, generator: torch.Generator
) -> _Batch:
    """Toss each utterance's coin; cut the padding that nobody who joined needs."""
    draws = torch.rand(len(examples), generator=generator)
    chosen = examples if sample_rate >= 1 else examples.take(draws < sample_rate)
    keep = model.keep(len(chosen), generator) if model.dropout else None
    return _Batch(_trim(chosen), keep)


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

    def __init__(
        self, model: Network, current: Tensor, weights: Tensor, training: LocalTraining
    ) -> None:
        self._model = model
        self._current = current
        self._weights = weights
        self._loss: Loss = training.loss
        self._smoothing = training.label_smoothing
        self._recorder: Recorder | None = None

    def _losses(self, logits: Tensor, batch: _Batch) -> Tensor:
        """Shape (utterances,)."""
        labels = batch.examples.labels
        return losses(self._loss, logits, labels, self._weights, self._smoothing)

    @cached_property
    def leaves(self) -> dict[str, Tensor]:
        """The weights, tensor by tensor; to write into one is to write into the flat vector."""
        views = unflatten(self._model, self._current.detach())
        return {name: view.requires_grad_() for name, view in views.items()}

    @cached_property
    def _twin(self) -> Network:
        """The model on the leaves."""
        return twin(self._model, self.leaves)

    def mean_gradients(self, batch: _Batch) -> tuple[Tensor, ...]:
        """Of the mean loss in each of the leaves; there must be an utterance."""
        each = self._losses(self._twin(*batch.read()), batch)
        shares = torch.full_like(each, 1 / len(batch))  # the mean's own slopes: nobody reads it
        return torch.autograd.grad(each, tuple(self.leaves.values()), shares)

    def gradients(self, batch: _Batch) -> Gradients:
        """Of each utterance's loss; there must be an utterance."""
        if self._recorder is None:
            self._recorder = Recorder(self._model, self._current)
        return self._recorder.gradients(lambda twin: self._losses(twin(*batch.read()), batch))


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
                clipped = self._gradients.sum(threshold(factors, _LEAST_FACTOR, 0.0))
                earlier = weight.summed_grad
                weight.summed_grad = clipped if earlier is None else earlier.add_(clipped)
            elif weight.summed_grad is None:
                weight.summed_grad = weight.new_zeros(weight.shape, dtype=torch.float64)

    def add_noise(self) -> None:
        """As in Opacus, but in float64, so that rounding comes after the noise; bounded before."""
        std = self.noise_multiplier * self.max_grad_norm
        for weight in self.params:
            total = bound.project(weight.summed_grad, self._sum_norm)
            weight.grad = (total + self._noise.normal(weight.shape, std)).to(weight.dtype)


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
        training.loss.check_alone()
        self._objective = objective
        self._current = current
        self._optimizer = _SourcedOptimizer(current, training, mechanism, noise)

    def __call__(self, batch: _Batch) -> int:
        parts = batch.split(_room(self._current))
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

    def __init__(
        self,
        objective: _Objective,
        current: nn.Parameter,
        training: LocalTraining,
        mechanism: Mechanism,  # noqa: ARG002  (one shape for all)
        noise: NoiseSource,  # noqa: ARG002
    ) -> None:
        self._objective = objective
        self._current = current
        self._leaves = list(objective.leaves.values())
        self._descent = _Descent(self._leaves, training)

    def __call__(self, batch: _Batch) -> int:
        if len(batch) == 0:
            return 0
        gradients, zeroed = self._gradients(batch)
        self._descent.along(gradients)
        return zeroed

    def _gradients(self, batch: _Batch) -> tuple[tuple[Tensor, ...], int]:
        """The mean gradients, tensor by tensor, and how many were counted as zeros."""
        return self._objective.mean_gradients(batch), 0


class _CarefulStep(_PlainStep):
    """The same, where gradients that are no numbers are looked for, and count as zeros."""

    def _gradients(self, batch: _Batch) -> tuple[tuple[Tensor, ...], int]:
        """See ``_PlainStep``; it finds out whose fault it is."""
        gradients, zeroed = super()._gradients(batch)
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            return gradients, zeroed
        total = torch.zeros_like(self._current.detach())
        for part in batch.split(_room(self._current)):
            found = self._objective.gradients(part)
            total += found.sum(torch.ones_like(found.norms))
            zeroed += found.zeroed
        parts = torch.split(total / len(batch), [leaf.numel() for leaf in self._leaves])
        return tuple(
            p.view(leaf.shape) for p, leaf in zip(parts, self._leaves, strict=True)
        ), zeroed


_STEPS: dict[type[Mechanism], tuple[type[_Step], ...]] = {
    UtteranceNoise: (_NoisedStep,),
    NoPrivacy: (_PlainStep, _CarefulStep),
}
"""Ways to step, tried in this order until the weights come out as numbers. Noise is drawn once."""


def _room(current: Tensor) -> int:
    """How many utterances' gradients may be held at once."""
    return max(1, _GRADIENT_ROOM // current.numel())


def _check(model: Network, examples: Examples, weights: Tensor) -> None:
    """Refuse what would fail half-way, or train on nonsense."""
    numbers = weights.tolist()
    if weights.shape != (model.classes,) or not all(0 <= one < math.inf for one in numbers):
        raise ModelError(
            f"class weights {numbers} do not fit; there must be {model.classes}, "
            "finite and 0 or above"
        )
    if len(examples) == 0:
        return
    least, most = map(int, torch.aminmax(examples.labels))
    if not 0 <= least <= most < model.classes:
        raise ModelError(
            f"labels run from {least} to {most}; they must lie in "
            f"[0, {model.classes}): check the plan's label order"
        )
