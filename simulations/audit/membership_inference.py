"""Membership inference by likelihood ratios: of utterances on devices, of users in training.

LiRA (Carlini et al. 2022): the attacker runs many trials itself, with and without each target, fits
a normal distribution to what it sees either way, and scores what it attacks by their ratio. Its
shadow trials have the same noise as what it attacks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sottovoce.server.aggregation.server_optimizer import (
    AggregationSettings,
    apply_update,
    compute_learning_rate,
    initial_state,
)
from sottovoce.shared import seeding
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.losses import cross_entropy
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.simulations.audit.adversary_view import (
    UpdateNoise,
    enrolment_sum_noise,
    update_sum_noise,
)
from sottovoce.simulations.audit.bounds.gaussian import Floats
from sottovoce.simulations.audit.device_under_test import (
    DeviceUnderTest,
    Transcript,
    nearly_noiseless,
    run_trial,
    trains_in_round,
)
from sottovoce.simulations.audit.one_run import (
    decode_inclusion,
    sum_updates,
    update_noise_std,
    without_normaliser,
)

MembershipMask = NDArray[np.bool_]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class MembershipMetrics:
    """How well an attack distinguishes members from others.

    Attributes:
        auc: Chance that a member scores above a non-member, ½ for a blind attacker.
        tpr: Share of members found at a false-positive rate of 1 %.
        guesses: Number of targets scored.
    """

    auc: float
    tpr: float
    guesses: int


def score_attack(scores: Floats, is_member: MembershipMask) -> MembershipMetrics:
    """Compute AUC and true-positive rate of an attack.

    Args:
        scores: Higher for members, any shape.
        is_member: Membership, the same shape.

    Example:
        >>> scores, members = np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])
        >>> score_attack(scores, members)
        MembershipMetrics(auc=1.0, tpr=1.0, guesses=4)
    """
    flat, truth = scores.ravel(), is_member.ravel()
    members, others = np.sort(flat[truth]), np.sort(flat[~truth])
    # Mean of both sides: a tie counts half, as in the Mann-Whitney statistic.
    below = np.searchsorted(others, members, "left") + np.searchsorted(others, members, "right")
    auc = float(below.mean()) / 2 / max(len(others), 1) if len(members) else 0.5
    cut = others[-max(1, int(0.01 * len(others)))] if len(others) else 0.0
    return MembershipMetrics(auc=auc, tpr=float((members > cut).mean()), guesses=len(flat))


def log_likelihood_ratio(
    shadow_statistics: Floats, is_member: MembershipMask, statistics: Floats
) -> Floats:
    """Compute the log-likelihood ratio of membership.

    Args:
        shadow_statistics: The attacker's own statistics, shape (shadows, targets).
        is_member: Which targets were in, shape (shadows, targets); each in and out at least once.
        statistics: Statistics to score, shape (trials, targets).

    Returns:
        Shape (trials, targets). Means are per target, with one variance for all: shadows are few.

    Example:
        >>> shadows, inside = np.array([[1.0], [0.0]]), np.array([[True], [False]])
        >>> ratio = log_likelihood_ratio(shadows, inside, np.array([[1.0], [0.0]]))
        >>> bool(ratio[0, 0] > 0 > ratio[1, 0])
        True
    """
    means = [_mean(shadow_statistics, chosen) for chosen in (is_member, ~is_member)]
    left = np.where(is_member, shadow_statistics - means[0], shadow_statistics - means[1])
    # The floor keeps statistics without any noise from dividing by zero.
    std = max(float(left.std()), 1e-9 * (float(np.abs(shadow_statistics).max()) + 1e-300))
    distances = [np.square((statistics - mean) / std) for mean in means]
    result: Floats = (distances[1] - distances[0]) / 2
    return result


def _mean(statistics: Floats, chosen: MembershipMask) -> Floats:
    """Mean over the chosen trials, for every target; the overall mean where none was chosen."""
    number = chosen.sum(0)
    usual = statistics.mean(0)
    found: Floats = np.where(
        number > 0, (statistics * chosen).sum(0) / np.maximum(number, 1), usual
    )
    return found


def draw_membership(trials: int, targets: int, seed: int, *names: str) -> MembershipMask:
    """Draw with probability 1/2 each who is in which trial, shape (trials, targets).

    Example:
        >>> draw_membership(2, 3, 0, "users").shape
        (2, 3)
    """
    draws = seeding.numpy_rng(seed, "audit", "members", *names)
    chosen: MembershipMask = draws.random((trials, targets)) < 0.5
    return chosen


def attack_utterances(
    transcript: Transcript,
    devices: Sequence[Examples],
    *,
    shadows: int,
    trials: int,
    seed: int,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> MembershipMetrics:
    """Attack membership of utterances on a device, from all its updates.

    Args:
        transcript: The server's requests; its first model is sent in every round.
        devices: Utterances that may be on each device, as raw features.
        shadows: Trials that the attacker runs itself.
        trials: Trials that it scores.
        seed: Decides membership, and all noise.
        on_progress: Takes (what, done, total).
    """
    # The same model in every round: all updates then estimate one and the same sum.
    transcript = without_normaliser(transcript.with_constant_model())
    scores, truth = [], []
    for index, examples in enumerate(devices):
        inside = draw_membership(shadows + trials, len(examples), seed, "utterances", str(index))
        read = _reader(transcript, examples)
        found = []
        for number, chosen in enumerate(inside):
            own = seeding.derive_seed(seed, "audit", "member life", index, number)
            found.append(read(examples.select(torch.from_numpy(chosen)), own))
            done = index * len(inside) + number + 1
            on_progress("trials of the members' devices", done, len(devices) * len(inside))
        seen = np.stack(found)
        scores.append(
            log_likelihood_ratio(seen[:shadows], inside[:shadows], seen[shadows:]).ravel()
        )
        truth.append(inside[shadows:].ravel())
    return score_attack(np.concatenate(scores), np.concatenate(truth))


def _reader(transcript: Transcript, examples: Examples) -> Callable[[Examples, int], Floats]:
    """Make a function that runs a trial and scores each utterance, shape (utterances,)."""
    quiet = nearly_noiseless(transcript.with_constant_model(1))
    whole = sum_updates(transcript, run_trial(quiet, examples, 0))
    everyone = torch.arange(len(examples))
    each = torch.stack(
        [
            whole - sum_updates(transcript, run_trial(quiet, examples.select(everyone != left), 0))
            for left in range(len(examples))
        ]
    )
    # Beyond what single utterances explain, as the class weights: it is in every trial.
    rest = whole - each.sum(0)

    def read(examples: Examples, seed: int) -> Floats:
        total = sum_updates(transcript, run_trial(transcript, examples, seed)) - rest
        found: Floats = decode_inclusion(
            each, total, noise_std=update_noise_std(transcript)
        ).numpy()
        return found

    return read


def attack_users(
    transcript: Transcript,
    people: Sequence[Examples],
    aggregation: AggregationSettings,
    *,
    shadows: int,
    trials: int,
    seed: int,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> MembershipMetrics:
    """Attack membership of users in training, from the released model alone.

    Args:
        transcript: The server's requests; only the initial model counts, later ones follow.
        people: Utterances of each user who may take part, as raw features.
        aggregation: How the server updates the model.
        shadows: Trainings that the attacker does itself.
        trials: Trainings that it scores.
        seed: Decides membership, and all noise.
        on_progress: Takes (what, done, total).
    """
    inside = draw_membership(shadows + trials, len(people), seed, "users")
    found = []
    for number, chosen in enumerate(inside):
        own = seeding.derive_seed(seed, "audit", "federation", number)
        # Training needs somebody: an empty draw trains on the first user.
        here = [one for one, is_in in zip(people, chosen, strict=True) if is_in] or [people[0]]
        model = train_model(transcript, here, aggregation, own)
        found.append([_fit(transcript, model, one) for one in people])
        on_progress("trainings with half of the users", number + 1, len(inside))
    seen = np.array(found)
    return score_attack(
        log_likelihood_ratio(seen[:shadows], inside[:shadows], seen[shadows:]), inside[shadows:]
    )


def train_model(
    transcript: Transcript, people: Sequence[Examples], aggregation: AggregationSettings, seed: int
) -> Tensor:
    """Train a model with these users, as the server does, shape (params,)."""
    labels = transcript.plan.labels
    devices = [
        DeviceUnderTest(one, labels, seeding.derive_seed(seed, "user", index))
        for index, one in enumerate(people)
    ]
    transcript = replace(transcript, devices=len(devices))
    # The server's noise, from a stream of its own.
    draws = SeededGaussianSampler(seeding.torch_rng(seed, "sums"))
    enrolled = torch.stack([device.enrol(transcript) for device in devices]).double().sum(0)
    parts = zip(
        (enrolled[: len(labels)], enrolled[len(labels) :]),
        _enrolment_server_noise(transcript),
        strict=True,
    )
    counts, rows = (part + draws.sample_noise(tuple(part.shape), noise) for part, noise in parts)
    usual = max(float(counts.sum()) / len(devices), 1.0)
    each = transcript.plan.scheme.rows_per_device or usual  # a user's mean row, or all rows
    centre = (rows / (each * len(devices))).float()
    # A recipe without centring still enrols; its centre is zero.
    if transcript.plan.centre is None:
        centre = torch.zeros_like(transcript.centre)
    transcript = replace(transcript, centre=centre, denominator=usual)
    state = initial_state(transcript.weights[0])
    noise = UpdateNoise(transcript.plan, draws)
    # In rounds of groups a sum is divided by the size of a group, which does not change.
    cohort: float = transcript.plan.participation.match_noise(
        independent=lambda: len(devices),
        correlated=lambda banded_noise: len(devices) / banded_noise.min_separation,
    )
    for number in range(1, transcript.plan.rounds + 1):
        request = replace(transcript, weights=[state.weights] * number)
        sent = [
            device.train(request, number)
            for index, device in enumerate(devices)
            if trains_in_round(transcript.plan, number, user=index)
        ] or [torch.zeros_like(state.weights)]  # fewer users than groups leave some empty
        total = torch.stack(sent).double().sum(0)
        mean = noise.add(number, total, _update_server_noise(transcript)) / cohort
        rate = compute_learning_rate(
            aggregation, transcript.plan, number, devices=cohort, denominator=usual
        )
        state = apply_update(state, mean.float(), aggregation, rate=rate)
    return state.released_weights


def _enrolment_server_noise(transcript: Transcript) -> tuple[float, float]:
    """What the server adds to the sums of counts and of centres: all but the devices' own noise."""
    plan, left = transcript.plan, transcript.devices - 1
    own = plan.scheme.device_noise(plan, SumKind.CENTRE)
    counts, centre = enrolment_sum_noise(transcript)
    return _subtract_noise(counts, plan.count_noise, left), _subtract_noise(centre, own, left)


def _update_server_noise(transcript: Transcript) -> float:
    """The same for a round's updates."""
    plan = transcript.plan
    one = plan.scheme.device_noise_std(
        plan, SumKind.UPDATE, devices=1, denominator=transcript.denominator
    )
    return _subtract_noise(update_sum_noise(transcript), one, transcript.devices - 1)


def _subtract_noise(noise: float, own: float, others: int) -> float:
    """A standard deviation without the noise of so many devices."""
    # Where devices' noise exceeds the sum's target, the server adds none.
    return math.sqrt(max(0.0, noise**2 - others * own**2))


def _fit(transcript: Transcript, weights: Tensor, examples: Examples) -> float:
    """How well a model fits a user: minus the mean loss of their utterances, in nats."""
    model = build_network(transcript.plan.model, seed=0).eval()
    load_parameters(model, weights)
    rows = transcript.projection.project_features(examples.features)
    inputs = transcript.projection.normalise_rows(rows, rows.mean(0), examples.frames)
    with torch.no_grad():
        logits = model(inputs, examples.frames)
    losses = cross_entropy(logits, examples.labels, torch.ones(len(transcript.plan.labels)))
    return -float(losses.mean())
