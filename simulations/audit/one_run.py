"""Privacy auditing with one run and many canaries on many devices.

Each canary is included with probability 1/2, on devices that hold nothing else. The server sends a
model that bets against all of them, sees every round, and sums what it sees, each round weighted by
the noise it was measured to have. All inclusions of a device are estimated at once, by the linear
estimate of least mean squared error. The same scores give three bounds; see ``bounds.one_run`` and
``bounds.summed_scores``.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sottovoce.shared import seeding
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.examples import Examples
from sottovoce.simulations.audit.bounds import one_run, summed_scores
from sottovoce.simulations.audit.bounds.gaussian import Floats, gaussian_epsilon
from sottovoce.simulations.audit.bounds.one_run import Guesses
from sottovoce.simulations.audit.bounds.summed_scores import SummedScoresBound
from sottovoce.simulations.audit.device_under_test import (
    Observation,
    Transcript,
    nearly_noiseless,
    run_trial,
)
from sottovoce.simulations.audit.orthogonal_canaries import design_canaries

OnProgress = Callable[[str, int, int], None]

_FEWEST_CANARIES = 8
_FEWEST_DIMENSIONS = 8
"""Fewest dimensions without any canary in them from which a round's noise is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneRunBound:
    """A lower bound on epsilon from guesses about one run.

    Attributes:
        epsilon: Lower bound without any assumption on the mechanism.
        ceiling: The largest that so many canaries could have shown, were all guesses right.
        canaries: Number of canaries.
        devices: On how many devices.
        guesses: Number of guesses.
        correct: Number of right guesses.
    """

    epsilon: float
    ceiling: float
    canaries: int
    devices: int
    guesses: int
    correct: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OneRunAudit:
    """Bounds that one run with many canaries gives.

    Attributes:
        by_epsilon_delta: By (epsilon, delta)-DP (Steinke et al. 2023).
        by_trade_off: By the trade-off function of (epsilon, delta)-DP (Mahloujifar et al. 2024).
        mu_by_trade_off: By that of a Gaussian mechanism: its mu.
        epsilon_by_trade_off: The epsilon of that mu.
        by_scores: From the scores themselves, if the mechanism is a Gaussian one.
    """

    by_epsilon_delta: OneRunBound
    by_trade_off: OneRunBound
    mu_by_trade_off: float
    epsilon_by_trade_off: float
    by_scores: SummedScoresBound

    def to_records(self) -> dict[str, dict[str, float]]:
        """JSON's view, by attack."""
        return {
            "one_run": asdict(self.by_epsilon_delta),
            "one_run_f_dp": {
                **asdict(self.by_trade_off),
                "epsilon_gaussian": self.epsilon_by_trade_off,
                "mu": self.mu_by_trade_off,
            },
            "summed_scores": asdict(self.by_scores),
        }


def audit_one_run(
    transcript: Transcript,
    *,
    canaries: int,
    devices: int,
    seed: int,
    delta: float,
    confidence: float,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> OneRunAudit:
    """Audit the updates of devices full of canaries in one run.

    Args:
        transcript: The server's requests; it sends a model of its own in every round.
        canaries: Most canaries of one device.
        devices: How many devices hold canaries.
        seed: Decides which canaries are in, canaries and noise.
        delta: Delta of the promise.
        confidence: Confidence of each bound.
        on_progress: Takes (what, done, total).

    Raises:
        SettingError: Too few canaries to guess any.
    """
    scores, included = collect_scores(
        transcript, canaries=canaries, devices=devices, seed=seed, on_progress=on_progress
    )
    return bound_epsilon(scores, included, devices=devices, delta=delta, confidence=confidence)


def bound_epsilon(
    scores: Floats,
    included: NDArray[np.bool_],
    *,
    devices: int,
    delta: float,
    confidence: float,
) -> OneRunAudit:
    """Compute every bound from the scores of one run's canaries.

    Args:
        scores: Of all devices, above 0 where a canary seems to be in, shape (canaries,).
        included: Which were in, shape (canaries,).
        devices: How many devices held them.
        delta: Delta of the promise.
        confidence: Of each bound.
    """
    numbers = one_run.guess_counts(len(scores))
    tried = one_run.count_guesses(scores, included, numbers)
    perfect = [replace(guesses, correct=guesses.guesses) for guesses in tried]

    def bound(find: Callable[[Guesses, float], float]) -> OneRunBound:
        epsilon, guesses = one_run.find_best(tried, find, confidence=confidence)
        ceiling, _ = one_run.find_best(perfect, find, confidence=confidence)
        return OneRunBound(epsilon=epsilon, ceiling=ceiling, devices=devices, **asdict(guesses))

    mu, _ = one_run.find_best(
        tried, lambda guesses, alpha: one_run.bound_mu(guesses, alpha=alpha), confidence=confidence
    )
    return OneRunAudit(
        by_epsilon_delta=bound(partial(_by_epsilon_delta, delta)),
        by_trade_off=bound(partial(_by_trade_off, delta)),
        mu_by_trade_off=mu,
        epsilon_by_trade_off=gaussian_epsilon(mu, delta),
        by_scores=summed_scores.bound_from_scores(
            scores, included, delta=delta, confidence=confidence
        ),
    )


def _by_epsilon_delta(delta: float, guesses: Guesses, alpha: float) -> float:
    return one_run.bound_by_epsilon_delta(guesses, delta=delta, alpha=alpha)


def _by_trade_off(delta: float, guesses: Guesses, alpha: float) -> float:
    return one_run.bound_by_trade_off(guesses, delta=delta, alpha=alpha)


def collect_scores(
    transcript: Transcript,
    *,
    canaries: int,
    devices: int,
    seed: int,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Run devices with canaries, and score each canary from what its device sent.

    Args:
        transcript: The server's requests.
        canaries: Most canaries of one device.
        devices: How many devices hold canaries.
        seed: Decides which canaries are in, canaries and noise.
        on_progress: Takes (what, done, total).

    Returns:
        Scores and what was in, each shape (canaries of all devices,).

    Raises:
        SettingError: Too few canaries to guess any.
    """
    transcript, placed = design_canaries(without_normaliser(transcript), canaries, seed)
    if len(placed) * devices < _FEWEST_CANARIES:
        raise SettingError(
            f"canaries is {len(placed)} on {devices} devices; one run needs at least "
            f"{_FEWEST_CANARIES} to tell anything"
        )
    contributions = measure_contributions(transcript, placed)
    # The purpose's name is part of the seed: renaming it would draw other canaries.
    coins = seeding.torch_rng(seed, "audit", "coins")
    scores, included = [], []
    for number in range(devices):
        inside = torch.rand(len(placed), generator=coins) < 0.5
        own = seeding.derive_seed(seed, "audit", "one run", number)
        seen = run_trial(transcript, placed.select(inside), own)
        scores.append(score_inclusion(contributions, round_sums(transcript, seen)))
        included.append(inside)
        on_progress("devices with many canaries", number + 1, devices)
    return torch.cat(scores).numpy(), torch.cat(included).numpy()


def measure_contributions(transcript: Transcript, candidates: Examples) -> Tensor:
    """Measure what each candidate adds to a round's sum: trials that the attacker runs itself.

    Returns:
        Shape (utterances, params), float64.
    """
    quiet = nearly_noiseless(transcript.with_constant_model(1))
    singles = (candidates.select(torch.tensor([index])) for index in range(len(candidates)))
    return torch.stack([sum_updates(transcript, run_trial(quiet, one, 0)) for one in singles])


def score_inclusion(contributions: Tensor, sums: Tensor) -> Tensor:
    """Score how far each contribution is in the sums of all rounds, shape (utterances,), float64.

    The noise of each round is measured where no contribution reaches, and rounds are weighted by
    its inverse variance: a round with less noise than others counts for more, one without any for
    all. What is measured there says nothing of who is in, so guesses stay functions of what the
    device sent alone.

    Args:
        contributions: What each utterance adds to every round, shape (utterances, params), float64.
        sums: What was seen, shape (rounds, params), float64.

    Example:
        >>> each = torch.eye(12, dtype=torch.float64)[:2]
        >>> sums = each[:1].repeat(3, 1)
        >>> score_inclusion(each, sums).round(decimals=3)
        tensor([ 0.5000, -0.5000], dtype=torch.float64)
    """
    variances = _measure_noise(contributions, sums)
    precisions = 1 / variances
    total = (precisions[:, None] * sums).sum(0) / precisions.sum()
    noise_std = float(precisions.sum().rsqrt())
    return decode_inclusion(contributions, total, noise_std=noise_std)


def _measure_noise(contributions: Tensor, sums: Tensor) -> Tensor:
    """Variance of the noise in one number of each round, shape (rounds,), above 0."""
    utterances, params = contributions.shape
    # Without noise something must be left to divide by.
    least = 1e-12 * float(contributions.square().sum(1).mean()) / params + 1e-300
    if params - utterances < _FEWEST_DIMENSIONS:
        # Nowhere to measure it: all rounds count alike.
        residual = sums - sums.mean(0)
        spread = residual.square().mean() if len(sums) > 1 else sums.new_zeros(())
        return torch.full((len(sums),), max(float(spread), least), dtype=sums.dtype)
    basis = torch.linalg.qr(contributions.T).Q
    outside = sums.square().sum(1) - (sums @ basis).square().sum(1)
    variances: Tensor = (outside / (params - utterances)).clamp(min=least)
    return variances


def round_sums(transcript: Transcript, observation: Observation) -> Tensor:
    """Compute each round's update as a sum over utterances, shape (rounds, params), float64.

    Without noise a device sends the mean gradient, and exact label counts that undo it.
    """
    updates = observation.updates.double()
    if transcript.plan.scheme.has_private_messages:
        return updates
    return updates * float(observation.enrolment[: len(transcript.plan.labels)].double().sum())


def without_normaliser(transcript: Transcript) -> Transcript:
    """Copy the transcript without a normaliser where nothing is noised.

    The plan is the server's to choose.

    Canaries lie far out and would move an exact mean, which would blur their signal.
    """
    if transcript.plan.scheme.has_private_messages:
        return transcript
    return replace(transcript, plan=replace(transcript.plan, normaliser=None))


def sum_updates(transcript: Transcript, observation: Observation) -> Tensor:
    """Compute the mean update as a sum over utterances, shape (params,), float64."""
    return round_sums(transcript, observation).mean(0)


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
