"""Training on one device: Poisson batch, per-utterance gradients, clip, noise, step.

The weights travel through a round as one flat vector, and the model handed in is never changed.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from sottovoce.client.training.batch import poisson
from sottovoce.client.training.steps import Objective, steps
from sottovoce.shared.errors import ModelError
from sottovoce.shared.examples import Examples
from sottovoce.shared.models.flat import flatten
from sottovoce.shared.models.network import Network
from sottovoce.shared.privacy.coins import Coins, SeededCoins
from sottovoce.shared.privacy.noise import NoiseSource
from sottovoce.shared.training import LocalTraining, Mechanism


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
    *,
    coins: Coins | None = None,
    apart: bool = False,
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
        generator: Draws dropout, and coins where there are no others.
        start: The weights to start from as one vector, shape (params,), float32, finite; None
            starts from those of ``model``.
        coins: Decide who joins a step. On a device they must be ``SystemCoins``: amplification by
            sampling holds only against those who do not know who joined.
        apart: Whether the gradient of each utterance is computed by itself, where noise hides it.
            On a device it must be: in one call for all of them, how the last bits are rounded hangs
            on how many there are, and weights that a server makes for it can blow that up
            (Casacuberta et al. 2022). A simulation's server is honest.

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
          the utterance holds, and leaves the contributions of all others as they were: to the bit
          with ``apart``, else up to float rounding. This holds if the examples themselves do not
          depend on one another: a normaliser fitted on them must have been noised and booked.
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
    start = flatten(model) if start is None else start
    first, *careful = steps(mechanism, noise, model, apart=apart)
    coins = SeededCoins(generator) if coins is None else coins
    began = generator.get_state() if careful else None
    for kind in (first, *careful):
        if kind is not first:
            generator.set_state(cast(Tensor, began))
        current = nn.Parameter(start.clone())
        objective = Objective(model, current, weights, training)
        step = kind(objective)
        batches = (
            poisson(model, examples, training.sample_rate, coins, generator)
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
