"""A run's own rounds without devices, messages or noise."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sottovoce.client.training.local_trainer import TrainingSettings, compute_local_update
from sottovoce.server.aggregation.private_sums import sum_parts
from sottovoce.server.aggregation.server_optimizer import (
    apply_update,
    compute_class_weights,
    compute_learning_rate,
    initial_state,
)
from sottovoce.server.planning.recipe import CLASS_EXPONENTS
from sottovoce.shared import seeding
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.scenario.settings import BaselineSettings


def run_plain_rounds(
    settings: BaselineSettings,
    plan: Plan,
    initial_weights: Tensor,
    devices: Sequence[Examples],
    *,
    seed_names: tuple[str, str],
) -> Tensor:
    """Train over these devices with the run's own rounds, without noise.

    Args:
        settings: Recipe and seed.
        plan: A plan without privacy.
        initial_weights: Where training starts, shape (params,), float32.
        devices: Each device's clips, as the model reads them.
        seed_names: Baseline and fold, which the seeds of batches are derived from.

    Returns:
        The weights that a run would release, shape (params,), float32.
    """
    labels = torch.cat([device.labels for device in devices])
    counts = torch.bincount(labels, minlength=len(plan.labels)).double()
    weights = compute_class_weights(counts, CLASS_EXPONENTS[settings.recipe.class_weights])
    state = initial_state(initial_weights)
    aggregation = settings.recipe.aggregation
    for number in range(1, plan.rounds + 1):
        model = build_network(plan.model, 0)
        load_parameters(model, state.weights)
        updates = []
        for index, examples in enumerate(devices):
            # Seed names end in round and device, so a device's batches do not depend on the
            # others.
            names = ("baseline", *seed_names, number, index)
            random = seeding.torch_rng(settings.seed, *names)
            training = TrainingSettings(
                local_training=replace(
                    # A private plan divides by a public constant; a baseline may use its true
                    # number of clips.
                    plan.training,
                    denominator=float(max(len(examples), 1)),
                ),
                mechanism=plan.mechanism,
                class_weights=weights,
                progress=plan.progress(number),
            )
            update = compute_local_update(
                model, examples, training, SeededGaussianSampler(random), random
            )
            updates.append(update.vector)
        rate = compute_learning_rate(
            aggregation, plan, number, devices=len(devices), denominator=1.0
        )
        # Summed in the server's order and precision, so that a baseline's rounding is the
        # run's.
        mean = (sum_parts(updates) / len(updates)).float()
        state = apply_update(state, mean, aggregation, rate=rate)
    return state.released_weights
