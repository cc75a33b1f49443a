"""A plain PyTorch loop on a workload, which no engine can undercut: its lower limit in time."""

import time

import torch
from torch import Tensor
from torch.nn import functional as F

from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import flatten_parameters, load_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.simulations.benchmarks.workloads import CLIP_NORM, SEED, Workload, draw_clips


def run_plain_loop(work: Workload) -> list[float]:
    """Run the same training without any engine; returns CPU milliseconds per client and round.

    Local steps, a bound on each update, noise on the sum, and nothing else.
    """
    model, examples = (
        build_network(work.spec, 0),
        [draw_clips(work, user) for user in range(work.users)],
    )
    weights, rng, times = flatten_parameters(model), torch.Generator().manual_seed(SEED), []
    for _ in range(work.rounds):
        cohort = torch.nonzero(
            torch.rand(work.users, generator=rng) < work.user_sampling_rate
        ).flatten()
        started = time.process_time()
        total = torch.zeros_like(weights, dtype=torch.float64)
        for user in cohort.tolist():
            update = _trained(model, weights, examples[user], work.steps)
            total += update * min(1.0, CLIP_NORM / float(torch.linalg.vector_norm(update)))
        # The noise multiplier is 1, as in the engine's plan.
        total += CLIP_NORM * torch.randn(len(total), generator=rng, dtype=torch.float64)
        weights = weights + (total / (work.users * work.user_sampling_rate)).float()
        times.append(1e3 * (time.process_time() - started) / max(len(cohort), 1))
    # The first round is left out, as for engines: it pays for allocations.
    return times[1:]


def _trained(model: torch.nn.Module, weights: Tensor, examples: Examples, steps: int) -> Tensor:
    """One client's update."""
    load_parameters(model, weights)
    descent = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        descent.zero_grad()
        F.cross_entropy(model(examples.features, examples.frames), examples.labels).backward()  # type: ignore[no-untyped-call]
        descent.step()
    return flatten_parameters(model) - weights
