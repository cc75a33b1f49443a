"""A simulated run from scenario to run folder.

corpus -> protocol -> features -> pretraining -> for each fold: plan, engine, scores ->
run.json, privacy.json, model, pages. A run that was interrupted goes on from its last round.
"""

import hashlib
import json
import logging
import resource
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sottovoce.server.planning import noise_calibration
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.models.parameters import count_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.protocol.events import FoldEnded
from sottovoce.simulations import engines
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.data.loading import (
    LoadedCorpus,
    OnMessage,
    OnProgress,
    PublicCorpus,
    cache_folder,
    check_encoder,
    load_corpus,
    load_public_corpora,
)
from sottovoce.simulations.data.pretraining import build_fold_inputs, build_plan
from sottovoce.simulations.evaluation import baselines, metrics
from sottovoce.simulations.evaluation.fairness import measure_fairness
from sottovoce.simulations.evaluation.fold_result import FoldResult
from sottovoce.simulations.reports import render_pages
from sottovoce.simulations.results import privacy_record, run_record
from sottovoce.simulations.results.path_names import folder_name
from sottovoce.simulations.results.schema import (
    SCHEMA_VERSION,
    BeforeAfter,
    PrivacyRecord,
    Rates,
    RunRecord,
    read_run,
    write_json,
)
from sottovoce.simulations.runs.fold import FoldRun
from sottovoce.simulations.runs.progress import OnStatus, ProgressReporter
from sottovoce.simulations.scenario.scenario import Scenario

LOG = logging.getLogger("sottovoce.simulations")

_FREE = ("workers", "engine")
"""Settings that change no result."""


def simulate(
    scenario: Scenario,
    out: Path,
    *,
    resume: bool = False,
    address: str | None = None,
    on_message: OnMessage = lambda _line: None,
    on_progress: OnProgress = lambda _what, _done, _total: None,
    on_status: OnStatus = lambda _status: None,
) -> RunRecord:
    """Run a scenario.

    Args:
        scenario: Settled.
        out: The run folder; must be new or empty, unless resumed.
        resume: Whether to go on with a run that was interrupted.
        address: Of the Ray cluster to run on; a fact of the machines, not of the run.
        on_message: Takes a line about what was found.
        on_progress: Takes (what, done, total).
        on_status: Takes how far the run is, after each round and each fold.

    Returns:
        Content of run.json.

    Raises:
        SottovoceError: Bad input, a full disk, a broken promise: each with its way out.
    """
    engines.check_address(scenario.engine, address)
    if scenario.population:
        from sottovoce.simulations.population import run as population_run  # it imports this module

        return population_run.simulate_population(
            scenario, out, resume=resume, on_message=on_message, on_progress=on_progress
        )
    started = time.monotonic()
    torch.set_num_threads(1)  # a second thread changes the order of sums, and with it the result
    check_encoder(scenario)
    noise_calibration.check_budget(scenario)
    check_run_folder(scenario, out, resume=resume)
    if address is not None:
        on_message(engines.check_cluster(address, workers=scenario.workers, folder=out))
    loaded, public = load_corpora(scenario, on_message, on_progress)
    # Written only now: a run that could not begin leaves its folder free for the next try.
    replace_file(out / "config.toml", scenario.to_toml().encode())
    fold_inputs = build_fold_inputs(scenario, loaded, public, out / "checkpoints", on_message)
    features_s = time.monotonic() - started
    fold_runs, fold_results = [], []
    training = time.monotonic()
    name = hash_settings(scenario.to_toml())[:16]
    plan = build_plan(scenario, fold_inputs, name)
    folds = loaded.protocol.folds
    budget = next(iter(noise_calibration.device_budgets(scenario)), None)
    reporter = ProgressReporter(plan, folds=len(folds), budget=budget, on_status=on_status)
    for fold in folds:
        fold_run = FoldRun(
            folder=out / "checkpoints" / folder_name(fold.name),
            ledgers=out / "ledgers" / folder_name(fold.name),
            fold=fold,
            plan=noise_calibration.add_secure_aggregation(
                replace(plan, run=f"{plan.run}/{fold.name}"), scenario, devices=len(fold.train)
            ),
            scenario=scenario,
            fold_inputs=fold_inputs,
            address=address,
            listener=reporter,
        )
        fold_results.append(fold_run.run())
        fold_runs.append(fold_run)
        reporter.handle_event(FoldEnded(fold=fold.name, uar=fold_results[-1].final_uar))
    timing = {
        "feature_s": features_s,
        "training_s": time.monotonic() - training,
        "rounds_per_s": scenario.rounds * len(fold_runs) / (time.monotonic() - training),
    }
    baseline_results = baselines.evaluate_baselines(scenario, loaded.protocol, fold_inputs, plan)
    privacy = privacy_record.build_privacy_record(
        scenario,
        fold_runs[0].plan,
        {
            one.fold.name: {user: one.user_ledger(user) for user in one.fold.train}
            for one in fold_runs
        },
        {one.fold.name: sums for one in fold_runs if (sums := one.server_ledger())},
    )
    clients = sum(len(one.fold.train) for one in fold_runs)
    timing |= {
        "client_rounds_per_s": scenario.rounds * clients / (time.monotonic() - training),
        "wall_s": time.monotonic() - started,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    audited_epsilon = _audited_epsilon(out)
    run = describe_run(
        scenario,
        loaded,
        fold_inputs,
        fold_runs,
        fold_results,
        privacy,
        baseline_results,
        timing,
        audited_epsilon,
    )
    write_json(out / "privacy.json", privacy)
    write_json(out / "run.json", run)
    export_model(out, fold_runs[-1], run)
    render_pages(out)
    return run


def warm_cache(
    scenario: Scenario,
    on_message: OnMessage = lambda _line: None,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> None:
    """Compute what a run and others like it find in the cache: features, pretraining results."""
    torch.set_num_threads(1)
    loaded, public = load_corpora(scenario, on_message, on_progress)
    with tempfile.TemporaryDirectory() as folder:
        build_fold_inputs(scenario, loaded, public, Path(folder), on_message)


def load_corpora(
    scenario: Scenario, on_message: OnMessage, on_progress: OnProgress
) -> tuple[LoadedCorpus, list[PublicCorpus]]:
    """The users' corpus and the public ones."""
    with FeatureCache(cache_folder()) as cache:
        loaded = load_corpus(scenario, cache, on_message, on_progress)
    return loaded, load_public_corpora(scenario, loaded, on_message, on_progress)


def is_same_scenario(folder: Path, scenario: Scenario) -> bool:
    """Whether a folder holds a run of this scenario, but for what changes no result."""
    try:
        config = (folder / "config.toml").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return hash_settings(config) == hash_settings(scenario.to_toml())


def check_run_folder(scenario: Scenario, out: Path, *, resume: bool) -> None:
    """Make sure that the run folder is free, or the same run's."""
    config = out / "config.toml"
    if out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file; --out names the folder to make")
    if config.exists():
        if not resume:
            raise SettingError(
                f"{out} holds a run; give --resume to go on with it, or another --out"
            )
        if not is_same_scenario(out, scenario):
            raise SettingError(f"{out} holds a run of another scenario; give another --out")
        return
    # A run that was killed before it began may have left a hidden, half-written file.
    if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise SettingError(f"{out} is not empty and holds no run; give another --out")


def hash_settings(config: str) -> str:
    """SHA-256 of a scenario's settings less those that change no result; empty for no TOML.

    It names the run; no draw depends on it. Order and spelling of the file do not matter.
    """
    try:
        settings = tomllib.loads(config)
    except tomllib.TOMLDecodeError:
        return ""
    decisive = {name: value for name, value in settings.items() if name not in _FREE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def describe_run(
    scenario: Scenario,
    loaded_corpus: LoadedCorpus,
    fold_inputs: FoldInputs,
    fold_runs: Sequence[FoldRun],
    fold_results: Sequence[FoldResult],
    privacy: PrivacyRecord,
    baseline_results: dict[str, Rates],
    timing: Mapping[str, float | None],
    audited_epsilon: float | None,
) -> RunRecord:
    """Content of run.json."""
    everything = run_record.concatenate_predictions([result.predictions for result in fold_results])
    personal = [result.personalised for result in fold_results if result.personalised is not None]
    behind_heads = run_record.concatenate_predictions(personal) if personal else everything
    corpus = loaded_corpus.protocol.corpus
    curve = run_record.learning_curve(
        {
            one.fold.name: result.learning_curve
            for one, result in zip(fold_runs, fold_results, strict=True)
        }
    )
    calibration = run_record.calibration_section(behind_heads, seed=scenario.seed)
    calibration["uar"] = _uar_before_after(behind_heads)
    calibration["labelled_clips_per_user"] = scenario.labelled_clips_per_user
    return run_record.assemble_run_record(
        {
            "schema": SCHEMA_VERSION,
            "corpus": {
                "name": corpus.name,
                "clips": len(corpus.clips),
                "speakers": len(corpus.speakers),
                "emotions": list(corpus.emotions),
            },
            "protocol": {
                "name": loaded_corpus.protocol.name,
                "folds": len(loaded_corpus.protocol.folds),
                "enrolment": scenario.enrolment,
            },
            "seed": scenario.seed,
            "engine": scenario.engine,
            "unit": scenario.unit,
            "clients": len({user for one in fold_runs for user in one.fold.train}),
            "rounds": scenario.rounds,
            "model": {
                "kind": scenario.recipe.model,
                "encoder": scenario.encoder,
                "shared_parameters": count_parameters(build_network(fold_inputs.model_spec, 0)),
                "public_corpora": [name for name, _ in scenario.public],
            },
            "accuracy": run_record.accuracy_section(everything, seed=scenario.seed, curve=curve),
            "baselines": baseline_results,
            "calibration": calibration,
            "fairness": measure_fairness(everything),
            "privacy": run_record.privacy_section(privacy, audit=audited_epsilon),
            "timing": timing,
            "exclusions": dict(loaded_corpus.exclusion_counts),
        }
    )


def _audited_epsilon(out: Path) -> float | None:
    """What an audit found before the run was resumed: it is as private as it was."""
    try:
        audit = read_run(out)["privacy"].get("audit")
    except SottovoceError:  # there is none, or none that can be read: it is written anew
        return None
    return audit["epsilon_lower"] if audit else None


def _uar_before_after(scored: run_record.Predictions) -> BeforeAfter:
    """UAR on the same clips before and after heads."""
    after = np.sum(list(scored.confusion_by_group(scored.speakers).values()), axis=0)
    return {"before": metrics.uar(scored.confusion_without_heads()), "after": metrics.uar(after)}


def export_model(out: Path, fold_run: FoldRun, run: RunRecord) -> None:
    """The model of the last fold, with its card: the one whose test figures are in the run."""
    # Here, because it brings in Matplotlib: a second before the first round of every run.
    from sottovoce.simulations.reports.model_card import render_card

    folder = out / "model"
    package = fold_run.load_model()
    package.save(folder)
    words = json.loads((folder / "model.json").read_text())
    words |= {"fold": fold_run.fold.name, "trained_without": list(fold_run.fold.test)}
    replace_file(folder / "model.json", (json.dumps(words, indent=1) + "\n").encode())
    replace_file(folder / "MODEL_CARD.md", render_card(run).encode())
