"""A run over a crowd, from scenario to run folder; see ``pipeline`` for runs over speakers."""

import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sottovoce.server.checkpoint import replace_file
from sottovoce.shared.errors import SettingError
from sottovoce.simulations import hearing, pipeline, promise, statement
from sottovoce.simulations.hearing import Heard, Progress, Tell
from sottovoce.simulations.material import Material
from sottovoce.simulations.population.crowd import Crowd
from sottovoce.simulations.population.settings import PopulationSettings
from sottovoce.simulations.population.voices import fit
from sottovoce.simulations.population.world import HELD_OUT, CrowdWorld
from sottovoce.simulations.preparation import material_of, plan_of
from sottovoce.simulations.reports import render
from sottovoce.simulations.runfile import Json, validate_run, write_json
from sottovoce.simulations.scenario import Scenario

VOICES = (
    "drawn in feature space from a mixed model of embedded made-up voices; no sound was made, and "
    "accuracy says nothing about real voices"
)
_ASSUMPTION = (
    "A user whom no coin drew has let out nothing and has no ledger; the promise covers them too."
)
_ACCOUNTS = (
    "Clients are listed by kind: each entry stands for all devices whose ledgers hold the same "
    "releases, as many as its key alike says."
)


def simulate(
    scenario: Scenario, out: Path, *, resume: bool, tell: Tell, progress: Progress
) -> Json:
    """Run a scenario that has a population; arguments and errors as ``pipeline.simulate``."""
    started = time.monotonic()
    torch.set_num_threads(1)
    promise.check_budget(with_rate(scenario))
    pipeline.check_folder(scenario, out, resume=resume)
    heard, world = world_of(scenario, out, tell, progress)
    features_s, training = time.monotonic() - started, time.monotonic()
    scored = world.run()
    training_s = time.monotonic() - training
    privacy = _privacy(scenario, world)
    rounds = world.rounds()
    timing = {
        "feature_s": features_s,
        "training_s": training_s,
        "rounds_per_s": scenario.rounds / training_s,
        "client_rounds_per_s": sum(map(_worked, rounds)) / training_s,
        "wall_s": time.monotonic() - started,
        "cpu_s": _cpu_s(),
        "peak_rss_mb": max([_peak_mb(), *(row["rss_mb"] or 0.0 for row in rounds)]),
        "rss_growth_mb_per_round": growth(rounds),
    }
    run = pipeline.describe(
        scenario, heard, world.material, [world], [scored], privacy, {}, timing, None
    )
    run = _of_a_crowd(run, world, rounds)
    write_json(out / "privacy.json", privacy)
    write_json(out / "run.json", run)
    pipeline.hand_out(out, world, run)
    render(out)
    return run


def world_of(
    scenario: Scenario, out: Path, tell: Tell, progress: Progress
) -> tuple[Heard, CrowdWorld]:
    """Hear the voices that users are drawn from, and settle the run's one world.

    Args:
        scenario: Settled, with a population.
        out: The run folder; the settled scenario is written there.
        tell: Takes a line about what was found.
        progress: Takes (what, done, total).
    """
    hearing.check_encoder(scenario)
    heard, public = pipeline.hear_all(scenario, tell, progress)
    replace_file(out / "config.toml", scenario.to_toml().encode())
    drawn, folder = with_rate(scenario), out / "checkpoints"
    material = material_of(drawn, heard, public, folder, tell)
    name = pipeline.identity(scenario.to_toml())
    world = CrowdWorld(
        folder=folder / "population",
        ledgers=out / "ledgers" / HELD_OUT,
        plan=plan_of(drawn, material, f"{name[:16]}/population"),
        scenario=drawn,
        material=material,
        crowd=_crowd(scenario, material),
    )
    return heard, world


def _crowd(scenario: Scenario, material: Material) -> Crowd:
    """Who the users are."""
    settings = population_of(scenario)
    return Crowd(
        users=settings.users,
        voices=fit(material.labels, material.clips, material.features),
        clips=settings.clips,
        labels=material.labels,
        budgets=promise.budgets(scenario),
        seed=scenario.seed,
        enrolment=scenario.enrolment.partition(":")[0],
        neutral=scenario.neutral_clips or 0,
        head_clips=scenario.head_clips,
    )


def _cpu_s() -> float:
    """Processor time of this process and of workers that have ended, in seconds."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def _peak_mb() -> float:
    """Most memory that this process held so far, scoring included, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _worked(row: Json) -> int:
    """How many devices did a round's work, their reply used or not."""
    return int(row["used"] + row["dropped"] + row["late"])


def growth(rounds: Sequence[Json]) -> float | None:
    """By how much resident memory grew a round after the third, on average, in MiB.

    Only rounds of the process that ended the run are compared; None where they are too few.
    """
    last = [row for row in rounds if row["process"] == rounds[-1]["process"] and row["round"] >= 3]
    if len(last) < 2:
        return None
    return float((last[-1]["rss_mb"] - last[0]["rss_mb"]) / (last[-1]["round"] - last[0]["round"]))


def population_of(scenario: Scenario) -> PopulationSettings:
    """The scenario's population."""
    if scenario.population is None:
        raise SettingError("the scenario has no population; add a table [population]")
    return scenario.population


def with_rate(scenario: Scenario) -> Scenario:
    """The scenario whose recipe draws cohorts as its population says."""
    user = replace(scenario.recipe.user, cohort_rate=population_of(scenario).rate)
    return replace(scenario, recipe=replace(scenario.recipe, user=user))


def _privacy(scenario: Scenario, world: CrowdWorld) -> Json:
    """Content of privacy.json: an account for each kind of ledger."""
    sums = world.sums()
    privacy = statement.privacy_file(
        scenario,
        world.plan,
        {world.fold.name: {kind.user: kind.ledger for kind in world.kinds}},
        {world.fold.name: sums} if sums else {},
    )
    privacy["worlds"][0]["registered"] = world.settings.users
    for kind in world.kinds:
        privacy["worlds"][0]["clients"][kind.user]["alike"] = kind.alike
    privacy["assumptions"] += [_ASSUMPTION, _ACCOUNTS]
    return privacy


def _of_a_crowd(run: Json, world: CrowdWorld, rounds: Sequence[Json]) -> Json:
    """The run with what is true of a crowd in place of what is true of a corpus."""
    settings = world.settings
    changed = {
        "corpus": run["corpus"]
        | {"speakers": settings.users, "clips": settings.users * settings.clips},
        "protocol": run["protocol"] | {"name": f"{settings.held_out} held-out users", "folds": 1},
        "clients": settings.users,
        "population": {
            "voices": VOICES,
            "registered": settings.users,
            "cohort": settings.cohort,
            "asked": sum(kind.alike for kind in world.kinds),
            "rounds": [{k: v for k, v in row.items() if k != "process"} for row in rounds],
        },
    }
    return validate_run(run | changed)
