"""All attacks on a run, once as it was made and once with its privacy switched off."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from sottovoce.shared import check
from sottovoce.shared.errors import SettingError
from sottovoce.shared.examples import Examples
from sottovoce.simulations.audit import (
    attributes,
    canary,
    gender,
    inversion,
    membership,
    onerun,
)
from sottovoce.simulations.audit.case import Case, open_cases
from sottovoce.simulations.audit.sight import sees
from sottovoce.simulations.audit.subject import Course, exactly
from sottovoce.simulations.reports import render
from sottovoce.simulations.runfile import (
    SCHEMA,
    Json,
    plain,
    read_run,
    validate_audit,
    write_json,
)

Tell = Callable[[str], None]
Progress = Callable[[str, int, int], None]

CONFIDENCE = 0.95
BOUNDS = ("many_run", "first_message", "last_message", "one_run", "many_run_user")
"""Attacks that bound epsilon without any assumption; they share the doubt between them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is tried.

    Attributes:
        lives: Lives of the canary's device, of each kind, at least 20.
        quick: The same where nothing is noised, and for the normaliser's trap.
        first: Lives that end with the first message.
        first_open: The same where nothing is noised.
        last: Lives of which the last message is looked at and nothing else.
        canaries: Coins of the one-run audit.
        rounds: Most rounds of a canary's or a member's life.
        devices: How many users' utterances are looked for.
        shadows: The attacker's own lives of each.
        members: Lives that it judges.
        trainings: The attacker's own trainings with half of the users.
        judged: Trainings that it judges.
        repeats: Lives of each user whose gender or name is looked for.
        hidden: The same where only noised sums are seen, which tell little at a time.
        own: The same where gender is looked for: the noise is nearly all in the sums.
        sums: How often each such life goes into sums with fresh noise.
        strangers: Public speakers that the attacker practises on.
        folds: Folds whose users' gender is looked for.
    """

    lives: int = 400
    quick: int = 150
    first: int = 10_000
    first_open: int = 150_000
    last: int = 10_000
    canaries: int = 512
    rounds: int = 10_000
    devices: int = 2
    shadows: int = 32
    members: int = 16
    trainings: int = 16
    judged: int = 12
    repeats: int = 3
    hidden: int = 12
    own: int = 4
    sums: int = 30
    strangers: int = 40
    folds: int = 10

    def __post_init__(self) -> None:
        check.at_least(20, lives=self.lives)


def _open(effort: Effort) -> Effort:
    """Where nothing is noised, few lives show all, and very many the epsilon."""
    return replace(effort, lives=min(effort.lives, effort.quick), first=effort.first_open)


_HEAVY = 20_000
"""Weights from which a life takes seconds."""


def _heavy(effort: Effort) -> Effort:
    """The same for large models, whose lives are long."""
    return replace(
        effort,
        lives=min(effort.lives, 60),
        quick=60,
        canaries=64,
        rounds=4,
        devices=1,
        trainings=8,
        judged=6,
        repeats=1,
        hidden=1,
        own=1,
        strangers=20,
        folds=1,
    )


def audit(
    run_folder: Path,
    *,
    seed: int = 0,
    effort: Effort = Effort(),
    tell: Tell = lambda _line: None,
    progress: Progress = lambda _what, _done, _total: None,
) -> Json:
    """Attack a run and keep what came of it.

    Writes ``audit.json``, adds the lower bound to ``run.json`` and renders the pages again.

    Args:
        run_folder: What ``simulate --out`` made.
        seed: Decides canaries, coins and noise; the same seed gives the same figures.
        effort: How much is tried; the more lives, the tighter the bounds.
        tell: Takes a line about what was found.
        progress: Takes (what, done, total).

    Returns:
        Content of audit.json.

    Raises:
        SettingError: No run there, or one that cannot be attacked.
        SottovoceError: Corpora or models that are gone; each with its way out.
    """
    torch.set_num_threads(1)  # a second thread changes the order of sums, and with it the result
    check.not_negative(seed=seed)
    run = read_run(run_folder)
    if "population" in run:
        raise SettingError(
            f"{run_folder} is a run over a crowd; audits attack runs over a corpus's speakers: run "
            "the same unit and recipe without a population, and audit that"
        )
    cases = open_cases(run_folder, tell, progress, folds=effort.folds)
    found = attacked(cases, effort, seed=seed, progress=progress)
    content = validate_audit(plain(found))
    write_json(run_folder / "audit.json", content)
    run["privacy"]["audit"] = {"epsilon_lower": content["epsilon_lower"]}
    write_json(run_folder / "run.json", run)
    render(run_folder)
    return content


def attacked(
    cases: Sequence[Case],
    effort: Effort,
    *,
    seed: int,
    progress: Progress = lambda _what, _done, _total: None,
) -> Json:
    """Content of audit.json, from a run's folds; all but gender is looked for in the first."""
    case, size = cases[0], _size(cases[0], effort)
    scenario, course = case.scenario, case.course
    attacks = {way: _all(one, one_size, seed, progress) for way, one, one_size in _ways(case, size)}
    content = {
        "schema": SCHEMA,
        "unit": scenario.unit,
        "delta": scenario.user_delta if scenario.unit == "user" else scenario.delta,
        "seed": seed,
        "confidence": CONFIDENCE,
        "fold": case.fold,
        "users": len(case.users),
        "rounds": len(course.weights),
        "sees": sees(course.plan),
        **_verdict(attacks["as_run"], scenario.epsilon if scenario.private else None),
        "attacks": {
            way: found | _genders(cases, way, size, seed) for way, found in attacks.items()
        },
    }
    if scenario.hides_utterances and course.plan.normaliser:
        content["normaliser_trap"] = _trap(case, size, seed, progress)
    return content


def _size(case: Case, effort: Effort) -> Effort:
    """What is tried on a model of this size."""
    return effort if len(case.course.weights[0]) < _HEAVY else _heavy(effort)


def _ways(case: Case, effort: Effort) -> Iterator[tuple[str, Case, Effort]]:
    """As it was run, and with its privacy switched off where it has any."""
    private = case.scenario.private
    yield "as_run", case, effort if private else _open(effort)
    if private:
        yield "noise_off", case.without_noise(), _open(effort)


def gender_again(
    run_folder: Path,
    audit: Json,
    *,
    effort: Effort = Effort(),
    tell: Tell = lambda _line: None,
    progress: Progress = lambda _what, _done, _total: None,
) -> Json:
    """An audit whose gender inference on the run as it was is made anew; all else stays.

    Args:
        run_folder: The run that was attacked.
        audit: Content of its audit.json; its seed is used again.
        effort: How much is tried.
        tell: Takes a line about what was found.
        progress: Takes (what, done, total).

    Raises:
        SettingError: No run there.
        SottovoceError: Corpora or models that are gone; each with its way out.
    """
    torch.set_num_threads(1)
    cases = open_cases(run_folder, tell, progress, folds=effort.folds)
    size, seed = _size(cases[0], effort), int(audit["seed"])
    attacks = audit["attacks"] | {
        "as_run": audit["attacks"]["as_run"] | _genders(cases, "as_run", size, seed)
    }
    return validate_audit(plain({**audit, "attacks": attacks}))


def _verdict(found: Json, claim: float | None) -> Json:
    """The best lower bounds, and whether the claim holds against those that suppose nothing."""
    shown = {name: found[name] for name in BOUNDS if name in found}
    lower = max(bound["epsilon"] for bound in shown.values())
    gaussian = max(bound.get("epsilon_gaussian", 0.0) for bound in shown.values())
    return {
        "epsilon": claim,
        "epsilon_lower": lower,
        "epsilon_lower_gaussian": gaussian,
        "holds": claim is None or lower <= claim,
    }


def _doubtful(share: int) -> float:
    """Confidence of one of several bounds that hold together at ``CONFIDENCE``."""
    return 1 - (1 - CONFIDENCE) / share


def _all(case: Case, effort: Effort, seed: int, progress: Progress) -> Json:
    """Every attack on one case."""
    return {
        **_bounds(case, effort, seed, progress),
        "membership": _members(case, effort, seed, progress),
        **_speakers(case, effort, seed),
        "inversion": _inverted(case, seed),
    }


def _bounds(case: Case, effort: Effort, seed: int, progress: Progress) -> Json:
    """Lower bounds on every epsilon that the plan promises; on an utterance's where on none."""
    unit, course = case.course.plan.unit, _shortened(case.course, effort)
    found: Json = {}
    if unit != "user":
        found |= _utterance_bounds(case, course, effort, seed, progress)
    if unit in ("user", "both"):
        how = {"delta": case.scenario.user_delta, "confidence": _doubtful(len(BOUNDS))}
        statistics = canary.scores(
            course, _first(case), lives=effort.lives, seed=seed, whole=True, progress=progress
        )
        found["many_run_user"] = asdict(canary.judged(statistics[0], statistics[1], **how))
    return found


def _utterance_bounds(
    case: Case, course: Course, effort: Effort, seed: int, progress: Progress
) -> Json:
    """Four ways to bound an utterance's epsilon; the server sees all that the device sends."""
    own = _first(case)
    how = {"delta": case.scenario.delta, "confidence": _doubtful(len(BOUNDS))}
    statistics = canary.scores(course, own, lives=effort.lives, seed=seed, progress=progress)
    first = canary.first_message(course, lives=effort.first, seed=seed, **how)
    last = canary.last_message(course, lives=effort.last, seed=seed, **how)
    one = onerun.one_run(course, own, canaries=effort.canaries, seed=seed, **how)
    return {
        "many_run": asdict(canary.judged(statistics[0], statistics[1], **how)),
        "first_message": asdict(first),
        **({"last_message": asdict(last)} if last else {}),
        "one_run": asdict(one),
    }


def _trap(case: Case, effort: Effort, seed: int, progress: Progress) -> Json:
    """What a canary shows where training uses the user's exact mean, which nobody booked."""
    course, own = exactly(_shortened(case.course, effort)), _first(case)
    statistics = canary.scores(course, own, lives=effort.quick, seed=seed, progress=progress)
    how = {"delta": case.scenario.delta, "confidence": CONFIDENCE}
    return asdict(canary.judged(statistics[0], statistics[1], **how))


def _members(case: Case, effort: Effort, seed: int, progress: Progress) -> Json:
    """Membership of utterances on devices, and of users in trainings."""
    people = [person.examples for person in case.users.values()]
    found: Json = {}
    if case.course.plan.unit != "user":
        utterances = membership.utterances(
            _shortened(case.course, effort),
            people[: effort.devices],
            shadows=effort.shadows,
            lives=effort.members,
            seed=seed,
            progress=progress,
        )
        found["utterance"] = asdict(utterances)
    users = membership.users(
        case.course,
        people,
        case.scenario.recipe.aggregation,
        shadows=effort.trainings,
        lives=effort.judged,
        seed=seed,
        progress=progress,
    )
    return found | {"user": asdict(users)}


def _speakers(case: Case, effort: Effort, seed: int) -> Json:
    """Who is named behind a device."""
    rounds = _looks(len(case.course.weights))
    repeats = effort.hidden if case.course.plan.user else effort.repeats
    named = attributes.speaker(case.course, case.users, rounds, repeats=repeats, seed=seed)
    return {"speaker": _by_round(named)}


def _genders(cases: Sequence[Case], way: str, effort: Effort, seed: int) -> Json:
    """Gender over all folds, where the corpus knows two of their users."""
    chosen = [one for case in cases for name, one, _ in _ways(case, effort) if name == way]
    return gender.figures(
        chosen,
        _looks(len(cases[0].course.weights)),
        repeats=effort.own if chosen[0].course.plan.user else effort.repeats,
        sums=effort.sums,
        strangers=effort.strangers,
        seed=seed,
    )


def _looks(rounds: int) -> list[int]:
    """After how many rounds the attacker looks: the first, ten, all."""
    return sorted({1, min(10, rounds), rounds})


def _by_round(found: dict[int, dict[str, float]]) -> Json:
    """Rounds as JSON's keys."""
    return {str(number): value for number, value in found.items()}


def _inverted(case: Case, seed: int) -> Json:
    """Cosine between features and what is read off an update, by batch."""
    people = [person.examples for person in case.users.values()]
    linear = case.course.plan.model.kind == "linear"
    batches = (1, inversion.FEW) if linear else (1,)
    return {
        str(batch): inversion.inverted(case.course, people, batch=batch, seed=seed, rounds=rounds)
        for rounds in (min(16, len(case.course.weights)),)
        for batch in batches
    }


def _first(case: Case) -> Examples:
    """The utterances of the device that is looked at."""
    for person in case.users.values():
        return person.examples
    raise SettingError(f"{case.fold} has no user who trained; nothing can be attacked")


def _shortened(course: Course, effort: Effort) -> Course:
    """The first rounds of a course."""
    return replace(course, weights=list(course.weights)[: effort.rounds])
