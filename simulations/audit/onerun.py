"""One run, many canaries: privacy auditing with one training run (Steinke et al. 2023).

A coin decides for every canary whether it is in. All are told apart at once, by the linear estimate
of least mean squared error of all coins from the mean update, and the surest are guessed.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared import seeds
from sottovoce.shared.errors import SettingError
from sottovoce.shared.examples import Examples, join
from sottovoce.simulations.audit import bounds
from sottovoce.simulations.audit.canary import FAR, utterance
from sottovoce.simulations.audit.subject import Course, Seen, hushed, live

_LABELS = 4
"""Canaries along one direction, told apart by their labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneRun:
    """What one life showed.

    Attributes:
        epsilon: Lower bound, at the confidence that was asked for.
        canaries: How many coins were tossed.
        guesses: How many were guessed.
        correct: How many guesses were right.
    """

    epsilon: float
    canaries: int
    guesses: int
    correct: int


def one_run(
    course: Course, others: Examples, *, canaries: int, seed: int, delta: float, confidence: float
) -> OneRun:
    """Audit a device's updates by a single life.

    Args:
        course: What the server asks; its first model is sent in every round.
        others: The device's own utterances as raw features, which the attacker knows.
        canaries: Most canaries to place, at least 8.
        seed: Decides coins, canaries and noise.
        delta: Of the promise.
        confidence: Of the bound.

    Raises:
        SettingError: Too few canaries to guess any.
    """
    placed = _canaries(course, canaries, seed)
    if len(placed) < 8:
        raise SettingError(f"canaries is {len(placed)}; one run needs at least 8 to tell anything")
    course = frank(course.constant())
    coins = seeds.torch_rng(seed, "audit", "coins")
    inside = torch.rand(len(placed), generator=coins) < 0.5
    seen = live(course, join([others, placed.take(inside)]), seeds.derive(seed, "audit", "one run"))
    guess = estimate(course, others, placed, seen)
    sizes = sorted({max(4, len(placed) // part) for part in (16, 4, 1)})
    epsilon, guesses, correct = bounds.best_of(
        guess.numpy(), inside.numpy(), sizes, delta=delta, confidence=confidence
    )
    return OneRun(epsilon=epsilon, canaries=len(placed), guesses=guesses, correct=correct)


def estimate(course: Course, others: Examples, placed: Examples, seen: Seen) -> Tensor:
    """How far each placed utterance seems to be in, shape (utterances,), float64.

    Args:
        course: What the server asked, the same model in every round.
        others: What is known to be on the device.
        placed: What may be on it.
        seen: What the device sent.
    """
    quiet = hushed(course.constant(1))
    known = live(quiet, others, 0)
    singles = (placed.take(torch.tensor([place])) for place in range(len(placed)))
    each = [summed(course, live(quiet, one, 0)) for one in singles]
    total = summed(course, seen) - summed(course, known)
    return decode(torch.stack(each), total, noise=noise_of(course))


def frank(course: Course) -> Course:
    """Without a normaliser where nothing is noised: the plan is the server's to choose.

    An exact mean would be moved by canaries that lie far out, and blur what they tell.
    """
    if course.plan.private:
        return course
    return replace(course, plan=replace(course.plan, normaliser=None))


def summed(course: Course, seen: Seen) -> Tensor:
    """The mean update as a sum over utterances, shape (params,), float64.

    Without noise a device sends the mean gradient, and exact label counts that undo it.
    """
    mean = seen.updates.double().mean(0)
    if course.plan.private:
        return mean
    return mean * float(seen.enrolment[: len(course.plan.labels)].double().sum())


def decode(each: Tensor, total: Tensor, *, noise: float) -> Tensor:
    """Coins from a sum: the linear estimate of least mean squared error.

    Args:
        each: What every one would add, shape (utterances, params), float64.
        total: What was added, noised, shape (params,), float64.
        noise: Standard deviation of the noise in every number.

    Returns:
        Shape (utterances,), float64.
    """
    gram = each @ each.T
    # Coins vary by 1/4; a hair of noise keeps the system solvable where there is none.
    doubt = max(4 * noise**2, 1e-9 * float(gram.diagonal().mean()))
    away = total - each.sum(0) / 2
    weighed: Tensor = torch.linalg.solve(
        gram + doubt * torch.eye(len(each), dtype=gram.dtype), each @ away
    )
    return weighed


def noise_of(course: Course) -> float:
    """Standard deviation of the noise in one weight of the mean update."""
    mechanism, training = course.plan.mechanism, course.plan.training
    if not mechanism.noise_multiplier:
        return 0.0
    step = training.learning_rate * mechanism.noise_multiplier * mechanism.clip_norm
    return float(step / course.denominator * np.sqrt(training.steps / len(course.weights)))


def _canaries(course: Course, most: int, seed: int) -> Examples:
    """Canaries along perpendicular directions, each with several labels."""
    inputs, classes = course.front.inputs, len(course.plan.labels)
    labels = min(_LABELS, classes - 1)  # all classes together would be linearly dependent
    directions = min(inputs, most // labels)
    draws = torch.randn(
        inputs,
        directions,
        generator=seeds.torch_rng(seed, "audit", "canaries"),
        dtype=torch.float64,
    )
    rows = torch.linalg.qr(draws).Q.T.float().repeat_interleave(labels, dim=0)
    classes_of = [number % labels for number in range(len(rows))]
    return utterance(course.front, course.centre + FAR * rows, classes_of)
