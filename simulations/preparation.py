"""From a scenario and what was heard to the material and the plan of its folds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sottovoce.shared.plan import Plan
from sottovoce.simulations import promise
from sottovoce.simulations.hearing import Heard, Spoken
from sottovoce.simulations.material import Material, prepare, public_speech
from sottovoce.simulations.scenario import Scenario

_NOBODY = torch.zeros(0, dtype=torch.bool)


def material_of(
    scenario: Scenario, heard: Heard, public: Sequence[Spoken], folder: Path
) -> Material:
    """What all folds share.

    Args:
        scenario: The settled scenario.
        heard: The users' corpus and its features.
        public: The public corpora and theirs; none for models that need none.
        folder: Where speakers that the warm start has not seen are kept.
    """
    labels = heard.protocol.corpus.emotions
    plan = promise.open_plan(scenario, run="", labels=labels, inputs=1)
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


def plan_of(scenario: Scenario, material: Material, run: str) -> Plan:
    """The plan that all folds have but for their names, with the noise that was promised."""
    inputs = material.front.inputs
    plan = promise.open_plan(scenario, run=run, labels=material.labels, inputs=inputs)
    plan = replace(plan, front=material.front.digest())
    return promise.noised(plan, scenario) if scenario.private else plan
