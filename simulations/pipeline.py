"""A simulated run from scenario to run folder.

corpus -> protocol -> features -> public material -> for each fold: plan, world, engine, scores ->
run.json, privacy.json, model, pages. A run that was interrupted goes on from its last round.
"""

import hashlib
import json
import logging
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sottovoce.server.checkpoint import replace_file
from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.features.extract import extractor
from sottovoce.shared.models.flat import count
from sottovoce.shared.models.spec import build
from sottovoce.shared.plan import Plan
from sottovoce.simulations import baselines, promise, record
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.clips import Clip, Corpus
from sottovoce.simulations.features import FeatureTable, features
from sottovoce.simulations.material import Material, prepare, public_speech
from sottovoce.simulations.protocols import Protocol, protocol
from sottovoce.simulations.reports import render
from sottovoce.simulations.reports.card import card
from sottovoce.simulations.runfile import Json, write_json
from sottovoce.simulations.scenario import HEADS_ON_FROZEN, Scenario
from sottovoce.simulations.world import Outcome, World, folder_name

LOG = logging.getLogger("sottovoce.simulations")
FRONT_ONLY = ("synthetic", "speakers=40,clips=20,seed=90210")
"""Voices that fit the front where no corpus is declared public: made up, so public by birth."""

Tell = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Heard:
    """A corpus behind its protocol, its features, and what was left out."""

    protocol: Protocol
    table: FeatureTable
    exclusions: Mapping[str, int]


def simulate(
    scenario: Scenario,
    out: Path,
    *,
    resume: bool = False,
    tell: Tell = lambda _line: None,
    progress: Progress = lambda _what, _done, _total: None,
) -> Json:
    """Run a scenario.

    Args:
        scenario: Settled.
        out: The run folder; must be new or empty, unless resumed.
        resume: Whether to go on with a run that was interrupted.
        tell: Takes a line about what was found.
        progress: Takes (what, done, total).

    Returns:
        Content of run.json.

    Raises:
        SottovoceError: Bad input, a full disk, a broken promise: each with its way out.
    """
    started = time.monotonic()
    torch.set_num_threads(1)  # a second thread changes the order of sums, and with it the result
    _check_encoder(scenario)
    promise.check_budget(scenario)
    _check_folder(scenario, out, resume=resume)
    cache = FeatureCache(cache_folder())
    heard = _hear(scenario, cache, tell, progress)
    # Written only now: a run that could not begin leaves its folder free for the next try.
    replace_file(out / "config.toml", scenario.to_toml().encode())
    material = _material(scenario, heard, cache, out, tell, progress)
    features_s = time.monotonic() - started
    worlds, outcomes = [], []
    training = time.monotonic()
    plan = _plan(scenario, material)
    for number, fold in enumerate(heard.protocol.folds, 1):
        world = World(
            folder=out / "checkpoints" / folder_name(fold.name),
            ledgers=out / "ledgers" / folder_name(fold.name),
            fold=fold,
            plan=replace(plan, run=f"{plan.run}/{fold.name}"),
            scenario=scenario,
            material=material,
        )
        outcomes.append(world.run())
        worlds.append(world)
        progress("folds", number, len(heard.protocol.folds))
    timing = {
        "feature_s": features_s,
        "training_s": time.monotonic() - training,
        "rounds_per_s": scenario.rounds * len(worlds) / (time.monotonic() - training),
    }
    compared = baselines.measure(scenario, heard.protocol, material, plan)
    privacy = promise.privacy_file(
        scenario,
        worlds[0].plan,
        {
            world.fold.name: {user: world.ledger(user) for user in world.fold.train}
            for world in worlds
        },
    )
    clients = sum(len(world.fold.train) for world in worlds)
    timing |= {
        "client_rounds_per_s": scenario.rounds * clients / (time.monotonic() - training),
        "wall_s": time.monotonic() - started,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    run = _describe(scenario, heard, material, worlds, outcomes, privacy, compared, timing)
    write_json(out / "privacy.json", privacy)
    write_json(out / "run.json", run)
    _hand_out(out, worlds[-1], run)
    render(out)
    return run


def cache_folder() -> Path:
    """Where features are kept between runs: ``$SOTTOVOCE_CACHE``, or the user's cache folder."""
    named = os.environ.get("SOTTOVOCE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sottovoce"


def _check_encoder(scenario: Scenario) -> None:
    """Refuse features that the model cannot read, before any is computed.

    Raises:
        SettingError: The encoder is unknown, or gives frames where the model reads vectors, or the
            other way round.
    """
    recipe, chosen = scenario.recipe, extractor(scenario.encoder)
    frames = recipe.model not in HEADS_ON_FROZEN or recipe.pooling != "none"
    if chosen.framewise != frames:
        gives, reads = ("frames", "one vector") if chosen.framewise else ("one vector", "frames")
        raise SettingError(
            f"encoder {scenario.encoder} gives {gives} and model {recipe.model} with pooling "
            f"{recipe.pooling} reads {reads} an utterance; leave --encoder or --model out, or set "
            "recipe.pooling in a scenario file"
        )


def _check_folder(scenario: Scenario, out: Path, *, resume: bool) -> None:
    """Make sure that the run folder is free, or the same run's."""
    config = out / "config.toml"
    settled = scenario.to_toml()
    if out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file; --out names the folder to make")
    if config.exists():
        if not resume:
            raise SettingError(
                f"{out} holds a run; give --resume to go on with it, or another --out"
            )
        kept = config.read_text(encoding="utf-8")
        if _identity(kept) != _identity(settled):
            raise SettingError(f"{out} holds a run of another scenario; give another --out")
        return
    if out.exists() and any(out.iterdir()):
        raise SettingError(f"{out} is not empty and holds no run; give another --out")


def _identity(config: str) -> list[str]:
    """A scenario's lines less those that change no result."""
    free = ("workers", "engine")
    return [line for line in config.splitlines() if line.split(" = ")[0] not in free]


def _hear(scenario: Scenario, cache: FeatureCache, tell: Tell, progress: Progress) -> Heard:
    """Open the users' corpus, split its speakers, compute features."""
    corpus = open_corpus(scenario.corpus, scenario.data)
    for line in corpus.mapping_lines():
        tell(f"label {line}")
    for found in corpus.findings:
        tell(f"found: {found}")
    chosen = protocol(scenario.protocol or "default", corpus)
    for found in chosen.findings:
        tell(f"{chosen.name}: {found}")
    table = _features(chosen.corpus, scenario, cache, tell, progress)
    usable = tuple(clip for clip in chosen.corpus.clips if clip.clip_id in table.features)
    if len(usable) < len(chosen.corpus.clips):
        names = [name for fold in chosen.folds for name in (*fold.train, *fold.test)]
        silent = sorted(set(names) - {clip.speaker for clip in usable})
        if silent:
            raise CorpusError(
                f"no clip of {', '.join(silent[:5])} can be used; remove them from the corpus"
            )
        chosen = replace(chosen, corpus=replace(chosen.corpus, clips=usable))
    reasons = Counter(entry.reason.split(" (")[0].split(":")[0] for entry in table.excluded)
    exclusions = dict(reasons) | {
        found.what: found.count for found in corpus.findings if "left out" in found.action
    }
    return Heard(protocol=chosen, table=table, exclusions=exclusions)


def _features(
    corpus: Corpus, scenario: Scenario, cache: FeatureCache, tell: Tell, progress: Progress
) -> FeatureTable:
    """Features of a corpus, with an account of what was left out."""
    table = features(
        corpus.clips,
        scenario.encoder,
        cache,
        workers=max(scenario.workers, os.cpu_count() or 1),
        progress=lambda done, total: progress(f"features of {corpus.name}", done, total),
    )
    for entry in table.excluded:
        tell(f"left out: {entry.clip_id}: {entry.reason}")
    if table.corrupt:
        tell(f"{table.corrupt} damaged cache entries were computed again")
    return table


def _material(
    scenario: Scenario,
    heard: Heard,
    cache: FeatureCache,
    out: Path,
    tell: Tell,
    progress: Progress,
) -> Material:
    """What all folds share."""
    labels = heard.protocol.corpus.emotions
    plan = promise.open_plan(scenario, run="", labels=labels, inputs=1)
    spoken, neutral, warm = None, torch.zeros(0, dtype=torch.bool), bool(scenario.public)
    if scenario.recipe.model in HEADS_ON_FROZEN:
        corpora = [
            _public(name, data, scenario, cache, tell, progress)
            for name, data in scenario.public or (FRONT_ONLY,)
        ]
        spoken, neutral = public_speech(labels, corpora)
        if not warm:
            tell("no corpus is declared public: the front is fitted on made-up voices")
    return prepare(
        labels=labels,
        features=heard.table.features,
        clips=_by_speaker(heard.protocol.corpus.clips),
        spoken=spoken,
        neutral=neutral,
        spec=plan.model,
        recipe=scenario.recipe,
        user_mean=plan.normaliser is not None,
        warm=warm,
        seed=scenario.seed,
        folder=out / "checkpoints",
    )


def _public(
    name: str, data: str, scenario: Scenario, cache: FeatureCache, tell: Tell, progress: Progress
) -> tuple[Sequence[Clip], Mapping[str, Tensor]]:
    """A public corpus's clips and features."""
    corpus = open_corpus(name, data)
    return corpus.clips, _features(corpus, scenario, cache, tell, progress).features


def _by_speaker(clips: Sequence[Clip]) -> dict[str, tuple[Clip, ...]]:
    """Clips of each speaker."""
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.speaker, []).append(clip)
    return {speaker: tuple(group) for speaker, group in groups.items()}


def _plan(scenario: Scenario, material: Material) -> Plan:
    """The plan that all folds have but for their names."""
    name = hashlib.sha256("\n".join(_identity(scenario.to_toml())).encode()).hexdigest()[:16]
    inputs = material.front.inputs
    plan = promise.open_plan(scenario, run=name, labels=material.labels, inputs=inputs)
    plan = replace(plan, front=material.front.digest())
    return promise.noised(plan, scenario) if scenario.private else plan


def _describe(
    scenario: Scenario,
    heard: Heard,
    material: Material,
    worlds: Sequence[World],
    outcomes: Sequence[Outcome],
    privacy: Json,
    compared: Json,
    timing: Json,
) -> Json:
    """Content of run.json."""
    everything = record.gather([outcome.everything for outcome in outcomes])
    personal = [outcome.personal for outcome in outcomes if outcome.personal is not None]
    behind_heads = record.gather(personal) if personal else everything
    corpus = heard.protocol.corpus
    curve = record.learning_curve(
        {world.fold.name: outcome.curve for world, outcome in zip(worlds, outcomes, strict=True)}
    )
    calibration = record.calibration(behind_heads)
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
        privacy=record.privacy_section(privacy),
        timing=timing,
        baselines=compared,
        exclusions=heard.exclusions,
    )


def _uar_around_heads(scored: record.Scored) -> Json:
    """UAR on the same clips before and after heads."""
    before = record.accuracy(scored, seed=0)
    return {"before": before["before_heads"]["uar"], "after": before["uar"]}


def _hand_out(out: Path, world: World, run: Json) -> None:
    """The model of the last fold, with its card: the one whose test figures are in the run."""
    folder = out / "model"
    bundle = world.bundle()
    bundle.save(folder)
    words = json.loads((folder / "model.json").read_text())
    words |= {"fold": world.fold.name, "trained_without": list(world.fold.test)}
    replace_file(folder / "model.json", (json.dumps(words, indent=1) + "\n").encode())
    replace_file(folder / "MODEL_CARD.md", card(run).encode())
