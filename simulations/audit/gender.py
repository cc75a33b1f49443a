"""A woman's or a man's voice? From what a device sends, by an attacker that adapts.

The attacker lets other people's devices live with the same plan, models and noise, as often as it
likes, and learns from what they send on average; it is judged on single lives of a user whom it has
not learned from (the adaptive attack of Feng et al. 2022, which plain noise does not deter).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sottovoce.shared import seeds
from sottovoce.shared.plan import Plan
from sottovoce.simulations.audit import ridge
from sottovoce.simulations.audit.bounds import Floats
from sottovoce.simulations.audit.case import Case, Person
from sottovoce.simulations.audit.sight import parts as looked
from sottovoce.simulations.audit.sight import witnessed
from sottovoce.simulations.audit.subject import Course, Seen, live

EVERYTHING = "everything"
_RESAMPLED = 1000

View = Mapping[str, Floats]
"""What was looked at, by part; each of shape (lives, numbers)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sent:
    """What one person's device sent.

    Attributes:
        gender: The person's.
        own: By number of rounds, its lives before the noise of any sum: the attacker's own, which
            it may repeat until that noise is averaged away.
        shown: By number of rounds, its lives as the server sees them; none of a stranger.
    """

    gender: str
    own: Mapping[int, View]
    shown: Mapping[int, View]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lives:
    """Everybody's lives, by name."""

    users: Mapping[str, Sent]
    strangers: Mapping[str, Sent]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Guesses:
    """Which lives of a user were told right, shape (lives,), bool."""

    gender: str
    right: np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How well genders are told.

    Attributes:
        uar: Unweighted average recall; every user of a gender weighs the same.
        error: Its standard error, over users and their lives.
    """

    uar: float
    error: float


def figures(
    cases: Sequence[Case],
    rounds: Sequence[int],
    *,
    repeats: int,
    sums: int,
    strangers: int,
    seed: int,
) -> dict[str, Any]:
    """Gender inference over a run's folds, as it stands in audit.json.

    Args:
        cases: The folds; those whose users are not of two known genders are left out.
        rounds: After how many rounds the attacker looks.
        repeats: Lives of each person.
        sums: How often each life of a user goes into sums with fresh noise.
        strangers: Most public speakers that the attacker practises on.
        seed: Decides all noise.

    Returns:
        ``gender`` and ``gender_error`` by number of rounds and part, and what they come from in
        ``gender_of``; nothing where nobody was judged.
    """
    folds: dict[int, list[dict[str, dict[str, Guesses]]]] = {number: [] for number in rounds}
    for case in cases:
        kinds = {person.gender for person in case.users.values()}
        if len(kinds) == 2 and "" not in kinds:
            known = [pair for pair in case.strangers.items() if pair[1].gender in kinds]
            practice = dict(known[:strangers])
            lives = lives_of(
                case.course, case.users, practice, rounds, repeats=repeats, sums=sums, seed=seed
            )
            for number in rounds:
                folds[number].append(told(lives, number))
    first = [fold[EVERYTHING] for fold in folds[rounds[0]]]
    if not first:
        return {}
    verdicts = {
        str(number): {part: judged([fold[part] for fold in own], seed=seed) for part in own[0]}
        for number, own in folds.items()
    }
    return {
        "gender": {n: {part: v.uar for part, v in own.items()} for n, own in verdicts.items()},
        "gender_error": {
            n: {part: v.error for part, v in own.items()} for n, own in verdicts.items()
        },
        "gender_of": {
            "folds": len(first),
            "users": len({name for fold in first for name in fold}),
            "lives": sum(len(one.right) for fold in first for one in fold.values()),
        },
    }


def lives_of(
    course: Course,
    users: Mapping[str, Person],
    strangers: Mapping[str, Person],
    rounds: Sequence[int],
    *,
    repeats: int,
    sums: int = 1,
    seed: int,
) -> Lives:
    """Let users and strangers live several times each, with fresh noise every time.

    Args:
        course: What the server asks.
        users: Whose gender is looked for, by name.
        strangers: Public speakers, by name.
        rounds: After how many rounds it looks.
        repeats: Lives of each person; one is enough where a life has no noise of its own.
        sums: How often each life of a user goes into sums with fresh noise; once where sums add
            none.
        seed: Decides all noise.
    """
    lives = 1 if _repeats_itself(course.plan) else repeats
    shown = repeats * sums if course.plan.user else lives
    return Lives(
        users={
            name: _sent(course, name, one, rounds, lives, shown, seed)
            for name, one in users.items()
        },
        strangers={
            name: _sent(course, name, one, rounds, 1, 0, seed) for name, one in strangers.items()
        },
    )


def _repeats_itself(plan: Plan) -> bool:
    """Whether a device sends the same in each of its lives: no noise, no batches, no dropout."""
    drawn = plan.training.sample_rate < 1 or plan.model.dropout > 0
    return not (plan.private or drawn)


def _sent(
    course: Course,
    name: str,
    one: Person,
    rounds: Sequence[int],
    lives: int,
    shown: int,
    seed: int,
) -> Sent:
    """One person's lives, and how they look; lives take turns where more are shown."""
    drawn = [seeds.derive(seed, "audit", "attribute", name, place) for place in range(lives)]
    own = [live(course, one.examples, draw) for draw in drawn]
    sights = [
        witnessed(course, own[place % lives], seeds.derive(seed, "audit", "sight", name, place))
        for place in range(shown)
    ]
    return Sent(gender=one.gender, own=_views(own, rounds), shown=_views(sights, rounds))


def _views(seen: Sequence[Seen], rounds: Sequence[int]) -> dict[int, View]:
    """Lives by number of rounds and by part."""
    found: dict[int, View] = {}
    for number in rounds if seen else ():
        views = [looked(one, number) for one in seen]
        found[number] = {
            part: torch.stack([one[part] for one in views]).numpy() for part in views[0]
        }
    return found


def told(lives: Lives, rounds: int) -> dict[str, dict[str, Guesses]]:
    """What is guessed of each user, by what is looked at and by name.

    For every user the attacker learns from all others, and from strangers if that has helped with
    those others. Each corpus is centred on its own mean, which needs no labels.

    Args:
        lives: From :func:`lives_of`; users' genders must be of two kinds.
        rounds: How many rounds the server saw.
    """
    users = lives.users
    positive = max(one.gender for one in users.values())
    found = {}
    known, shown = _measured(lives, rounds)
    signs = np.array(
        [1.0 if one.gender == positive else -1.0 for one in _everybody(lives).values()]
    )
    for part in known:
        scores = ridge.held_out(known[part], shown[part], signs)
        found[part] = {
            name: Guesses(gender=one.gender, right=(score > 0) == (sign > 0))
            for (name, one), score, sign in zip(users.items(), scores, signs, strict=False)
        }
    return found


def _everybody(lives: Lives) -> dict[str, Sent]:
    """Users first; a stranger's name is never a user's."""
    return {**lives.users, **{f"stranger {name}": one for name, one in lives.strangers.items()}}


def _measured(lives: Lives, rounds: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """What people send on average, (people, numbers), and users' lives, (users, lives, numbers).

    By part, and with all parts side by side.
    """
    users = list(lives.users.values())
    known: dict[str, Floats] = {}
    shown: dict[str, Floats] = {}
    for part in users[0].shown[rounds]:
        sights = np.stack([one.shown[rounds][part] for one in users])
        own = np.stack([one.own[rounds][part].mean(0) for one in _everybody(lives).values()])
        middle, scale = sights.mean((0, 1)), _scale(sights)
        known[part], shown[part] = (own - middle) / scale, (sights - middle) / scale
    known[EVERYTHING] = np.concatenate(list(known.values()), -1)
    shown[EVERYTHING] = np.concatenate(list(shown.values()), -1)
    return known, shown


def _scale(sights: Floats) -> Floats:
    """Standard deviation of each number's noise over (users, lives, numbers).

    Where lives have no noise, how much users differ.
    """
    noise = np.sqrt(sights.var(1).mean(0))
    differing = sights.std((0, 1))
    scale: Floats = np.where(noise > 1e-6 * differing, noise, differing)
    return np.where(scale > 0, scale, 1.0)


def judged(folds: Sequence[Mapping[str, Guesses]], *, seed: int = 0) -> Verdict:
    """How well genders are told, over all folds of a run.

    Args:
        folds: For each fold, what was guessed of its users; a user may be in several.
        seed: Decides the resampling that gives the standard error: users of each gender with
            replacement, and lives of each of them (classifiers stay as they are).
    """
    right: dict[str, list[Floats]] = {}
    gender: dict[str, str] = {}
    for fold in folds:
        for name, one in fold.items():
            gender[name] = one.gender
            right.setdefault(name, []).append(one.right.astype(np.float64))
    people = {name: np.concatenate(own) for name, own in right.items()}
    kinds = [[people[name] for name in people if gender[name] == kind] for kind in _kinds(gender)]
    rng = seeds.numpy_rng(seed, "audit", "gender", "error")
    drawn = [np.mean([_resampled(kind, rng) for kind in kinds]) for _ in range(_RESAMPLED)]
    uar = np.mean([np.mean([own.mean() for own in kind]) for kind in kinds])
    return Verdict(uar=float(uar), error=float(np.std(drawn)))


def _kinds(gender: Mapping[str, str]) -> list[str]:
    """Every gender there is."""
    return sorted(set(gender.values()))


def _resampled(people: Sequence[Floats], rng: np.random.Generator) -> float:
    """Share told right of people, and lives, drawn with replacement."""
    chosen = rng.integers(len(people), size=len(people))
    return float(np.mean([rng.choice(people[one], len(people[one])).mean() for one in chosen]))
