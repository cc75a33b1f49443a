"""Training on one device: Poisson batch, per-utterance gradients, clip, noise, step.

The weights travel through a round as one flat vector, and the model handed in is never changed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from sottovoce.client.training.dp_sgd import (
    TrainingObjective,
    clip_and_sum,
    part_size,
    select_steps,
)
from sottovoce.client.training.poisson_batch import sample_batch
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.printable import get_logger
from sottovoce.shared.privacy.gaussian_noise import GaussianSampler
from sottovoce.shared.privacy.poisson_sampling import PoissonSampler, SeededPoissonSampler
from sottovoce.shared.protocol.local_training import GradientMechanism, LocalTraining

LOG = get_logger("sottovoce.client")

_VOTE_ROUNDING = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LocalUpdate:
    """Change of the weights by one round of local training.

    Attributes:
        vector: Local minus global weights, shape (params,), float32, finite.
        zeroed: Gradients of single utterances that held a NaN or an infinity and were counted as
            zeros, over all steps. Not noised: it must not leave the device.
    """

    vector: Tensor
    zeroed: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingSettings:
    """Settings of one round of local training: public facts, the same for all devices.

    Attributes:
        local_training: Steps, rates and the public denominator.
        mechanism: What bounds and hides one utterance; ``NoPrivacy`` takes the plain mean of the
            gradients of whoever joined.
        class_weights: Public weight of each class, shape (classes,), float32, 0 or above.
        isolate_examples: Whether the gradient of each utterance is computed by itself, where noise
            hides it. On a device it must be: in one call for all of them, how the last bits are
            rounded depends on how many there are, and weights that a server makes for it can blow
            that up (Casacuberta et al. 2022). A simulation's server is honest.
        progress: Which part of the rounds is over, in [0, 1], by which a curriculum weighs losses.

    Example:
        >>> from sottovoce.shared.protocol.local_training import NoPrivacy
        >>> steps = LocalTraining(steps=3, sample_rate=0.5, learning_rate=0.1, denominator=8.0)
        >>> settings = TrainingSettings(
        ...     local_training=steps, mechanism=NoPrivacy(), class_weights=torch.ones(2)
        ... )
        >>> settings.isolate_examples
        False
    """

    local_training: LocalTraining
    mechanism: GradientMechanism
    class_weights: Tensor
    isolate_examples: bool = False
    progress: float = 1.0


def compute_local_update(
    model: Network,
    examples: Examples,
    settings: TrainingSettings,
    noise: GaussianSampler,
    generator: torch.Generator,
    *,
    initial_weights: Tensor | None = None,
    sampler: PoissonSampler | None = None,
) -> LocalUpdate:
    """Train on one device's utterances, starting from the weights of ``model``.

    In each step every utterance joins with chance ``sample_rate``, independently of all others.

    Args:
        model: The shared model with the global weights; it is not changed.
        examples: The device's own utterances, already projected and normalised; none at all is
            allowed.
        settings: Settings of the round.
        noise: Where the privacy noise comes from; ``SystemGaussianSampler`` on a device.
        generator: Draws dropout, and who joins where there is no ``sampler``.
        initial_weights: The weights to start from as one vector, shape (params,), float32, finite;
            None starts from those of ``model``.
        sampler: Decides who joins a step. On a device it must be ``SystemPoissonSampler``:
            amplification by sampling holds only against those who do not know who joined.

    Returns:
        The update, and how many gradients were not numbers.

    Raises:
        ModelError: Examples or weights that do not fit the model, or weights that training has
            driven to NaN or infinity; a smaller ``learning_rate`` helps.
        SettingError: A loss that couples utterances, under ``ExampleLevelMechanism``.

    Guarantees:
        Under ``ExampleLevelMechanism``, with C = ``clip_norm`` and S = ``noise_multiplier``:

        - A step sees the utterances only through the sum of their clipped gradients. Adding or
          removing one utterance moves that sum by at most C in L2 (to 1e-5, relative), whatever
          the utterance holds, and leaves the contributions of all others as they were: to the bit
          with ``isolate_examples``, else up to float rounding. This holds if the examples
          themselves do not depend on one another: a normaliser fitted on them must have been noised
          and booked.
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
    _check(model, examples, settings.class_weights)
    training = settings.local_training
    initial_weights = flatten_parameters(model) if initial_weights is None else initial_weights
    first, *careful = select_steps(
        settings.mechanism, noise, model, isolate_examples=settings.isolate_examples
    )
    sampler = SeededPoissonSampler(generator) if sampler is None else sampler
    # The careful way repeats the same batches and masks, so it begins at the same state.
    began = generator.get_state() if careful else None
    for kind in (first, *careful):
        if kind is not first:
            generator.set_state(cast(Tensor, began))
        # A clone: momentum and steps write into it, and the caller's weights stay.
        current = nn.Parameter(initial_weights.clone())
        objective = TrainingObjective(
            model, current, settings.class_weights, training, progress=settings.progress
        )
        step = kind(objective)
        batches = (
            sample_batch(model, examples, training.sample_rate, sampler, generator)
            for _ in range(training.steps)
        )
        zeroed = sum(step(batch) for batch in batches)
        vector = current.detach().sub_(initial_weights)
        # A sum that is a number says that all are, at a fraction of the cost of looking at each.
        if math.isfinite(vector.sum()) or vector.isfinite().all():
            return LocalUpdate(vector=vector, zeroed=zeroed)
    raise ModelError(
        "training drove the weights to NaN or infinity; they must stay finite: "
        "lower learning_rate, or raise denominator"
    )


def compute_gradient_sum(
    model: Network,
    examples: Examples,
    settings: TrainingSettings,
    generator: torch.Generator,
    *,
    initial_weights: Tensor | None = None,
    sampler: PoissonSampler | None = None,
) -> Tensor:
    """Sum the clipped gradients of one step, downhill, without noise.

    Args:
        model: The shared model with the global weights; it is not changed.
        examples: The device's own utterances, projected and normalised; none at all is allowed.
        settings: Settings of the round, of one step; rate and denominator are the server's to
            apply.
        generator: Draws dropout, and who joins where there is no ``sampler``.
        initial_weights: As in :func:`compute_local_update`.
        sampler: Likewise.

    Returns:
        Minus the sum of the clipped gradients, shape (params,), float64, finite.

    Guarantees:
        - Adding or removing one utterance moves it by at most ``clip_norm`` in L2 (to 1e-5,
          relative), whatever the utterance holds, and leaves the contributions of all others as
          they were: to the bit with ``isolate_examples``, else up to float rounding. As in
          :func:`compute_local_update`, examples must not depend on one another.
        - Nothing hides an utterance in it. It must not leave a device but in a secure sum.
        - A gradient of zeros, with a NaN or an infinity, or too large for a clip factor, adds
          zeros. So does an empty batch.
        - It does not pass through the weights: float32 would round it by how large those are.

    Raises:
        ModelError: Examples or weights that do not fit the model.
        SettingError: A loss that couples utterances.
    """
    _check(model, examples, settings.class_weights)
    training = settings.local_training
    training.loss.require_uncoupled()
    weights = flatten_parameters(model) if initial_weights is None else initial_weights
    current = nn.Parameter(weights.clone())
    objective = TrainingObjective(
        model, current, settings.class_weights, training, progress=settings.progress
    )
    sampler = SeededPoissonSampler(generator) if sampler is None else sampler
    batch = sample_batch(model, examples, training.sample_rate, sampler, generator)
    total = torch.zeros(len(weights), dtype=torch.float64)
    for part in batch.split(1 if settings.isolate_examples else part_size(current)):
        if len(part):
            gradients = objective.per_example_gradients(part)
            total -= clip_and_sum(gradients, settings.mechanism.clip_norm)
    return total


def compute_update_or_zeros(train: Callable[[], LocalUpdate], weights: Tensor) -> Tensor:
    """Compute the update of a device, shape (params,); zeros where its training overflows.

    Whether it overflows depends on the clips, so it must not show in whether a device answers.

    Args:
        train: :func:`compute_local_update`, with its arguments.
        weights: What training starts from, shape (params,), float32.
    """
    try:
        return train().vector
    except ModelError as error:
        LOG.warning("the update of this device counts as zeros: %s", error)
        return torch.zeros_like(weights)


def _check(model: Network, examples: Examples, class_weights: Tensor) -> None:
    """Refuse what would fail half-way, or train on nonsense."""
    numbers = class_weights.tolist()
    if class_weights.shape != (model.classes,) or not all(0 <= one < math.inf for one in numbers):
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
    if examples.votes is not None:
        _check_votes(examples.votes, (len(examples), model.classes))


def _check_votes(votes: Tensor, shape: tuple[int, int]) -> None:
    """Refuse votes that are no shares."""
    usable = votes.shape == shape and bool((votes >= 0).all())
    # Written so that NaN fails; rounding of many votes stays far below the limit.
    if not usable or not bool(((votes.sum(1) - 1).abs() <= _VOTE_ROUNDING).all()):
        raise ModelError(
            f"votes of shape {tuple(votes.shape)} do not fit; they must be {shape}, 0 or above, "
            "and sum to 1 for each utterance: check the labels of the raters"
        )
