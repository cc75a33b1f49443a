"""Gender inference: a speaker's gender from a device's messages, by an adaptive attacker.

The attacker simulates other people's devices with the same plan, models and noise, as often as it
likes, and trains on what they send on average; it is scored on single trials of a user whom it has
not trained on (the adaptive attack of Feng et al. 2022, which plain noise does not deter).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sottovoce.shared import seeding
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.audit import kernel_ridge
from sottovoce.simulations.audit.adversary_view import observe, split_parts
from sottovoce.simulations.audit.audited_fold import AuditedFold, SpeakerExamples
from sottovoce.simulations.audit.bounds.gaussian import Floats
from sottovoce.simulations.audit.device_under_test import Observation, Transcript, run_trial

OnProgress = Callable[[str, int, int], None]

ALL_PARTS = "everything"
_RESAMPLED = 1000

PartVectors = Mapping[str, Floats]
"""Observations by part; each of shape (trials, numbers)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SentMessages:
    """Messages of one person's device in all trials.

    Attributes:
        gender: Gender of the person.
        before_sum_noise: By number of rounds, its trials before the noise of any sum: the
            attacker's own, which it may repeat until that noise is averaged away.
        observed: By number of rounds, its trials as the server sees them; none of public speakers.
    """

    gender: str
    before_sum_noise: Mapping[int, PartVectors]
    observed: Mapping[int, PartVectors]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GenderTrials:
    """Messages of all people, by name."""

    users: Mapping[str, SentMessages]
    public_speakers: Mapping[str, SentMessages]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GenderGuesses:
    """Trials in which a user's gender was guessed right, shape (trials,), bool."""

    gender: str
    correct: np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GenderRecall:
    """Recall of the guessed genders, with its error.

    Attributes:
        uar: Unweighted average recall; every user of a gender weighs the same.
        standard_error: Its standard error, over users and their trials.
    """

    uar: float
    standard_error: float


def infer_genders(
    audited_folds: Sequence[AuditedFold],
    rounds: Sequence[int],
    *,
    trials: int,
    sums_per_trial: int,
    max_public_speakers: int,
    seed: int,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> dict[str, Any]:
    """Infer genders over a run's folds, as recorded in audit.json.

    Args:
        audited_folds: The folds; those whose users are not of two known genders are left out.
        rounds: Numbers of rounds after which the attacker guesses.
        trials: Trials of each person.
        sums_per_trial: How often each trial of a user goes into sums with fresh noise.
        max_public_speakers: Most public speakers that the attacker trains on.
        seed: Decides all noise.
        on_progress: Takes (what, done, total).

    Returns:
        ``gender`` and ``gender_error`` by number of rounds and part, and the sizes behind them in
        ``gender_of``; empty if nobody was scored.
    """
    folds: dict[int, list[dict[str, dict[str, GenderGuesses]]]] = {number: [] for number in rounds}
    for place, case in enumerate(audited_folds):
        on_progress("folds", place, len(audited_folds))
        # A fold of one gender has no recall, and unknown genders cannot be scored.
        kinds = {person.gender for person in case.users.values()}
        if len(kinds) == 2 and "" not in kinds:
            known = [pair for pair in case.public_speakers.items() if pair[1].gender in kinds]
            sent = simulate_trials(
                case.transcript,
                case.users,
                dict(known[:max_public_speakers]),
                rounds,
                trials=trials,
                sums_per_trial=sums_per_trial,
                seed=seed,
            )
            for number in rounds:
                folds[number].append(guess_genders(sent, number))
    on_progress("folds", len(audited_folds), len(audited_folds))
    first = [fold[ALL_PARTS] for fold in folds[rounds[0]]]
    if not first:
        return {}
    verdicts = {
        str(number): {
            part: score_guesses([fold[part] for fold in own], seed=seed) for part in own[0]
        }
        for number, own in folds.items()
    }
    return {
        "gender": {n: {part: v.uar for part, v in own.items()} for n, own in verdicts.items()},
        "gender_error": {
            n: {part: v.standard_error for part, v in own.items()} for n, own in verdicts.items()
        },
        "gender_of": {
            "folds": len(first),
            "users": len({name for fold in first for name in fold}),
            "trials": sum(len(one.correct) for fold in first for one in fold.values()),
        },
    }


def simulate_trials(
    transcript: Transcript,
    users: Mapping[str, SpeakerExamples],
    public_speakers: Mapping[str, SpeakerExamples],
    rounds: Sequence[int],
    *,
    trials: int,
    sums_per_trial: int = 1,
    seed: int,
) -> GenderTrials:
    """Simulate devices of users and of public speakers, with fresh noise in every trial.

    Args:
        transcript: The server's requests.
        users: Users whose gender is inferred, by name.
        public_speakers: Public speakers, by name.
        rounds: Numbers of rounds after which the attacker guesses.
        trials: Trials of each person; one is enough where a trial has no noise of its own.
        sums_per_trial: How often each trial of a user goes into sums with fresh noise; once where
            sums add none.
        seed: Decides all noise.
    """
    # Repeating a trial without noise would give the same messages again.
    distinct = 1 if _is_deterministic(transcript.plan) else trials
    observed = trials * sums_per_trial if transcript.plan.scheme.has_private_sums else distinct
    return GenderTrials(
        users={
            name: _sent_messages(transcript, name, one, rounds, distinct, observed, seed)
            for name, one in users.items()
        },
        public_speakers={
            # Public speakers are the attacker's own: it needs their average, not their noise.
            name: _sent_messages(transcript, name, one, rounds, 1, 0, seed)
            for name, one in public_speakers.items()
        },
    )


def _is_deterministic(plan: Plan) -> bool:
    """Whether a device sends the same in every trial: no noise, no batches, no dropout."""
    drawn = plan.training.sample_rate < 1 or plan.model.dropout > 0
    return not (plan.scheme.has_private_messages or drawn)


def _sent_messages(
    transcript: Transcript,
    name: str,
    one: SpeakerExamples,
    rounds: Sequence[int],
    trials: int,
    observed: int,
    seed: int,
) -> SentMessages:
    """One person's trials, and their observations; trials are reused where more are observed."""
    drawn = [
        seeding.derive_seed(seed, "audit", "attribute", name, index) for index in range(trials)
    ]
    own = [run_trial(transcript, one.examples, draw) for draw in drawn]
    observations = [
        observe(
            transcript,
            own[index % trials],
            seeding.derive_seed(seed, "audit", "sight", name, index),
            # Fresh noise of sums on trials that are reused: the device's part is the expensive one.
        )
        for index in range(observed)
    ]
    return SentMessages(
        gender=one.gender,
        before_sum_noise=_views(own, rounds),
        observed=_views(observations, rounds),
    )


def _views(observations: Sequence[Observation], rounds: Sequence[int]) -> dict[int, PartVectors]:
    """Observations by number of rounds and by part."""
    found: dict[int, PartVectors] = {}
    for number in rounds if observations else ():
        views = [split_parts(one, number) for one in observations]
        found[number] = {
            part: torch.stack([one[part] for one in views]).numpy() for part in views[0]
        }
    return found


def guess_genders(trials: GenderTrials, rounds: int) -> dict[str, dict[str, GenderGuesses]]:
    """Guess the gender of each user, by part and by name.

    For every user the attacker trains on all others, and on public speakers if that helps with
    those others. Each corpus is centred on its own mean, which needs no labels.

    Args:
        trials: From :func:`simulate_trials`; users' genders must be of two kinds.
        rounds: How many rounds the server saw.
    """
    users = trials.users
    # Either label may be positive; the maximum is the same in every run.
    positive = max(one.gender for one in users.values())
    found = {}
    averages, single = _measured(trials, rounds)
    signs = np.array(
        [1.0 if one.gender == positive else -1.0 for one in _everybody(trials).values()]
    )
    for part in averages:
        scores = kernel_ridge.leave_one_out_scores(averages[part], single[part], signs)
        found[part] = {
            name: GenderGuesses(gender=one.gender, correct=(score > 0) == (sign > 0))
            for (name, one), score, sign in zip(users.items(), scores, signs, strict=False)
        }
    return found


def _everybody(trials: GenderTrials) -> dict[str, SentMessages]:
    """Users first, then public speakers under names that no user has."""
    # A public speaker may have a user's name; the prefix keeps both.
    return {
        **trials.users,
        **{f"public speaker {name}": one for name, one in trials.public_speakers.items()},
    }


def _measured(trials: GenderTrials, rounds: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """What people send on average, (people, numbers), and users' trials, (users, trials, numbers).

    By part, and with all parts side by side.
    """
    users = list(trials.users.values())
    averages: dict[str, Floats] = {}
    single: dict[str, Floats] = {}
    for part in users[0].observed[rounds]:
        observed = np.stack([one.observed[rounds][part] for one in users])
        own = np.stack(
            [one.before_sum_noise[rounds][part].mean(0) for one in _everybody(trials).values()]
        )
        # Scaled by users' observations alone: public speakers have no noise of sums.
        centre, scale = observed.mean((0, 1)), _scale(observed)
        averages[part], single[part] = (own - centre) / scale, (observed - centre) / scale
    averages[ALL_PARTS] = np.concatenate(list(averages.values()), -1)
    single[ALL_PARTS] = np.concatenate(list(single.values()), -1)
    return averages, single


def _scale(observed: Floats) -> Floats:
    """Standard deviation of each number's noise over (users, trials, numbers).

    Where trials have no noise, how much users differ.
    """
    noise = np.sqrt(observed.var(1).mean(0))
    differing = observed.std((0, 1))
    # Noise far below what differs between users is rounding, not noise.
    scale: Floats = np.where(noise > 1e-6 * differing, noise, differing)
    # A number that never varies says nothing; a scale of 1 leaves it at 0.
    return np.where(scale > 0, scale, 1.0)


def score_guesses(folds: Sequence[Mapping[str, GenderGuesses]], *, seed: int = 0) -> GenderRecall:
    """Compute the recall of guessed genders over all folds of a run.

    Args:
        folds: For each fold, the guesses about its users; a user may be in several.
        seed: Decides the resampling that gives the standard error: users of each gender with
            replacement, and trials of each of them (classifiers stay as they are).
    """
    right: dict[str, list[Floats]] = {}
    gender: dict[str, str] = {}
    for fold in folds:
        for name, one in fold.items():
            gender[name] = one.gender
            right.setdefault(name, []).append(one.correct.astype(np.float64))
    people = {name: np.concatenate(own) for name, own in right.items()}
    kinds = [[people[name] for name in people if gender[name] == kind] for kind in _kinds(gender)]
    rng = seeding.numpy_rng(seed, "audit", "gender", "error")
    drawn = [np.mean([_resampled(kind, rng) for kind in kinds]) for _ in range(_RESAMPLED)]
    # Mean over users first: a user with many trials must not outweigh the others.
    uar = np.mean([np.mean([own.mean() for own in kind]) for kind in kinds])
    return GenderRecall(uar=float(uar), standard_error=float(np.std(drawn)))


def _kinds(gender: Mapping[str, str]) -> list[str]:
    """Every gender there is."""
    return sorted(set(gender.values()))


def _resampled(people: Sequence[Floats], rng: np.random.Generator) -> float:
    """Share guessed right of people, and of their trials, drawn with replacement."""
    chosen = rng.integers(len(people), size=len(people))
    return float(np.mean([rng.choice(people[one], len(people[one])).mean() for one in chosen]))
