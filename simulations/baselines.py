"""What a federated, private run is compared with, on the same folds and the same inputs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sottovoce.client.training.trainer import local_update
from sottovoce.server.public import group_means
from sottovoce.server.round import (
    State,
    advance,
    begin,
    class_weights,
    learning_rate,
)
from sottovoce.server.sums import total
from sottovoce.shared import metrics, normaliser, seeds
from sottovoce.shared.examples import Examples, join
from sottovoce.shared.front import finish
from sottovoce.shared.models.flat import load_flat
from sottovoce.shared.models.spec import build
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.noise import SeededNoise
from sottovoce.shared.training import NoPrivacy
from sottovoce.simulations.material import Material
from sottovoce.simulations.protocols import Fold, Protocol
from sottovoce.simulations.runfile import Json
from sottovoce.simulations.scenario import CLASS_EXPONENTS, Scenario


def measure(scenario: Scenario, protocol: Protocol, material: Material, plan: Plan) -> Json:
    """UAR of every baseline that was asked for, pooled over folds.

    ``central`` trains the same model on everybody's clips in one place, ``local_only`` a
    model for each of a fold's first training users (the mean of their UARs), and
    ``federated_no_privacy`` averages updates without noise. All know every user's exact mean; none
    promises anything.
    """
    open_plan = replace(
        plan,
        mechanism=NoPrivacy(),
        centre=None,
        normaliser=None,
        count_noise=0.0,
        user=None,
        calibration=None,
    )
    return {
        name: {"uar": _pooled(_BASELINES[name], scenario, protocol, material, open_plan)}
        for name in scenario.baselines
    }


def federated_model(
    scenario: Scenario, fold: Fold, material: Material, plan: Plan
) -> tuple[Tensor, dict[str, Examples]]:
    """A fold's model trained as ``federated_no_privacy``, and its test users as it reads them.

    Args:
        scenario: The settled scenario.
        fold: Who trains and who tests.
        material: What all folds share.
        plan: Without any promise.

    Returns:
        Weights, shape (params,), and each test user's clips.
    """
    place = _Place(scenario, fold, material, plan)
    weights = place.rounds(place.devices, "federated").released
    return weights, {user: place._ready(user) for user in fold.test}


def _pooled(
    train: "Callable[[_Place], list[Tensor]]",
    scenario: Scenario,
    protocol: Protocol,
    material: Material,
    plan: Plan,
) -> float:
    """UAR over all folds' test clips; with several models a fold, their mean."""
    totals: dict[int, metrics.Counts] = {}
    for fold in protocol.folds:
        place = _Place(scenario, fold, material, plan)
        labels = place.test.labels.numpy()
        for number, logits in enumerate(train(place)):
            matrix = metrics.confusion(labels, logits.argmax(1).numpy(), len(plan.labels))
            totals[number] = totals.get(number, 0) + matrix
    return float(np.mean([metrics.uar(total) for total in totals.values()]))


class _Place:
    """One fold with everybody's data in one place."""

    def __init__(self, scenario: Scenario, fold: Fold, material: Material, plan: Plan) -> None:
        self.scenario, self.fold, self.material, self.plan = scenario, fold, material, plan
        self._user_mean = scenario.enrolment != "none"
        projected = [self._projected(user) for user in fold.train]
        means = torch.cat([rows for _, rows in projected]).mean(0)
        self._centre = means if scenario.recipe.centre else torch.zeros_like(means)
        self.devices = [self._ready(user) for user in fold.train]
        self.test = join([self._ready(user) for user in fold.test])

    def _projected(self, user: str) -> tuple[Examples, Tensor]:
        """A user's clips behind the front, and one row each."""
        examples = self.material.examples(self.material.clips[user])
        projected = self.material.front.project(examples.features)
        return replace(examples, features=projected), normaliser.summarise(
            projected, examples.frames
        )

    def _ready(self, user: str) -> Examples:
        """A user's clips as the model reads them."""
        examples, rows = self._projected(user)
        mean = self._centre
        if self._user_mean and self.scenario.recipe.centre:
            mean = group_means(rows, torch.zeros(len(rows), dtype=torch.int64))[0]
        front = self.material.front
        inputs = finish(examples.features, mean, examples.frames, length=front.length)
        return replace(examples, features=inputs)

    def logits(self, weights: Tensor) -> Tensor:
        """Of the test clips, shape (utterances, classes)."""
        network = build(self.plan.model, 0).eval()
        load_flat(network, weights)
        with torch.no_grad():
            scores: Tensor = network(self.test.features, self.test.frames)
        return scores

    def rounds(self, devices: Sequence[Examples], name: str) -> State:
        """The run's own rounds over these devices, without noise."""
        labels = torch.cat([device.labels for device in devices])
        counts = torch.bincount(labels, minlength=len(self.plan.labels)).double()
        weights = class_weights(counts, CLASS_EXPONENTS[self.scenario.recipe.class_weights])
        state = begin(self.material.start)
        settings = self.scenario.recipe.aggregation
        for number in range(1, self.plan.rounds + 1):
            model = build(self.plan.model, 0)
            load_flat(model, state.weights)
            updates = []
            for place, examples in enumerate(devices):
                names = ("baseline", name, self.fold.name, number, place)
                random = seeds.torch_rng(self.scenario.seed, *names)
                update = local_update(
                    model,
                    examples,
                    weights,
                    replace(self.plan.training, denominator=float(max(len(examples), 1))),
                    self.plan.mechanism,
                    SeededNoise(random),
                    random,
                )
                updates.append(update.vector)
            rate = learning_rate(settings, self.plan, number, devices=len(devices), denominator=1.0)
            mean = (total(updates) / len(updates)).float()
            state = advance(state, mean, settings, rate=rate)
        return state


def _central(place: _Place) -> list[Tensor]:
    """Everybody's clips as one device."""
    return [place.logits(place.rounds([join(place.devices)], "central").released)]


def _federated(place: _Place) -> list[Tensor]:
    """Every user a device."""
    return [place.logits(place.rounds(place.devices, "federated").released)]


def _local_only(place: _Place) -> list[Tensor]:
    """The first few training users, each alone."""
    return [
        place.logits(place.rounds([device], f"local-{number}").released)
        for number, device in enumerate(place.devices[:_LONERS])
    ]


_LONERS = 4
_BASELINES: dict[str, Callable[[_Place], list[Tensor]]] = {
    "central": _central,
    "local_only": _local_only,
    "federated_no_privacy": _federated,
}
