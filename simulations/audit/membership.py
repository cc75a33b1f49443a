"""Was this utterance on the device, was this user in the training? Likelihood-ratio attacks.

LiRA (Carlini et al. 2022): the attacker lives many lives itself, with and without each target, fits
a normal distribution to what it sees either way, and judges what it is shown by their ratio. Its
shadows have the same noise as what it attacks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sottovoce.server import sums
from sottovoce.server.round import Aggregation, advance, begin, learning_rate
from sottovoce.shared import seeds
from sottovoce.shared.examples import Examples
from sottovoce.shared.front import finish
from sottovoce.shared.models.flat import load_flat
from sottovoce.shared.models.loss import cross_entropy
from sottovoce.shared.models.spec import build
from sottovoce.shared.privacy.noise import SeededNoise
from sottovoce.simulations.audit.bounds import Floats
from sottovoce.simulations.audit.onerun import decode, frank, noise_of, summed
from sottovoce.simulations.audit.sight import first_noise, update_noise
from sottovoce.simulations.audit.subject import Course, Subject, hushed, live

Truth = NDArray[np.bool_]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How well members were told from others.

    Attributes:
        auc: Chance that a member scores above another, ½ for a blind attacker.
        tpr: Share of members found where 1 % of the others are taken for members.
        guesses: How many targets were judged.
    """

    auc: float
    tpr: float
    guesses: int


def judged(scores: Floats, inside: Truth) -> Verdict:
    """Score an attack.

    Args:
        scores: Higher for members, any shape.
        inside: Who was one, the same shape.
    """
    flat, truth = scores.ravel(), inside.ravel()
    members, others = np.sort(flat[truth]), np.sort(flat[~truth])
    below = np.searchsorted(others, members, "left") + np.searchsorted(others, members, "right")
    auc = float(below.mean()) / 2 / max(len(others), 1) if len(members) else 0.5
    cut = others[-max(1, int(0.01 * len(others)))] if len(others) else 0.0
    return Verdict(auc=auc, tpr=float((members > cut).mean()), guesses=len(flat))


def ratio(seen: Floats, inside: Truth, shown: Floats) -> Floats:
    """Log-likelihood ratio of membership.

    Args:
        seen: The attacker's own statistics, shape (shadows, targets).
        inside: Which targets were in, shape (shadows, targets); each in and out at least once.
        shown: Statistics to judge, shape (lives, targets).

    Returns:
        Shape (lives, targets); means for each target, one variance for all, as few shadows allow.
    """
    means = [_mean(seen, chosen) for chosen in (inside, ~inside)]
    left = np.where(inside, seen - means[0], seen - means[1])
    spread = max(float(left.std()), 1e-9 * (float(np.abs(seen).max()) + 1e-300))
    away = [np.square((shown - mean) / spread) for mean in means]
    result: Floats = (away[1] - away[0]) / 2
    return result


def _mean(seen: Floats, chosen: Truth) -> Floats:
    """Mean over the chosen lives, for every target; the overall mean where none was chosen."""
    number = chosen.sum(0)
    usual = seen.mean(0)
    found: Floats = np.where(number > 0, (seen * chosen).sum(0) / np.maximum(number, 1), usual)
    return found


def coins(lives: int, targets: int, seed: int, *names: str) -> Truth:
    """Who is in which life: by fair coins, shape (lives, targets)."""
    draws = seeds.numpy_rng(seed, "audit", "members", *names)
    chosen: Truth = draws.random((lives, targets)) < 0.5
    return chosen


def utterances(
    course: Course,
    devices: Sequence[Examples],
    *,
    shadows: int,
    lives: int,
    seed: int,
    progress: Progress = lambda _what, _done, _total: None,
) -> Verdict:
    """Tell which utterances were on a device, from all its updates.

    Args:
        course: What the server asks; its first model is sent in every round.
        devices: Utterances that may be on each device, as raw features.
        shadows: Lives that the attacker lives itself.
        lives: Lives that it judges.
        seed: Decides who is in, and all noise.
        progress: Takes (what, done, total).
    """
    course = frank(course.constant())
    scores, truth = [], []
    for place, examples in enumerate(devices):
        inside = coins(shadows + lives, len(examples), seed, "utterances", str(place))
        read = _reader(course, examples)
        found = []
        for number, chosen in enumerate(inside):
            own = seeds.derive(seed, "audit", "member life", place, number)
            found.append(read(examples.take(torch.from_numpy(chosen)), own))
            done = place * len(inside) + number + 1
            progress("lives of the members' devices", done, len(devices) * len(inside))
        seen = np.stack(found)
        scores.append(ratio(seen[:shadows], inside[:shadows], seen[shadows:]).ravel())
        truth.append(inside[shadows:].ravel())
    return judged(np.concatenate(scores), np.concatenate(truth))


def _reader(course: Course, examples: Examples) -> Callable[[Examples, int], Floats]:
    """Lives a life, and tells how far each utterance seems to be in it, shape (utterances,)."""
    quiet = hushed(course.constant(1))
    whole = summed(course, live(quiet, examples, 0))
    everyone = torch.arange(len(examples))
    each = torch.stack(
        [
            whole - summed(course, live(quiet, examples.take(everyone != left), 0))
            for left in range(len(examples))
        ]
    )
    rest = whole - each.sum(0)

    def read(held: Examples, seed: int) -> Floats:
        total = summed(course, live(course, held, seed)) - rest
        found: Floats = decode(each, total, noise=noise_of(course)).numpy()
        return found

    return read


def users(
    course: Course,
    people: Sequence[Examples],
    aggregation: Aggregation,
    *,
    shadows: int,
    lives: int,
    seed: int,
    progress: Progress = lambda _what, _done, _total: None,
) -> Verdict:
    """Tell which users trained, from the released model alone.

    Args:
        course: What the server asks; only where it starts counts, models follow from the users.
        people: Utterances of each user who may take part, as raw features.
        aggregation: How the server makes a model of updates.
        shadows: Trainings that the attacker does itself.
        lives: Trainings that it judges.
        seed: Decides who is in, and all noise.
        progress: Takes (what, done, total).
    """
    inside = coins(shadows + lives, len(people), seed, "users")
    found = []
    for number, chosen in enumerate(inside):
        own = seeds.derive(seed, "audit", "federation", number)
        here = [one for one, is_in in zip(people, chosen, strict=True) if is_in] or [people[0]]
        model = federation(course, here, aggregation, own)
        found.append([_fit(course, model, one) for one in people])
        progress("trainings with half of the users", number + 1, len(inside))
    seen = np.array(found)
    return judged(ratio(seen[:shadows], inside[:shadows], seen[shadows:]), inside[shadows:])


def federation(
    course: Course, people: Sequence[Examples], aggregation: Aggregation, seed: int
) -> Tensor:
    """Train a model with these users, as the server does, shape (params,)."""
    labels = course.plan.labels
    devices = [
        Subject(one, labels, seeds.derive(seed, "user", place)) for place, one in enumerate(people)
    ]
    course = replace(course, devices=len(devices))
    draws = SeededNoise(seeds.torch_rng(seed, "sums"))
    enrolled = torch.stack([device.enrol(course) for device in devices]).double().sum(0)
    parts = zip((enrolled[: len(labels)], enrolled[len(labels) :]), _own(course), strict=True)
    counts, rows = (part + draws.normal(tuple(part.shape), noise) for part, noise in parts)
    usual = max(float(counts.sum()) / len(devices), 1.0)
    each = 1.0 if course.plan.unit == "user" else usual  # a user's mean row, or all rows
    centre = (rows / (each * len(devices))).float()
    if course.plan.centre is None:
        centre = torch.zeros_like(course.centre)
    course = replace(course, centre=centre, denominator=usual)
    state = begin(course.weights[0])
    for number in range(1, course.plan.rounds + 1):
        asked = replace(course, weights=[state.weights] * number)
        total = torch.stack([device.train(asked, number) for device in devices]).double().sum(0)
        mean = (total + draws.normal(tuple(total.shape), _missing(course))) / len(devices)
        rate = learning_rate(
            aggregation, course.plan, number, devices=len(devices), denominator=usual
        )
        state = advance(state, mean.float(), aggregation, rate=rate)
    return state.released


def _own(course: Course) -> tuple[float, float]:
    """What the server adds to the sums of counts and of centres: all but the devices' own noise."""
    plan, left = course.plan, course.devices - 1
    own = plan.centre.radius * plan.centre.noise_multiplier if plan.centre and plan.private else 0.0
    counts, centre = first_noise(course)
    return _less(counts, plan.count_noise, left), _less(centre, own, left)


def _missing(course: Course) -> float:
    """The same for a round's updates."""
    own = replace(course.plan, user=None)
    one = sums.spread(own, devices=1, denominator=course.denominator)
    return _less(update_noise(course), one, course.devices - 1)


def _less(noise: float, own: float, others: int) -> float:
    """A standard deviation without the noise of so many devices."""
    return math.sqrt(max(0.0, noise**2 - others * own**2))


def _fit(course: Course, weights: Tensor, examples: Examples) -> float:
    """How well a model fits a user: minus the mean loss of their utterances, in nats."""
    model = build(course.plan.model, seed=0).eval()
    load_flat(model, weights)
    rows = course.front.project(examples.features)
    inputs = finish(rows, rows.mean(0), examples.frames, length=course.front.length)
    with torch.no_grad():
        logits = model(inputs, examples.frames)
    losses = cross_entropy(logits, examples.labels, torch.ones(len(course.plan.labels)))
    return -float(losses.mean())
