"""Kernel ridge regression that scores every user with a model fitted on the others."""

import numpy as np

from sottovoce.simulations.audit.bounds.gaussian import Floats

Indices = np.ndarray[tuple[int, ...], np.dtype[np.int_]]
_PENALTIES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 1e2, 1e3, 1e4)


def leave_one_out_scores(averages: Floats, trials: Floats, signs: Floats) -> Floats:
    """Score each user by a classifier fitted on everybody else.

    The classifier is fitted on the other users, and on public speakers too if that helps with them.

    Args:
        averages: Average messages, users first, shape (people, numbers).
        trials: Users' single trials, shape (users, trials, numbers).
        signs: The attribute, +1 or -1, shape (people,).

    Returns:
        Scores, above 0 for +1, shape (users, trials).
    """
    # Far more numbers than people: everything below needs inner products only.
    gram, cross = averages @ averages.T, trials @ averages.T
    users, people = len(trials), np.arange(len(averages))
    scores = np.zeros(trials.shape[:2])
    for user in range(users):
        candidates = [people[people < users]] + ([people] if len(people) > users else [])
        fitted = [fit_ridge(gram, cross, signs, rest[rest != user]) for rest in candidates]
        _, weights, offset = min(fitted, key=lambda one: one[0])
        scores[user] = cross[user] @ weights + offset
    return scores


def fit_ridge(
    gram: Floats, cross: Floats, signs: Floats, rest: Indices
) -> tuple[float, Floats, float]:
    """Fit kernel ridge regression on the people of ``rest``.

    Users and public speakers have an offset each. So each corpus is centred on its own mean,
    without the user who is left out: a mean over all would reveal the one whom the others lack. The
    penalty minimises the error on single trials of the users in ``rest``, each left out of
    the fit that scores them.

    Args:
        gram: Products of everybody's averages, (people, people), users first.
        cross: Products of users' trials with everybody's averages, (users, trials, people).
        signs: What is looked for, +1 or -1, (people,).
        rest: Indices of the people who are fitted on, in order.

    Returns:
        The squared error on left-out users, weights of all people, (people,), and the users'
        offset.
    """
    users = int((rest < len(cross)).sum())  # they come first, in rest too
    both = np.stack([rest < len(cross), rest >= len(cross)], 1).astype(np.float64)
    # A group without members would make the bordered matrix singular.
    groups = both[:, : 1 + (users < len(rest))]
    aim = signs[rest] - groups @ (groups.T @ signs[rest] / groups.sum(0))
    kernel = gram[np.ix_(rest, rest)]
    # The penalty is relative to the kernel's mean eigenvalue; 1e-12 for messages that are all 0.
    size = float(np.trace(kernel)) / len(rest) + 1e-12
    views = cross[np.ix_(rest[:users], np.arange(cross.shape[1]), rest)]
    best, chosen, offset = np.inf, np.zeros(len(signs)), 0.0
    for penalty in _PENALTIES:
        inverse = _bordered(kernel + penalty * size * np.eye(len(rest)), groups)
        solved = inverse[:, : len(rest)] @ aim
        # Leave-one-out in closed form: the solution without a person differs by a column of the
        # inverse.
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
    # Indefinite, because of the zero corner: a Cholesky factorisation would fail.
    inverse: Floats = np.linalg.inv(whole)
    return inverse
