"""Baselines that a federated, private run is compared with, on the same folds and inputs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared.models.examples import Examples, concatenate_examples
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.protocol.local_training import NoPrivacy
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.corpora.speaker_splits import EvaluationProtocol, Fold
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.evaluation.baselines.plain_rounds import run_plain_rounds
from sottovoce.simulations.evaluation.baselines.pooled_fold import PooledFold
from sottovoce.simulations.results.schema import Rates
from sottovoce.simulations.scenario.settings import BaselineSettings


def evaluate_baselines(
    names: Sequence[str],
    settings: BaselineSettings,
    protocol: EvaluationProtocol,
    fold_inputs: FoldInputs,
    plan: Plan,
) -> dict[str, Rates]:
    """Compute the UAR of the named baselines, pooled over folds.

    ``central`` trains the same model on everybody's clips in one place, ``local_only`` a
    model for each of a fold's first training users (the mean of their UARs), and
    ``federated_no_privacy`` averages updates without noise. All know every user's exact mean;
    none has a privacy guarantee.

    Args:
        names: Of ``scenario.settings.BASELINES``.
        settings: How they are trained.
        protocol: The folds.
        fold_inputs: What all folds share.
        plan: The run's plan.
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
            "uar": _pooled(_BASELINES[name], settings, protocol, fold_inputs, plan_without_privacy)
        }
        for name in names
    }


def train_federated_model(
    settings: BaselineSettings, fold: Fold, fold_inputs: FoldInputs, plan: Plan
) -> tuple[Tensor, dict[str, Examples]]:
    """Train a fold's model as ``federated_no_privacy`` does, and prepare its test users' clips.

    Args:
        settings: How it is trained.
        fold: Who trains and who tests.
        fold_inputs: What all folds share.
        plan: A plan without privacy.

    Returns:
        Weights, shape (params,), and each test user's clips.
    """
    trained = _FoldTraining(settings, fold, fold_inputs, plan)
    weights = trained.run_rounds(trained.data.training_users, "federated")
    return weights, {user: trained.data.prepare_user(user) for user in fold.test}


def _pooled(
    train: "Callable[[_FoldTraining], list[Tensor]]",
    settings: BaselineSettings,
    protocol: EvaluationProtocol,
    fold_inputs: FoldInputs,
    plan: Plan,
) -> float:
    """UAR over all folds' test clips; with several models a fold, their mean."""
    totals: dict[int, metrics.CountArray] = {}
    for fold in protocol.folds:
        training = _FoldTraining(settings, fold, fold_inputs, plan)
        labels = training.data.test.labels.numpy()
        for number, logits in enumerate(train(training)):
            matrix = metrics.confusion_matrix(labels, logits.argmax(1).numpy(), len(plan.labels))
            # The n-th models of all folds share a matrix: pooled counts, then one ratio.
            totals[number] = totals.get(number, 0) + matrix
    return float(np.mean([metrics.uar(total) for total in totals.values()]))


class _FoldTraining:
    """Trains on one fold's clips, and predicts its test clips."""

    def __init__(
        self, settings: BaselineSettings, fold: Fold, fold_inputs: FoldInputs, plan: Plan
    ) -> None:
        self._settings, self._fold, self._plan = settings, fold, plan
        self._initial_weights = fold_inputs.initial_weights
        self.data = PooledFold(settings, fold, fold_inputs)

    def run_rounds(self, devices: Sequence[Examples], name: str) -> Tensor:
        """The weights that the rounds of a baseline end with."""
        return run_plain_rounds(
            self._settings,
            self._plan,
            self._initial_weights,
            devices,
            seed_names=(name, self._fold.name),
        )

    def predict(self, devices: Sequence[Examples], name: str) -> Tensor:
        """Logits of the test clips after training, shape (utterances, classes)."""
        network = build_network(self._plan.model, 0).eval()
        load_parameters(network, self.run_rounds(devices, name))
        with torch.no_grad():
            scores: Tensor = network(self.data.test.features, self.data.test.frames)
        return scores


def _central(training: _FoldTraining) -> list[Tensor]:
    """Everybody's clips as one device."""
    return [training.predict([concatenate_examples(training.data.training_users)], "central")]


def _federated(training: _FoldTraining) -> list[Tensor]:
    """Every user a device."""
    return [training.predict(training.data.training_users, "federated")]


def _local_only(training: _FoldTraining) -> list[Tensor]:
    """The first few training users, each alone."""
    return [
        training.predict([device], f"local-{number}")
        for number, device in enumerate(training.data.training_users[:_LOCAL_USERS])
    ]


# Training a model for every user would take longer than the run; four give the mean UAR.
_LOCAL_USERS = 4
_BASELINES: dict[str, Callable[[_FoldTraining], list[Tensor]]] = {
    "central": _central,
    "local_only": _local_only,
    "federated_no_privacy": _federated,
}
