"""Whose voice is it? The user's name, from what a device sends."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sottovoce.shared import seeds
from sottovoce.shared.examples import Examples
from sottovoce.simulations.audit.case import Person
from sottovoce.simulations.audit.gender import EVERYTHING
from sottovoce.simulations.audit.sight import parts as looked
from sottovoce.simulations.audit.sight import witnessed
from sottovoce.simulations.audit.subject import Course, Seen, hushed, live

Alike = Mapping[str, Tensor]
"""Cosines between lives and users' templates, by part; each of shape (lives, users)."""

_LEAST_VARIANCE = 1e-6


def speaker(
    course: Course,
    users: Mapping[str, Person],
    rounds: Sequence[int],
    *,
    repeats: int,
    seed: int,
) -> dict[int, dict[str, float]]:
    """How often the attacker names the user behind a device.

    It holds one half of everybody's clips and computes what a device with them would send; the
    device lives on the other half. How much each part of a life says it learns before, from the
    quarters of its own half.

    Returns:
        By number of rounds seen and by what is looked at, the share of lives that are named right;
        1 / users by chance.
    """
    halves = [(_half(one.examples, 0), _half(one.examples, 1)) for one in users.values()]
    quarters = [(_half(known, 0), _half(known, 1)) for known, _ in halves]
    practice = _alike(course, quarters, rounds, 1, seeds.derive(seed, "audit", "practice"))
    shown = _alike(course, halves, rounds, repeats, seeds.derive(seed, "audit", "named"))
    truth = torch.arange(len(halves)).repeat_interleave(repeats)
    return {number: _named(shown[number], truth, _told(practice[number])) for number in rounds}


def _half(examples: Examples, which: int) -> Examples:
    """Every other utterance."""
    return examples.take(torch.arange(len(examples)) % 2 == which)


def _alike(
    course: Course,
    halves: Sequence[tuple[Examples, Examples]],
    rounds: Sequence[int],
    repeats: int,
    seed: int,
) -> dict[int, Alike]:
    """How alike lives on second halves are to what first halves would send, by rounds seen."""
    quiet = hushed(course)
    known = [live(quiet, first, 0) for first, _ in halves]
    held = [second for _, second in halves for _ in range(repeats)]
    draws = [seeds.derive(seed, "life", number) for number in range(len(held))]
    shown = [
        witnessed(course, live(course, one, own), own) for one, own in zip(held, draws, strict=True)
    ]
    return {number: _cosines(shown, known, number) for number in rounds}


def _cosines(shown: Sequence[Seen], known: Sequence[Seen], rounds: int) -> Alike:
    """Cosines of what is not common to all, part by part."""
    lives, templates = ([looked(one, rounds) for one in seen] for seen in (shown, known))
    found = {}
    for part in templates[0]:
        sides = [torch.stack([one[part] for one in side]) for side in (lives, templates)]
        towards = [_directed(side - side.mean(0)) for side in sides]
        found[part] = towards[0] @ towards[1].T
    return found


def _told(practice: Alike) -> dict[str, float]:
    """How much a cosine of each part says: the slope of its log likelihood ratio.

    Cosines with the right user and with others are taken to be normal, of one variance.
    """
    found = {}
    for part, cosines in practice.items():
        own = torch.eye(len(cosines), dtype=torch.bool)
        apart = float(cosines[own].mean() - cosines[~own].mean())
        found[part] = max(apart, 0.0) / max(float(cosines[~own].var()), _LEAST_VARIANCE)
    return found


def _named(shown: Alike, truth: Tensor, told: Mapping[str, float]) -> dict[str, float]:
    """Share of lives that are most like the right template; part by part and in all."""
    everything = torch.stack([told[part] * cosines for part, cosines in shown.items()]).sum(0)
    return {
        part: float((cosines.argmax(1) == truth).double().mean())
        for part, cosines in {**shown, EVERYTHING: everything}.items()
    }


def _directed(vectors: Tensor) -> Tensor:
    """Rows of length 1."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    directed: Tensor = vectors / lengths.clamp(min=1e-12)
    return directed
