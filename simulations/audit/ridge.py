"""Kernel ridge regression that judges everybody by what it has learned from the others."""

import numpy as np

from sottovoce.simulations.audit.bounds import Floats

Places = np.ndarray[tuple[int, ...], np.dtype[np.int_]]
_PENALTIES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 1e2, 1e3, 1e4)


def held_out(known: Floats, shown: Floats, signs: Floats) -> Floats:
    """Each user's scores from a classifier that has learned from everybody else.

    It learns from the other users, and from strangers too where that has helped with those users.

    Args:
        known: What people send on average, users first, (people, numbers).
        shown: Users' single lives, (users, lives, numbers).
        signs: What is looked for, +1 or -1, (people,).

    Returns:
        Above 0 for +1, (users, lives).
    """
    alike, towards = known @ known.T, shown @ known.T
    users, people = len(shown), np.arange(len(known))
    scores = np.zeros(shown.shape[:2])
    for user in range(users):
        candidates = [people[people < users]] + ([people] if len(people) > users else [])
        learned = [_learned(alike, towards, signs, rest[rest != user]) for rest in candidates]
        _, weights, offset = min(learned, key=lambda one: one[0])
        scores[user] = towards[user] @ weights + offset
    return scores


def _learned(
    alike: Floats, towards: Floats, signs: Floats, rest: Places
) -> tuple[float, Floats, float]:
    """Kernel ridge regression on the people of ``rest``: its error, weights of all, and offset.

    Users and strangers have an offset each, so that each corpus is centred on its own mean, and on
    nobody who is left out: a mean over all would tell of the left out whom the others lack. The
    penalty is the one of least error on single lives of the users in ``rest``, each left out of
    what judges their own.
    """
    users = int((rest < len(towards)).sum())  # they come first, in rest too
    both = np.stack([rest < len(towards), rest >= len(towards)], 1).astype(np.float64)
    groups = both[:, : 1 + (users < len(rest))]
    aim = signs[rest] - groups @ (groups.T @ signs[rest] / groups.sum(0))
    kernel = alike[np.ix_(rest, rest)]
    size = float(np.trace(kernel)) / len(rest) + 1e-12
    views = towards[np.ix_(rest[:users], np.arange(towards.shape[1]), rest)]
    best, chosen, offset = np.inf, np.zeros(len(signs)), 0.0
    for penalty in _PENALTIES:
        inverse = _bordered(kernel + penalty * size * np.eye(len(rest)), groups)
        solved = inverse[:, : len(rest)] @ aim
        factors = (solved / np.diag(inverse))[:users]
        without = solved[:, None] - inverse[:, :users] * factors[None, :]
        guesses = (views @ without[: len(rest)].T[:, :, None])[..., 0] + without[len(rest)][:, None]
        error = float(np.square(guesses - aim[:users, None]).mean())
        if error < best:
            best, offset = error, float(solved[len(rest)])
            chosen = np.zeros(len(signs))
            chosen[rest] = solved[: len(rest)]
    return best, chosen, offset


def _bordered(kernel: Floats, groups: Floats) -> Floats:
    """The inverse of a kernel with an offset for each group."""
    corner = np.zeros((groups.shape[1], groups.shape[1]))
    whole = np.block([[kernel, groups], [groups.T, corner]])
    inverse: Floats = np.linalg.inv(whole)
    return inverse
