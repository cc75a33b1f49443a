"""A simulated run from scenario to run folder.

corpus -> protocol -> features -> public material -> for each fold: plan, world, engine, scores ->
run.json, privacy.json, model, pages. A run that was interrupted goes on from its last round.
"""

import hashlib
import json
import logging
import resource
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sottovoce.server.checkpoint import replace_file
from sottovoce.shared import metrics
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.models.flat import count
from sottovoce.shared.models.spec import build
from sottovoce.simulations import baselines, engines, promise, record, statement
from sottovoce.simulations.course import Course, Show
from sottovoce.simulations.hearing import (
    Heard,
    Progress,
    Spoken,
    Tell,
    cache_folder,
    check_encoder,
    hear,
    hear_public,
)
from sottovoce.simulations.material import Material
from sottovoce.simulations.names import folder_name
from sottovoce.simulations.outcome import Outcome
from sottovoce.simulations.preparation import material_of, plan_of
from sottovoce.simulations.reports import render
from sottovoce.simulations.runfile import Json, read_run, write_json
from sottovoce.simulations.scenario import Scenario
from sottovoce.simulations.world import World

LOG = logging.getLogger("sottovoce.simulations")

_FREE = ("workers", "engine")
"""Settings that change no result."""


def simulate(
    scenario: Scenario,
    out: Path,
    *,
    resume: bool = False,
    address: str | None = None,
    tell: Tell = lambda _line: None,
    progress: Progress = lambda _what, _done, _total: None,
    show: Show = lambda _status: None,
) -> Json:
    """Run a scenario.

    Args:
        scenario: Settled.
        out: The run folder; must be new or empty, unless resumed.
        resume: Whether to go on with a run that was interrupted.
        address: Of the Ray cluster to run on; a fact of the machines, not of the run.
        tell: Takes a line about what was found.
        progress: Takes (what, done, total).
        show: Takes how far the run is, after each round and each fold.

    Returns:
        Content of run.json.

    Raises:
        SottovoceError: Bad input, a full disk, a broken promise: each with its way out.
    """
    engines.check_address(scenario.engine, address)
    if scenario.population:
        from sottovoce.simulations.population import run as crowd  # it builds on this module

        return crowd.simulate(scenario, out, resume=resume, tell=tell, progress=progress)
    started = time.monotonic()
    torch.set_num_threads(1)  # a second thread changes the order of sums, and with it the result
    check_encoder(scenario)
    promise.check_budget(scenario)
    check_folder(scenario, out, resume=resume)
    if address is not None:
        tell(engines.reach(address, workers=scenario.workers, folder=out))
    heard, public = hear_all(scenario, tell, progress)
    # Written only now: a run that could not begin leaves its folder free for the next try.
    replace_file(out / "config.toml", scenario.to_toml().encode())
    material = material_of(scenario, heard, public, out / "checkpoints", tell)
    features_s = time.monotonic() - started
    worlds, outcomes = [], []
    training = time.monotonic()
    name = identity(scenario.to_toml())[:16]
    plan = plan_of(scenario, material, name)
    folds = heard.protocol.folds
    budget = next(iter(promise.budgets(scenario)), None)
    with Course(plan, folds=len(folds), budget=budget, show=show) as course:
        for fold in folds:
            world = World(
                folder=out / "checkpoints" / folder_name(fold.name),
                ledgers=out / "ledgers" / folder_name(fold.name),
                fold=fold,
                plan=promise.secured(
                    replace(plan, run=f"{plan.run}/{fold.name}"), scenario, devices=len(fold.train)
                ),
                scenario=scenario,
                material=material,
                address=address,
            )
            outcomes.append(world.run())
            worlds.append(world)
            course.ended(outcomes[-1].uar)
    timing = {
        "feature_s": features_s,
        "training_s": time.monotonic() - training,
        "rounds_per_s": scenario.rounds * len(worlds) / (time.monotonic() - training),
    }
    compared = baselines.measure(scenario, heard.protocol, material, plan)
    privacy = statement.privacy_file(
        scenario,
        worlds[0].plan,
        {
            world.fold.name: {user: world.ledger(user) for user in world.fold.train}
            for world in worlds
        },
        {world.fold.name: sums for world in worlds if (sums := world.sums())},
    )
    clients = sum(len(world.fold.train) for world in worlds)
    timing |= {
        "client_rounds_per_s": scenario.rounds * clients / (time.monotonic() - training),
        "wall_s": time.monotonic() - started,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    audited = _audited(out)
    run = describe(scenario, heard, material, worlds, outcomes, privacy, compared, timing, audited)
    write_json(out / "privacy.json", privacy)
    write_json(out / "run.json", run)
    hand_out(out, worlds[-1], run)
    render(out)
    return run


def prepare(
    scenario: Scenario,
    tell: Tell = lambda _line: None,
    progress: Progress = lambda _what, _done, _total: None,
) -> None:
    """Compute what a run and others like it find in the cache: features, public material."""
    torch.set_num_threads(1)
    heard, public = hear_all(scenario, tell, progress)
    with tempfile.TemporaryDirectory() as folder:
        material_of(scenario, heard, public, Path(folder), tell)


def hear_all(scenario: Scenario, tell: Tell, progress: Progress) -> tuple[Heard, list[Spoken]]:
    """The users' corpus and the public ones."""
    with FeatureCache(cache_folder()) as cache:
        heard = hear(scenario, cache, tell, progress)
    return heard, hear_public(scenario, heard, tell, progress)


def same_scenario(folder: Path, scenario: Scenario) -> bool:
    """Whether a folder holds a run of this scenario, but for what changes no result."""
    try:
        kept = (folder / "config.toml").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return identity(kept) == identity(scenario.to_toml())


def check_folder(scenario: Scenario, out: Path, *, resume: bool) -> None:
    """Make sure that the run folder is free, or the same run's."""
    config = out / "config.toml"
    if out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file; --out names the folder to make")
    if config.exists():
        if not resume:
            raise SettingError(
                f"{out} holds a run; give --resume to go on with it, or another --out"
            )
        if not same_scenario(out, scenario):
            raise SettingError(f"{out} holds a run of another scenario; give another --out")
        return
    # A run that was killed before it began may have left a hidden, half-written file.
    if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise SettingError(f"{out} is not empty and holds no run; give another --out")


def identity(config: str) -> str:
    """SHA-256 of a scenario's settings less those that change no result; empty for no TOML.

    It names the run; no draw hangs on it. Order and spelling of the file do not matter.
    """
    try:
        settings = tomllib.loads(config)
    except tomllib.TOMLDecodeError:
        return ""
    decisive = {name: value for name, value in settings.items() if name not in _FREE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def describe(
    scenario: Scenario,
    heard: Heard,
    material: Material,
    worlds: Sequence[World],
    outcomes: Sequence[Outcome],
    privacy: Json,
    compared: Json,
    timing: Json,
    audited: float | None,
) -> Json:
    """Content of run.json."""
    everything = record.gather([outcome.everything for outcome in outcomes])
    personal = [outcome.personal for outcome in outcomes if outcome.personal is not None]
    behind_heads = record.gather(personal) if personal else everything
    corpus = heard.protocol.corpus
    curve = record.learning_curve(
        {world.fold.name: outcome.curve for world, outcome in zip(worlds, outcomes, strict=True)}
    )
    calibration = record.calibration(behind_heads, seed=scenario.seed)
    calibration["uar"] = _uar_around_heads(behind_heads)
    calibration["head_clips"] = scenario.head_clips
    return record.assemble(
        corpus={
            "name": corpus.name,
            "clips": len(corpus.clips),
            "speakers": len(corpus.speakers),
            "emotions": list(corpus.emotions),
        },
        protocol={
            "name": heard.protocol.name,
            "folds": len(heard.protocol.folds),
            "enrolment": scenario.enrolment,
        },
        seed=scenario.seed,
        engine=scenario.engine,
        unit=scenario.unit,
        clients=len({user for world in worlds for user in world.fold.train}),
        rounds=scenario.rounds,
        model={
            "kind": scenario.recipe.model,
            "encoder": scenario.encoder,
            "shared_parameters": count(build(material.spec, 0)),
            "public_corpora": [name for name, _ in scenario.public],
        },
        accuracy=record.accuracy(everything, seed=scenario.seed, curve=curve),
        calibration=calibration,
        fairness=record.fairness(everything),
        privacy=record.privacy_section(privacy, audit=audited),
        timing=timing,
        baselines=compared,
        exclusions=heard.exclusions,
    )


def _audited(out: Path) -> float | None:
    """What an audit found before the run was resumed: it is as private as it was."""
    try:
        lower = (read_run(out)["privacy"].get("audit") or {}).get("epsilon_lower")
    except SottovoceError:  # there is none, or none that can be read: it is written anew
        return None
    return None if lower is None else float(lower)


def _uar_around_heads(scored: record.Scored) -> Json:
    """UAR on the same clips before and after heads."""
    after = np.sum(list(scored.confusions(scored.speakers).values()), axis=0)
    return {"before": metrics.uar(scored.confusion_before()), "after": metrics.uar(after)}


def hand_out(out: Path, world: World, run: Json) -> None:
    """The model of the last fold, with its card: the one whose test figures are in the run."""
    # Here, because it brings in Matplotlib: a second before the first round of every run.
    from sottovoce.simulations.reports.card import card

    folder = out / "model"
    bundle = world.bundle()
    bundle.save(folder)
    words = json.loads((folder / "model.json").read_text())
    words |= {"fold": world.fold.name, "trained_without": list(world.fold.test)}
    replace_file(folder / "model.json", (json.dumps(words, indent=1) + "\n").encode())
    replace_file(folder / "MODEL_CARD.md", card(run).encode())
