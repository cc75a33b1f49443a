"""A run over a population, from scenario to run folder.

See ``runs.speaker_run`` for runs over speakers of a corpus.
"""

import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sottovoce.server.planning import noise_calibration
from sottovoce.shared.errors import SettingError
from sottovoce.simulations.data import loading, run_plan
from sottovoce.simulations.data.loading import LoadedCorpus, OnMessage, OnProgress
from sottovoce.simulations.data.pretraining import build_fold_inputs, build_plan
from sottovoce.simulations.population.fold import (
    HELD_OUT_FOLD,
    PopulationFoldRun,
    make_held_out_fold,
    with_held_out_clips,
)
from sottovoce.simulations.population.fold_devices import build_population
from sottovoce.simulations.results import privacy_record
from sottovoce.simulations.results.schema import Json, PrivacyRecord, RunRecord, validate_run
from sottovoce.simulations.runs import run_folder
from sottovoce.simulations.runs.fold_spec import FoldSpec
from sottovoce.simulations.runs.progress import OnStatus, ProgressReporter
from sottovoce.simulations.runs.run_content import FinishedRun, describe_run
from sottovoce.simulations.scenario.population import PopulationSettings
from sottovoce.simulations.scenario.scenario import Scenario

VOICE_DISCLAIMER = (
    "drawn in feature space from a mixed model of embedded synthetic voices; no sound was made, "
    "and accuracy says nothing about real voices"
)
_SAMPLING_ASSUMPTION = (
    "A user who was never sampled has released nothing and has no ledger; the promise covers them "
    "too."
)
_GROUPING_NOTE = (
    "Clients are listed by group: each entry stands for all devices whose ledgers hold the same "
    "releases, as many as its key devices_with_equal_ledgers says."
)


def simulate_population(
    scenario: Scenario,
    out: Path,
    *,
    resume: bool,
    on_message: OnMessage,
    on_progress: OnProgress,
    on_status: OnStatus,
) -> RunRecord:
    """Run a scenario that has a population; arguments and errors as ``simulation.simulate``."""
    started = time.monotonic()
    torch.set_num_threads(1)
    sampled = with_sampling_rate(scenario)
    run_plan.check_budget(sampled.plan_settings, sampled.privacy)
    run_folder.check_run_folder(scenario, out, resume=resume)
    loaded, fold_run = prepare_fold_run(scenario, out, on_message, on_progress)
    features_s, training = time.monotonic() - started, time.monotonic()
    reporter = ProgressReporter(fold_run.spec.plan, folds=1, budget=None, on_status=on_status)
    reporter.report_start()
    scored = fold_run.run(reporter)
    training_s = time.monotonic() - training
    privacy = _privacy_record(scenario, fold_run)
    rounds = fold_run.round_outcomes()
    timing = {
        "feature_s": features_s,
        "training_s": training_s,
        "rounds_per_s": scenario.run.rounds / training_s,
        "client_rounds_per_s": sum(map(_devices_worked, rounds)) / training_s,
        "wall_s": time.monotonic() - started,
        "cpu_s": _cpu_s(),
        "peak_rss_mb": max([_peak_mb(), *(row["rss_mb"] or 0.0 for row in rounds)]),
        "rss_growth_mb_per_round": memory_growth_mb(rounds),
    }
    finished = FinishedRun(
        data=scenario.data,
        settings=scenario.run,
        unit=scenario.privacy.unit,
        corpus=loaded,
        folds=[(fold_run.spec, scored)],
        privacy=privacy,
        timing=timing,
    )
    predictions = finished.encode_predictions()
    run = _describe_population(describe_run(finished, predictions), fold_run, rounds)
    run_folder.write_results(out, run, privacy, fold_run, predictions)
    return run


def prepare_fold_run(
    scenario: Scenario, out: Path, on_message: OnMessage, on_progress: OnProgress
) -> tuple[LoadedCorpus, PopulationFoldRun]:
    """Load the voices that users are drawn from, and settle the run's one fold.

    Args:
        scenario: Settled, with a population.
        out: The run folder; the settled scenario is written there.
        on_message: Takes a line about what was found.
        on_progress: Takes (what, done, total).
    """
    data, run = scenario.data, scenario.run
    loading.check_encoder(data.encoder, scenario.recipe)
    loaded, public = loading.load_corpora(
        data, scenario.recipe, on_message, on_progress, workers=run.workers
    )
    run_folder.write_scenario(out, scenario)
    settings, sampled = require_population(scenario), with_sampling_rate(scenario)
    folder = out / "checkpoints"
    on_message("pretraining on the public corpora")
    fold_inputs = build_fold_inputs(
        sampled.plan_settings,
        loaded,
        public,
        folder,
        on_message,
        seed=run.seed,
        use_warm_start=bool(data.public),
    )
    on_message(f"a voice model of {settings.users:,} users, and the noise that their budget needs")
    plan = build_plan(
        sampled.plan_settings,
        sampled.privacy,
        fold_inputs,
        f"{run_folder.name_run(scenario)}/population",
    )
    population = build_population(
        settings,
        fold_inputs,
        budgets=noise_calibration.device_budgets(scenario.privacy, plan),
        enrolment=data.enrolment,
        seed=run.seed,
    )
    spec = FoldSpec(
        folder=folder / "population",
        ledgers=out / "ledgers" / HELD_OUT_FOLD,
        fold=make_held_out_fold(settings),
        plan=plan,
        recipe=sampled.recipe,
        target=sampled.privacy,
        enrolment=data.enrolment,
        settings=run,
        inputs=with_held_out_clips(fold_inputs, settings, population),
    )
    return loaded, PopulationFoldRun(spec, settings, population)


def _cpu_s() -> float:
    """Processor time of this process and of workers that have ended, in seconds."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def _peak_mb() -> float:
    """Most memory that this process held so far, scoring included, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _devices_worked(row: Json) -> int:
    """How many devices did a round's work, their reply used or not."""
    return int(row["used"] + row["dropped"] + row["late"])


def memory_growth_mb(rounds: Sequence[Json]) -> float | None:
    """By how much resident memory grew a round after the third, on average, in MiB.

    Only rounds of the process that ended the run are compared; None where they are too few.
    """
    last = [row for row in rounds if row["process"] == rounds[-1]["process"] and row["round"] >= 3]
    if len(last) < 2:
        return None
    return float((last[-1]["rss_mb"] - last[0]["rss_mb"]) / (last[-1]["round"] - last[0]["round"]))


def require_population(scenario: Scenario) -> PopulationSettings:
    """Return the scenario's population, or refuse a scenario without one."""
    if scenario.population is None:
        raise SettingError("the scenario has no population; add a table [population]")
    return scenario.population


def with_sampling_rate(scenario: Scenario) -> Scenario:
    """The scenario whose recipe draws cohorts as its population says."""
    user = replace(
        scenario.recipe.user, user_sampling_rate=require_population(scenario).user_sampling_rate
    )
    return replace(scenario, recipe=replace(scenario.recipe, user=user))


def _privacy_record(scenario: Scenario, fold_run: PopulationFoldRun) -> PrivacyRecord:
    """Content of privacy.json: an account for each group of equal ledgers."""
    sums = fold_run.server_ledger()
    privacy = privacy_record.build_privacy_record(
        scenario.privacy,
        fold_run.spec.plan,
        {HELD_OUT_FOLD: {group.user: group.ledger for group in fold_run.ledger_groups}},
        {HELD_OUT_FOLD: sums} if sums else {},
        most_utterances=fold_run.settings.clips,
    )
    fold = privacy["folds"][0]
    fold["registered"] = fold_run.settings.users
    for group in fold_run.ledger_groups:
        fold["clients"][group.user]["devices_with_equal_ledgers"] = group.device_count
    privacy["assumptions"] += [_SAMPLING_ASSUMPTION, _GROUPING_NOTE]
    return privacy


def _describe_population(
    run: RunRecord, fold_run: PopulationFoldRun, rounds: Sequence[Json]
) -> RunRecord:
    """The run with what is true of a population in place of what is true of a corpus."""
    settings = fold_run.settings
    changed = {
        "corpus": run["corpus"]
        | {"speakers": settings.users, "clips": settings.users * settings.clips},
        "protocol": run["protocol"] | {"name": f"{settings.held_out} held-out users", "folds": 1},
        "clients": settings.users,
        "population": {
            "voices": VOICE_DISCLAIMER,
            "registered": settings.users,
            "cohort": settings.cohort,
            "asked": sum(group.device_count for group in fold_run.ledger_groups),
            "rounds": [{k: v for k, v in row.items() if k != "process"} for row in rounds],
        },
    }
    return validate_run(run | changed)
