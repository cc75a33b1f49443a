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
    device lives on the other half.

    Returns:
        By number of rounds seen and by what is looked at, the share of lives that are named right;
        1 / users by chance.
    """
    quiet = hushed(course)
    halves = [(_half(one.examples, 0), _half(one.examples, 1)) for one in users.values()]
    known = [_looked(live(quiet, first, 0), rounds) for first, _ in halves]
    places = [place for place in range(len(halves)) for _ in range(repeats)]
    shown = []
    for number, place in enumerate(places):
        own = seeds.derive(seed, "audit", "named", number)
        shown.append(_looked(witnessed(course, live(course, halves[place][1], own), own), rounds))
    return {
        number: _named([one[number] for one in known], [one[number] for one in shown], places)
        for number in rounds
    }


def _looked(seen: Seen, rounds: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """One life, by number of rounds seen."""
    return {number: looked(seen, number) for number in rounds}


def _half(examples: Examples, which: int) -> Examples:
    """Every other utterance."""
    return examples.take(torch.arange(len(examples)) % 2 == which)


def _named(
    known: Sequence[Mapping[str, Tensor]],
    shown: Sequence[Mapping[str, Tensor]],
    places: Sequence[int],
) -> dict[str, float]:
    """Share of lives that are most like the right template, by cosine; part by part and in all."""
    alike: dict[str, Tensor] = {}
    for part in known[0]:
        sides = [torch.stack([one[part] for one in lives]) for lives in (shown, known)]
        towards = [_directed(side - side.mean(0)) for side in sides]
        alike[part] = towards[0] @ towards[1].T
    alike[EVERYTHING] = torch.stack(list(alike.values())).sum(0)
    truth = torch.tensor(places)
    return {
        part: float((cosines.argmax(1) == truth).double().mean()) for part, cosines in alike.items()
    }


def _directed(vectors: Tensor) -> Tensor:
    """Rows of length 1."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    directed: Tensor = vectors / lengths.clamp(min=1e-12)
    return directed
