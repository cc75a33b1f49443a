"""Baselines that a federated, private run is compared with, on the same folds and inputs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sottovoce.client.training.local_trainer import TrainingSettings, compute_local_update
from sottovoce.server.aggregation.private_sums import sum_parts
from sottovoce.server.aggregation.server_optimizer import (
    ServerState,
    apply_update,
    compute_class_weights,
    compute_learning_rate,
    initial_state,
)
from sottovoce.server.planning.public_pretraining import group_means
from sottovoce.server.planning.recipe import CLASS_EXPONENTS
from sottovoce.shared import seeding
from sottovoce.shared.models.examples import Examples, concatenate_examples
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler
from sottovoce.shared.protocol.local_training import NoPrivacy
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker import normalisation
from sottovoce.simulations.corpora.speaker_splits import EvaluationProtocol, Fold
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.results.schema import Rates
from sottovoce.simulations.scenario.scenario import Scenario


def evaluate_baselines(
    scenario: Scenario, protocol: EvaluationProtocol, fold_inputs: FoldInputs, plan: Plan
) -> dict[str, Rates]:
    """Compute the UAR of every baseline that the scenario asks for, pooled over folds.

    ``central`` trains the same model on everybody's clips in one place, ``local_only`` a
    model for each of a fold's first training users (the mean of their UARs), and
    ``federated_no_privacy`` averages updates without noise. All know every user's exact mean;
    none has a privacy guarantee.
    """
    # The baselines use exact means and class counts, so nothing of a private mechanism is left in
    # the plan.
    plan_without_privacy = replace(
        plan,
        mechanism=NoPrivacy(),
        centre=None,
        normaliser=None,
        count_noise=0.0,
        user=None,
        calibration=None,
    )
    return {
        name: {
            "uar": _pooled(_BASELINES[name], scenario, protocol, fold_inputs, plan_without_privacy)
        }
        for name in scenario.baselines
    }


def train_federated_model(
    scenario: Scenario, fold: Fold, fold_inputs: FoldInputs, plan: Plan
) -> tuple[Tensor, dict[str, Examples]]:
    """Train a fold's model as ``federated_no_privacy`` does, and prepare its test users' clips.

    Args:
        scenario: The settled scenario.
        fold: Who trains and who tests.
        fold_inputs: What all folds share.
        plan: A plan without privacy.

    Returns:
        Weights, shape (params,), and each test user's clips.
    """
    fold_data = _CentralisedFold(scenario, fold, fold_inputs, plan)
    weights = fold_data.run_rounds(fold_data.training_users, "federated").released_weights
    return weights, {user: fold_data._model_inputs(user) for user in fold.test}


def _pooled(
    train: "Callable[[_CentralisedFold], list[Tensor]]",
    scenario: Scenario,
    protocol: EvaluationProtocol,
    fold_inputs: FoldInputs,
    plan: Plan,
) -> float:
    """UAR over all folds' test clips; with several models a fold, their mean."""
    totals: dict[int, metrics.CountArray] = {}
    for fold in protocol.folds:
        fold_data = _CentralisedFold(scenario, fold, fold_inputs, plan)
        labels = fold_data.test.labels.numpy()
        for number, logits in enumerate(train(fold_data)):
            matrix = metrics.confusion_matrix(labels, logits.argmax(1).numpy(), len(plan.labels))
            # The n-th models of all folds share a matrix: pooled counts, then one ratio.
            totals[number] = totals.get(number, 0) + matrix
    return float(np.mean([metrics.uar(total) for total in totals.values()]))


class _CentralisedFold:
    """One fold with everybody's data in one place."""

    def __init__(self, scenario: Scenario, fold: Fold, fold_inputs: FoldInputs, plan: Plan) -> None:
        self.scenario, self.fold, self.inputs, self.plan = scenario, fold, fold_inputs, plan
        self._user_mean = scenario.enrolment != "none"
        projected = [self._project_user(user) for user in fold.train]
        means = torch.cat([rows for _, rows in projected]).mean(0)
        # A recipe without centring feeds raw projections: a zero mean leaves them as they are.
        self._centre = means if scenario.recipe.centre else torch.zeros_like(means)
        self.training_users = [self._model_inputs(user) for user in fold.train]
        self.test = concatenate_examples([self._model_inputs(user) for user in fold.test])

    def _project_user(self, user: str) -> tuple[Examples, Tensor]:
        """A user's clips after the projection, and one row each."""
        examples = self.inputs.build_examples(self.inputs.clips[user])
        projected = self.inputs.projection.project_features(examples.features)
        return replace(examples, features=projected), normalisation.average_frames(
            projected, examples.frames
        )

    def _model_inputs(self, user: str) -> Examples:
        """A user's clips as the model reads them."""
        examples, rows = self._project_user(user)
        mean = self._centre
        if self._user_mean and self.scenario.recipe.centre:
            # One group: all rows of the user are averaged without noise.
            mean = group_means(rows, torch.zeros(len(rows), dtype=torch.int64))[0]
        inputs = self.inputs.projection.normalise_rows(examples.features, mean, examples.frames)
        return replace(examples, features=inputs)

    def predict_logits(self, weights: Tensor) -> Tensor:
        """Of the test clips, shape (utterances, classes)."""
        network = build_network(self.plan.model, 0).eval()
        load_parameters(network, weights)
        with torch.no_grad():
            scores: Tensor = network(self.test.features, self.test.frames)
        return scores

    def run_rounds(self, devices: Sequence[Examples], name: str) -> ServerState:
        """The run's own rounds over these devices, without noise."""
        labels = torch.cat([device.labels for device in devices])
        counts = torch.bincount(labels, minlength=len(self.plan.labels)).double()
        weights = compute_class_weights(counts, CLASS_EXPONENTS[self.scenario.recipe.class_weights])
        state = initial_state(self.inputs.initial_weights)
        settings = self.scenario.recipe.aggregation
        for number in range(1, self.plan.rounds + 1):
            model = build_network(self.plan.model, 0)
            load_parameters(model, state.weights)
            updates = []
            for index, examples in enumerate(devices):
                # Seed names end in round and device, so a device's batches do not depend on the
                # others.
                names = ("baseline", name, self.fold.name, number, index)
                random = seeding.torch_rng(self.scenario.seed, *names)
                training = TrainingSettings(
                    local_training=replace(
                        # A private plan divides by a public constant; a baseline may use its true
                        # number of clips.
                        self.plan.training,
                        denominator=float(max(len(examples), 1)),
                    ),
                    mechanism=self.plan.mechanism,
                    class_weights=weights,
                )
                update = compute_local_update(
                    model, examples, training, SeededGaussianSampler(random), random
                )
                updates.append(update.vector)
            rate = compute_learning_rate(
                settings, self.plan, number, devices=len(devices), denominator=1.0
            )
            # Summed in the server's order and precision, so that a baseline's rounding is the
            # run's.
            mean = (sum_parts(updates) / len(updates)).float()
            state = apply_update(state, mean, settings, rate=rate)
        return state


def _central(fold_data: _CentralisedFold) -> list[Tensor]:
    """Everybody's clips as one device."""
    return [
        fold_data.predict_logits(
            fold_data.run_rounds(
                [concatenate_examples(fold_data.training_users)], "central"
            ).released_weights
        )
    ]


def _federated(fold_data: _CentralisedFold) -> list[Tensor]:
    """Every user a device."""
    return [
        fold_data.predict_logits(
            fold_data.run_rounds(fold_data.training_users, "federated").released_weights
        )
    ]


def _local_only(fold_data: _CentralisedFold) -> list[Tensor]:
    """The first few training users, each alone."""
    return [
        fold_data.predict_logits(fold_data.run_rounds([device], f"local-{number}").released_weights)
        for number, device in enumerate(fold_data.training_users[:_LOCAL_USERS])
    ]


# Training a model for every user would take longer than the run; four give the mean UAR.
_LOCAL_USERS = 4
_BASELINES: dict[str, Callable[[_CentralisedFold], list[Tensor]]] = {
    "central": _central,
    "local_only": _local_only,
    "federated_no_privacy": _federated,
}
