"""Gradient inversion in closed form: an utterance's features from an update.

The gradient of a linear layer is an outer product of its error and its input (Aono et al. 2017;
Geiping et al. 2020), so an update into which one utterance went holds the model's input, but for
noise. With a few utterances of different classes, a linear model's row of each class is nearly the
input of that class's utterance.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sottovoce.client.training.local_trainer import TrainingSettings, compute_local_update
from sottovoce.shared import seeding
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.parameters import load_parameters, unflatten_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.simulations.audit.adversary_view import repeated_update_noise
from sottovoce.simulations.audit.device_under_test import Transcript, trains_in_round

SMALL_BATCH = 4


def invert_gradients(
    transcript: Transcript,
    people: Sequence[Examples],
    *,
    batch: int,
    seed: int,
    rounds: int | None = None,
) -> float:
    """Measure how much of an utterance's features the server recovers.

    Args:
        transcript: The server's requests; its first model is sent in every round.
        people: Utterances of users as raw features; a batch of each is attacked.
        batch: Utterances that went into every update, of different classes: 1, or for linear
            models up to the number of classes.
        seed: Decides batches and noise.
        rounds: How many updates the attacker averages; all of the transcript's by default.

    Returns:
        Mean cosine between the recovered vector and the model's input, 1 if all is recovered, about
        0 if nothing is.
    """
    model = build_network(transcript.plan.model, seed=0)
    load_parameters(model, transcript.weights[0])
    settings = TrainingSettings(
        local_training=transcript.plan.training,
        mechanism=transcript.plan.mechanism,
        class_weights=transcript.class_weights,
    )
    found: list[float] = []
    for index, examples in enumerate(people):
        chosen = _distinct_classes(
            examples, batch, seeding.torch_rng(seed, "audit", "batch", index)
        )
        ready = _model_inputs(transcript, examples, chosen)
        noise = seeding.torch_rng(seed, "audit", "inversion", index)
        updates = [
            compute_local_update(model, ready, settings, SeededGaussianSampler(noise), noise).vector
            for number in range(1, (rounds or len(transcript.weights)) + 1)
            if trains_in_round(transcript.plan, number)
        ]
        mean = (
            torch.stack([_observed_update(transcript, one, noise) for one in updates])
            .double()
            .mean(0)
        )
        recovered = _recovered(model, mean, ready.labels)
        found += _cosines(recovered, ready.features.double())
    return sum(found) / len(found)


def _observed_update(transcript: Transcript, update: Tensor, generator: torch.Generator) -> Tensor:
    """An update as the attacker sees it: under user-level privacy bounded and in a noised sum."""
    plan = transcript.plan
    if not plan.scheme.has_private_sums:
        return update
    update = plan.scheme.clip_part(plan, SumKind.UPDATE, update, None)
    return update + SeededGaussianSampler(generator).sample_noise(
        tuple(update.shape), repeated_update_noise(transcript)
    )


def _distinct_classes(examples: Examples, batch: int, generator: torch.Generator) -> Tensor:
    """Indices of a few utterances, each of another class."""
    # The first utterance of each class in random order.
    order = torch.randperm(len(examples), generator=generator).tolist()
    by_class: dict[int, int] = {}
    for index in order:
        by_class.setdefault(int(examples.labels[index]), index)
    return torch.tensor(list(by_class.values())[:batch])


def _model_inputs(transcript: Transcript, examples: Examples, chosen: Tensor) -> Examples:
    """Utterances as the model reads them, their user's mean subtracted."""
    rows = transcript.projection.project_features(examples.features)
    inputs = transcript.projection.normalise_rows(rows, rows.mean(0), examples.frames)
    whole = Examples(features=inputs, frames=examples.frames, labels=examples.labels)
    return whole.select(chosen)


def _recovered(model: Network, update: Tensor, labels: Tensor) -> Tensor:
    """What each utterance's input seems to have been, shape (utterances, inputs), float64."""
    parts = list(unflatten_parameters(model, update).values())
    matrix, bias = parts[0], parts[1]
    if len(labels) > 1:
        # A class's own utterance pulls its row up; all others push it down a little.
        return matrix[labels]
    errors, _, inputs = torch.linalg.svd(matrix, full_matrices=False)
    # Singular vectors have no sign; the bias's gradient is the error itself, and gives one.
    alone: Tensor = inputs[0] * torch.sign(errors[:, 0] @ bias)
    return alone[None]


def _cosines(recovered: Tensor, read: Tensor) -> list[float]:
    """Cosine of every utterance with what was recovered of it."""
    return torch.nn.functional.cosine_similarity(recovered, read, dim=1).tolist()
