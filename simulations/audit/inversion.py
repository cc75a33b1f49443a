"""Can the server read an utterance's features off an update? Gradient inversion in closed form.

The gradient of a linear layer is an outer product of its error and its input (Aono et al. 2017;
Geiping et al. 2020), so an update into which one utterance went holds the model's input, but for
noise. With a few utterances of different classes, a linear model's row of each class is nearly the
input of that class's utterance.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sottovoce.client.training.trainer import local_update
from sottovoce.shared import seeds
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import finish
from sottovoce.shared.models.flat import load_flat, unflatten
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.spec import build
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.noise import SeededNoise
from sottovoce.simulations.audit.sight import update_noise
from sottovoce.simulations.audit.subject import Course

FEW = 4


def inverted(
    course: Course, people: Sequence[Examples], *, batch: int, seed: int, rounds: int | None = None
) -> float:
    """How much of an utterance's features the server recovers.

    Args:
        course: What the server asks; its first model is sent in every round.
        people: Utterances of users as raw features; a batch of each is attacked.
        batch: Utterances that went into every update, of different classes: 1, or for linear
            models up to the number of classes.
        seed: Decides batches and noise.
        rounds: How many updates the attacker averages; all of the course's where left out.

    Returns:
        Mean cosine between what was recovered and what the model read, 1 for all of it, about 0
        for nothing.
    """
    model = build(course.plan.model, seed=0)
    load_flat(model, course.weights[0])
    found: list[float] = []
    for place, examples in enumerate(people):
        chosen = _different(examples, batch, seeds.torch_rng(seed, "audit", "batch", place))
        ready = _ready(course, examples, chosen)
        noise = seeds.torch_rng(seed, "audit", "inversion", place)
        updates = [
            local_update(
                model,
                ready,
                course.class_weights,
                course.plan.training,
                course.plan.mechanism,
                SeededNoise(noise),
                noise,
            ).vector
            for _ in range(rounds or len(course.weights))
        ]
        mean = torch.stack([_summed(course, one, noise) for one in updates]).double().mean(0)
        recovered = _recovered(model, mean, ready.labels)
        found += _alike(recovered, ready.features.double())
    return sum(found) / len(found)


def _summed(course: Course, update: Tensor, generator: torch.Generator) -> Tensor:
    """An update as it is seen: where users are hidden, bounded and in a noised sum."""
    if course.plan.user is None:
        return update
    if not course.plan.private:
        update = bound.project(update, course.plan.user.update.clip_norm)
    return update + SeededNoise(generator).normal(tuple(update.shape), update_noise(course))


def _different(examples: Examples, batch: int, generator: torch.Generator) -> Tensor:
    """Places of a few utterances, each of another class."""
    order = torch.randperm(len(examples), generator=generator).tolist()
    places: dict[int, int] = {}
    for place in order:
        places.setdefault(int(examples.labels[place]), place)
    return torch.tensor(list(places.values())[:batch])


def _ready(course: Course, examples: Examples, chosen: Tensor) -> Examples:
    """Utterances as the model reads them, behind their user's mean."""
    rows = course.front.project(examples.features)
    inputs = finish(rows, rows.mean(0), examples.frames, length=course.front.length)
    whole = Examples(features=inputs, frames=examples.frames, labels=examples.labels)
    return whole.take(chosen)


def _recovered(model: Network, update: Tensor, labels: Tensor) -> Tensor:
    """What each utterance's input seems to have been, shape (utterances, inputs), float64."""
    parts = list(unflatten(model, update).values())
    matrix, bias = parts[0], parts[1]
    if len(labels) > 1:
        # A class's own utterance pulls its row up; all others push it down a little.
        return matrix[labels]
    errors, _, inputs = torch.linalg.svd(matrix, full_matrices=False)
    alone: Tensor = inputs[0] * torch.sign(errors[:, 0] @ bias)
    return alone[None]


def _alike(recovered: Tensor, read: Tensor) -> list[float]:
    """Cosine of every utterance with what was recovered of it."""
    return torch.nn.functional.cosine_similarity(recovered, read, dim=1).tolist()
