"""Benchmark on pfl's own simulated backend; runs where pfl is, and Sottovoce is not.

Takes the work as JSON in its one argument; prints CPU milliseconds a client of every round but the
first. A cohort is the expected number of users, drawn by pfl; there is no privacy mechanism.
"""

import json
import sys
import time
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from torch.nn import functional as F


class Network(torch.nn.Sequential):
    """The small head with the methods that pfl needs."""

    def loss(self, rows: Tensor, labels: Tensor, eval: bool = False) -> Tensor:  # noqa: A002, ARG002, FBT
        """Compute the mean cross-entropy of a batch."""
        return F.cross_entropy(self(rows), labels)

    def metrics(self, rows: Tensor, labels: Tensor, eval: bool = False) -> dict[str, Any]:  # noqa: A002
        """Compute metrics; asked for in the first round only, which is not counted."""
        return {"loss": Weighted.from_unweighted(float(self.loss(rows, labels, eval)))}


class RoundTimer(TrainingProcessCallback):  # type: ignore[misc]
    """Callback that records when rounds end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:  # noqa: ANN401
        """Record the time, and never stop the training."""
        self.ends.append(time.process_time())
        return False, Metrics()


def run_workload(work: dict[str, int]) -> list[float]:
    """Train a model; returns CPU milliseconds per client, of every round but the first."""
    torch.set_num_threads(1)
    torch.manual_seed(work["seed"])
    inputs, hidden, classes = work["inputs"], work["hidden"], work["classes"]
    network = Network(
        torch.nn.Linear(inputs, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, classes)
    )
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    data = {
        user: Dataset(
            (
                torch.randn(work["clips"], inputs),
                torch.randint(classes, (work["clips"],)),
            ),
            user_id=str(user),
        )
        for user in range(work["users"])
    }
    users = FederatedDataset(data.__getitem__, get_user_sampler("random", list(data)))
    clock = RoundTimer()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work["rounds"],
            evaluation_frequency=work["rounds"],
            train_cohort_size=work["cohort"],
            val_cohort_size=None,
        ),
        SimulatedBackend(users, users, [WeightByUser()]),
        model,
        NNTrainHyperParams(
            local_batch_size=None, local_num_epochs=work["steps"], local_learning_rate=0.1
        ),
        NNEvalHyperParams(local_batch_size=None),
        [clock],
        send_metrics_to_platform=False,  # it would print them
    )
    return [
        1e3 * (after - before) / work["cohort"]
        for before, after in zip(clock.ends, clock.ends[1:], strict=False)
    ]


if __name__ == "__main__":
    json.dump(run_workload(json.loads(sys.argv[1])), sys.stdout)
