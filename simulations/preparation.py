"""From a scenario and what was heard to the material and the plan of its folds."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sottovoce.server.checkpoint import replace_file
from sottovoce.shared import seeds
from sottovoce.shared.models.flat import flatten
from sottovoce.shared.models.spec import build
from sottovoce.shared.plan import Plan
from sottovoce.simulations import learned, promise
from sottovoce.simulations.hearing import Heard, Spoken, Tell, cache_folder, left_out
from sottovoce.simulations.learned import Learned
from sottovoce.simulations.material import HELD_OUT, Material, prepare, public_speech
from sottovoce.simulations.scenario import Scenario

_NOBODY = torch.zeros(0, dtype=torch.bool)
_LATER = ("user", "aggregation", "clip_norm", "steps", "sample_rate", "learning_rate", "momentum")
"""Settings of the training alone, which public corpora teach nothing."""


def material_of(
    scenario: Scenario,
    heard: Heard,
    public: Sequence[Spoken],
    folder: Path,
    tell: Tell = lambda _line: None,
) -> Material:
    """What all folds share.

    Args:
        scenario: The settled scenario.
        heard: The users' corpus and its features.
        public: The public corpora and theirs; none for models that need none.
        folder: Where speakers that the warm start has not seen are kept.
        tell: Takes a line about public clips that cannot be used.
    """
    labels = heard.protocol.corpus.emotions
    plan = promise.open_plan(scenario, run="", labels=labels, inputs=1)
    if not public:
        return _learn(scenario, heard, public, plan, folder)
    name = _name(scenario, heard, public, plan)
    known = learned.find(cache_folder(), name)
    if known is None:
        material = _learn(scenario, heard, public, plan, folder)
        learned.keep(cache_folder(), name, _what_is_learned(material, public))
        return material
    for line in known.left_out:
        tell(line)
    return _remembered(heard, plan, known, folder)


def _name(scenario: Scenario, heard: Heard, public: Sequence[Spoken], plan: Plan) -> str:
    """The name of what these public corpora teach a run."""
    recipe = scenario.recipe
    start = flatten(build(plan.model, seeds.derive(scenario.seed, "model")))
    facts = {
        "labels": plan.labels,
        "width": next(iter(heard.table.features.values())).shape[-1],
        "model": plan.model.to_dict(),
        "start": hashlib.sha256(start.numpy().tobytes()).hexdigest(),  # no seed where it is zeros
        "recipe": {name: value for name, value in asdict(recipe).items() if name not in _LATER},
        "user_mean": plan.normaliser is not None,
        "warm": bool(scenario.public),
        "features": [voices.decided_by for _, voices in public],
        "clips": [[(clip.clip_id, clip.speaker, clip.emotion) for clip in c] for c, _ in public],
    }
    return learned.key(facts)


def _learn(
    scenario: Scenario, heard: Heard, public: Sequence[Spoken], plan: Plan, folder: Path
) -> Material:
    """Learn from public speech now."""
    labels = plan.labels
    spoken, neutral = public_speech(labels, public) if public else (None, _NOBODY)
    return prepare(
        labels=labels,
        features=heard.table.features,
        clips=heard.protocol.corpus.by_speaker(),
        spoken=spoken,
        neutral=neutral,
        spec=plan.model,
        recipe=scenario.recipe,
        user_mean=plan.normaliser is not None,
        warm=bool(scenario.public),
        seed=scenario.seed,
        folder=folder,
    )


def _what_is_learned(material: Material, public: Sequence[Spoken]) -> Learned:
    """The part of the material that public corpora taught."""
    return Learned(
        front=material.front,
        population=material.population,
        start=material.start,
        held_out=material.held_out.read_bytes() if material.held_out else None,
        left_out=[line for _, voices in public for line in left_out(voices.table)],
    )


def _remembered(heard: Heard, plan: Plan, known: Learned, folder: Path) -> Material:
    """The material, of what was learned before."""
    held_out = None
    if known.held_out is not None:
        held_out = folder / HELD_OUT
        replace_file(held_out, known.held_out)
    return Material(
        labels=plan.labels,
        features=heard.table.features,
        clips=heard.protocol.corpus.by_speaker(),
        front=known.front,
        population=known.population,
        spec=replace(plan.model, inputs=known.front.inputs),
        start=known.start,
        held_out=held_out,
    )


def plan_of(scenario: Scenario, material: Material, run: str) -> Plan:
    """The plan that all folds have but for their names, with the noise that was promised."""
    inputs = material.front.inputs
    plan = promise.open_plan(scenario, run=run, labels=material.labels, inputs=inputs)
    plan = replace(plan, front=material.front.digest())
    if material.held_out is None:  # nobody to compare users with
        plan = replace(plan, calibration=None)
    return promise.noised(plan, scenario) if scenario.private else plan
