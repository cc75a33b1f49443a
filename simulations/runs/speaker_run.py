"""A run over speakers of a corpus, from scenario to run folder.

corpus -> protocol -> features -> pretraining -> for each fold: plan, engine, scores ->
run.json, privacy.json, model, pages. A run that was interrupted goes on from its last round.
"""

import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sottovoce.server.planning import noise_calibration
from sottovoce.simulations import engines
from sottovoce.simulations.data import loading, run_plan
from sottovoce.simulations.data.loading import OnMessage, OnProgress
from sottovoce.simulations.data.pretraining import build_fold_inputs, build_plan
from sottovoce.simulations.evaluation.baselines import comparison
from sottovoce.simulations.results import privacy_record
from sottovoce.simulations.results.schema import PrivacyRecord, RunRecord
from sottovoce.simulations.runs import run_folder
from sottovoce.simulations.runs.fold import FoldRun
from sottovoce.simulations.runs.fold_devices import SpeakerDevices
from sottovoce.simulations.runs.fold_spec import FoldSpec
from sottovoce.simulations.runs.progress import OnStatus, ProgressReporter
from sottovoce.simulations.runs.run_content import FinishedRun, describe_run
from sottovoce.simulations.scenario.scenario import Scenario


def simulate_speakers(
    scenario: Scenario,
    out: Path,
    *,
    resume: bool,
    address: str | None,
    on_message: OnMessage,
    on_progress: OnProgress,
    on_status: OnStatus,
) -> RunRecord:
    """Run a scenario that has no population; arguments and errors as ``simulation.simulate``."""
    started = time.monotonic()
    torch.set_num_threads(1)  # a second thread changes the order of sums, and with it the result
    data, recipe, target, settings = scenario.data, scenario.recipe, scenario.privacy, scenario.run
    loading.check_encoder(data.encoder, recipe)
    run_plan.check_budget(scenario.plan_settings, target)
    run_folder.check_run_folder(scenario, out, resume=resume)
    if address is not None:
        on_message(engines.check_cluster(address, workers=settings.workers, folder=out))
    loaded, public = loading.load_corpora(
        data, recipe, on_message, on_progress, workers=settings.workers
    )
    # Written only now: a run that could not begin leaves its folder free for the next try.
    run_folder.write_scenario(out, scenario)
    fold_inputs = build_fold_inputs(
        scenario.plan_settings,
        loaded,
        public,
        out / "checkpoints",
        on_message,
        seed=settings.seed,
        use_warm_start=bool(data.public),
    )
    features_s, training = time.monotonic() - started, time.monotonic()
    plan = build_plan(scenario.plan_settings, target, fold_inputs, run_folder.name_run(scenario))
    specs = [
        FoldSpec(
            folder=run_folder.checkpoint_folder(out, fold.name),
            ledgers=run_folder.ledger_folder(out, fold.name),
            fold=fold,
            plan=noise_calibration.add_secure_aggregation(
                replace(plan, run=f"{plan.run}/{fold.name}"),
                target,
                recipe.bounds,
                devices=len(fold.train),
            ),
            recipe=recipe,
            target=target,
            enrolment=data.enrolment,
            settings=settings,
            inputs=fold_inputs,
        )
        for fold in loaded.protocol.folds
    ]
    fold_runs = [FoldRun(spec, SpeakerDevices(spec, address=address)) for spec in specs]
    budget = next(iter(noise_calibration.device_budgets(target, plan)), None)
    reporter = ProgressReporter(plan, folds=len(specs), budget=budget, on_status=on_status)
    reporter.report_start()
    results = [fold_run.run(reporter) for fold_run in fold_runs]
    timing = {
        "feature_s": features_s,
        "training_s": time.monotonic() - training,
        "rounds_per_s": settings.rounds * len(specs) / (time.monotonic() - training),
    }
    baseline_results = comparison.evaluate_baselines(
        settings.baselines, scenario.baseline_settings, loaded.protocol, fold_inputs, plan
    )
    privacy = _privacy_record(
        fold_runs, Counter(clip.speaker for clip in loaded.protocol.corpus.clips)
    )
    clients = sum(len(spec.fold.train) for spec in specs)
    timing |= {
        "client_rounds_per_s": settings.rounds * clients / (time.monotonic() - training),
        "wall_s": time.monotonic() - started,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    finished = FinishedRun(
        data=data,
        settings=settings,
        unit=target.unit,
        corpus=loaded,
        folds=list(zip(specs, results, strict=True)),
        privacy=privacy,
        timing=timing,
        baselines=baseline_results,
        audited_epsilon=run_folder.read_audited_epsilon(out),
    )
    predictions = finished.encode_predictions()
    run = describe_run(finished, predictions)
    run_folder.write_results(out, run, privacy, fold_runs[-1], predictions)
    return run


def _privacy_record(fold_runs: Sequence[FoldRun], utterances: Mapping[str, int]) -> PrivacyRecord:
    """Content of privacy.json, from the archived ledgers of all folds and each user's clips."""
    users = {
        one.spec.fold.name: {user: one.user_ledger(user) for user in one.spec.fold.train}
        for one in fold_runs
    }
    servers = {one.spec.fold.name: sums for one in fold_runs if (sums := one.server_ledger())}
    return privacy_record.build_privacy_record(
        fold_runs[0].spec.target,
        fold_runs[0].spec.plan,
        users,
        servers,
        most_utterances=max(utterances[user] for fold in users.values() for user in fold),
    )
