"""Whose voice is it? Gender and speaker, from what a device sends, by an attacker that adapts.

The attacker lets other people's devices live with the same plan, models and noise, and learns from
what they send (the adaptive attack of Feng et al. 2022, which plain noise does not deter).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared import seeds
from sottovoce.shared.examples import Examples
from sottovoce.simulations.audit.bounds import Floats
from sottovoce.simulations.audit.case import Person
from sottovoce.simulations.audit.sight import parts as looked
from sottovoce.simulations.audit.sight import witnessed
from sottovoce.simulations.audit.subject import Course, Seen, hushed, live

_PENALTIES = (0.01, 0.1, 1.0, 10.0)
EVERYTHING = "everything"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lives:
    """Many people's lives, as the server saw them.

    Attributes:
        views: By number of rounds seen, what the server saw of each life.
        who: Name of each.
        gender: Gender of each.
        strangers: How many of the last ones belong to public speakers.
    """

    views: Mapping[int, Sequence[Mapping[str, Tensor]]]
    who: Sequence[str]
    gender: Sequence[str]
    strangers: int

    @property
    def users(self) -> int:
        """How many lives are users'."""
        return len(self.who) - self.strangers


def lives_of(
    course: Course,
    users: Mapping[str, Person],
    strangers: Mapping[str, Person],
    rounds: Sequence[int],
    *,
    repeats: int,
    seed: int,
) -> Lives:
    """Let users live several times each, and strangers once, with fresh noise every time.

    Args:
        course: What the server asks.
        users: Whose gender is looked for, by name.
        strangers: Public speakers, by name.
        rounds: After how many rounds it looks.
        repeats: Lives of each user.
        seed: Decides all noise.
    """
    people = [(name, one) for name, one in users.items() for _ in range(repeats)]
    people += list(strangers.items())
    views: dict[int, list[dict[str, Tensor]]] = {number: [] for number in rounds}
    for place, (name, one) in enumerate(people):
        own = seeds.derive(seed, "audit", "attribute", name, place)
        seen = witnessed(course, live(course, one.examples, own), own)
        for number in rounds:
            views[number].append(looked(seen, number))
    return Lives(
        views=views,
        who=[name for name, _ in people],
        gender=[one.gender for _, one in people],
        strangers=len(strangers),
    )


def gender(lives: Lives, rounds: int) -> dict[str, float]:
    """How well a user's gender is told, by what is looked at.

    For every user the attacker learns from all others, users and strangers. Each corpus is centred
    on its own mean, which needs no labels.

    Args:
        lives: From :func:`lives_of`; users' genders must be of two kinds.
        rounds: How many rounds the server saw.

    Returns:
        For each part of the view, and for all parts together, the unweighted average recall.
    """
    parts, users = lives.views[rounds], lives.users
    names = sorted(set(lives.gender[:users]))
    signs = np.array([1.0 if own == names[-1] else -1.0 for own in lives.gender])
    scores = {
        part: _held_out(_centred(torch.stack([one[part] for one in parts]), users), signs, lives)
        for part in parts[0]
    }
    scores[EVERYTHING] = np.sum([score / (score.std() + 1e-12) for score in scores.values()], 0)
    return {part: _uar(score, signs[:users]) for part, score in scores.items()}


def _centred(vectors: Tensor, users: int) -> Floats:
    """Vectors less their corpus's mean, all numbers of one spread; (lives, numbers)."""
    parts = [part - part.mean(0) for part in (vectors[:users], vectors[users:]) if len(part)]
    joined = torch.cat(parts)
    scaled: Floats = (joined / joined.std(0).clamp(min=1e-12)).numpy()
    return scaled


def _held_out(vectors: Floats, signs: Floats, lives: Lives) -> Floats:
    """Each user's score from a classifier that has learned from everybody else, (user lives,)."""
    who = np.array(lives.who)
    alike = vectors @ vectors.T / vectors.shape[1]
    users = lives.users
    scores = np.zeros(users)
    for name in dict.fromkeys(who[:users]):
        own, rest = np.flatnonzero(who[:users] == name), np.flatnonzero(who != name)
        scores[own] = alike[np.ix_(own, rest)] @ _ridge(alike[np.ix_(rest, rest)], signs[rest])
    return scores


def _ridge(alike: Floats, signs: Floats) -> Floats:
    """Kernel ridge regression, its penalty chosen by leave-one-out error; shape (lives,)."""
    best, chosen = np.inf, np.zeros(len(signs))
    size = float(np.trace(alike)) / len(alike)
    aim = signs - signs.mean()
    for penalty in _PENALTIES:
        inverse = np.linalg.inv(alike + penalty * size * np.eye(len(alike)))
        weights = inverse @ aim
        error = float(np.square(weights / np.diag(inverse)).mean())
        if error < best:
            best, chosen = error, weights
    return chosen


def _uar(scores: Floats, signs: Floats) -> float:
    """Unweighted average recall of a sign."""
    right = (scores > 0) == (signs > 0)
    return float(np.mean([right[signs == sign].mean() for sign in np.unique(signs)]))


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
