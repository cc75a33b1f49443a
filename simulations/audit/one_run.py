"""Privacy auditing with one training run and many canaries (Steinke et al. 2023).

Each canary is included with probability 1/2. All are decoded at once, by the linear estimate of
least mean squared error from the mean update, and the surest are guessed.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared import seeding
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.examples import Examples, concatenate_examples
from sottovoce.simulations.audit import epsilon_bounds
from sottovoce.simulations.audit.canary import CANARY_NORM, examples_from_rows
from sottovoce.simulations.audit.device_under_test import (
    Observation,
    Transcript,
    nearly_noiseless,
    run_trial,
)

_LABELS = 4
"""Canaries along one direction, distinguished by their labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneRunBound:
    """A lower bound on epsilon from one trial.

    Attributes:
        epsilon: Lower bound, at the confidence that was asked for.
        canaries: Number of canaries.
        guesses: Number of guesses.
        correct: Number of right guesses.
    """

    epsilon: float
    canaries: int
    guesses: int
    correct: int


def audit_one_run(
    transcript: Transcript,
    others: Examples,
    *,
    canaries: int,
    seed: int,
    delta: float,
    confidence: float,
) -> OneRunBound:
    """Audit a device's updates by a single trial.

    Args:
        transcript: The server's requests; its first model is sent in every round.
        others: The device's own utterances as raw features, which the attacker knows.
        canaries: Most canaries to place, at least 8.
        seed: Decides which canaries are in, canaries and noise.
        delta: Delta of the promise.
        confidence: Confidence of the bound.

    Raises:
        SettingError: Too few canaries to guess any.
    """
    placed = _canaries(transcript, canaries, seed)
    if len(placed) < 8:
        raise SettingError(f"canaries is {len(placed)}; one run needs at least 8 to tell anything")
    transcript = without_normaliser(transcript.with_constant_model())
    # The purpose's name is part of the seed: renaming it would draw other canaries.
    rng = seeding.torch_rng(seed, "audit", "coins")
    included = torch.rand(len(placed), generator=rng) < 0.5
    seen = run_trial(
        transcript,
        concatenate_examples([others, placed.select(included)]),
        seeding.derive_seed(seed, "audit", "one run"),
    )
    guess = estimate_inclusion(transcript, others, placed, seen)
    # Few sure guesses or many unsure ones: which is better depends on the noise.
    sizes = sorted({max(4, len(placed) // part) for part in (16, 4, 1)})
    epsilon, guesses, correct = epsilon_bounds.best_one_run_bound(
        guess.numpy(), included.numpy(), sizes, delta=delta, confidence=confidence
    )
    return OneRunBound(epsilon=epsilon, canaries=len(placed), guesses=guesses, correct=correct)


def estimate_inclusion(
    transcript: Transcript, others: Examples, candidates: Examples, observation: Observation
) -> Tensor:
    """Estimate how far each candidate is included, shape (utterances,), float64.

    Args:
        transcript: The server's requests, the same model in every round.
        others: Utterances known to be on the device.
        candidates: Utterances that may be on it.
        observation: The device's messages.
    """
    quiet = nearly_noiseless(transcript.with_constant_model(1))
    known = run_trial(quiet, others, 0)
    singles = (candidates.select(torch.tensor([index])) for index in range(len(candidates)))
    each = [sum_updates(transcript, run_trial(quiet, one, 0)) for one in singles]
    total = sum_updates(transcript, observation) - sum_updates(transcript, known)
    return decode_inclusion(torch.stack(each), total, noise_std=update_noise_std(transcript))


def without_normaliser(transcript: Transcript) -> Transcript:
    """Copy the transcript without a normaliser where nothing is noised.

    The plan is the server's to choose.

    Canaries lie far out and would move an exact mean, which would blur their signal.
    """
    if transcript.plan.scheme.has_private_messages:
        return transcript
    return replace(transcript, plan=replace(transcript.plan, normaliser=None))


def sum_updates(transcript: Transcript, observation: Observation) -> Tensor:
    """Compute the mean update as a sum over utterances, shape (params,), float64.

    Without noise a device sends the mean gradient, and exact label counts that undo it.
    """
    mean = observation.updates.double().mean(0)
    if transcript.plan.scheme.has_private_messages:
        return mean
    return mean * float(observation.enrolment[: len(transcript.plan.labels)].double().sum())


def decode_inclusion(contributions: Tensor, total: Tensor, *, noise_std: float) -> Tensor:
    """Estimate from a sum which contributions are in it, by least mean squared error.

    Args:
        contributions: Each utterance's contribution, shape (utterances, params), float64.
        total: The noised sum, shape (params,), float64.
        noise_std: Standard deviation of the noise in every number.

    Returns:
        Estimated inclusions between about -1/2 and 1/2, shape (utterances,), float64.

    Example:
        >>> each = torch.eye(2, dtype=torch.float64)
        >>> total = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> decode_inclusion(each, total, noise_std=0.0).round(decimals=3)
        tensor([ 0.5000, -0.5000], dtype=torch.float64)
    """
    gram = contributions @ contributions.T
    # A Bernoulli(1/2) variable has variance 1/4; a little noise keeps the system solvable.
    ridge = max(4 * noise_std**2, 1e-9 * float(gram.diagonal().mean()))
    residual = total - contributions.sum(0) / 2
    inclusion: Tensor = torch.linalg.solve(
        gram + ridge * torch.eye(len(contributions), dtype=gram.dtype), contributions @ residual
    )
    return inclusion


def update_noise_std(transcript: Transcript) -> float:
    """Compute the standard deviation of the noise in one weight of the mean update."""
    mechanism, training = transcript.plan.mechanism, transcript.plan.training
    if not mechanism.noise_multiplier:
        return 0.0
    step = training.learning_rate * mechanism.noise_multiplier * mechanism.clip_norm
    # Independent noise in every step; the mean over rounds divides its variance.
    return float(step / transcript.denominator * np.sqrt(training.steps / len(transcript.weights)))


def _canaries(transcript: Transcript, max_canaries: int, seed: int) -> Examples:
    """Canaries along perpendicular directions, each with several labels."""
    inputs, classes = transcript.projection.output_size, len(transcript.plan.labels)
    labels = min(_LABELS, classes - 1)  # all classes together would be linearly dependent
    directions = min(inputs, max_canaries // labels)
    draws = torch.randn(
        inputs,
        directions,
        generator=seeding.torch_rng(seed, "audit", "canaries"),
        dtype=torch.float64,
    )
    # Orthonormal directions: canaries of different directions do not disturb each other.
    rows = torch.linalg.qr(draws).Q.T.float().repeat_interleave(labels, dim=0)
    classes_of = [number % labels for number in range(len(rows))]
    return examples_from_rows(
        transcript.projection, transcript.centre + CANARY_NORM * rows, classes_of
    )
