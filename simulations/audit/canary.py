"""Canaries: worst-case utterances that an attacker knows and can see alone.

The canary's row points far along one direction, so that it reaches every clip norm whatever the
user's mean is. The server, which may send any model, sends in every round one that predicts
against the canary's label along that direction. The canary's effect is known but for the noise,
so the likelihood ratio of Gaussians is a linear score (Nasr et al. 2021, 2023).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared import seeding
from sottovoce.shared.models.examples import Examples, concatenate_examples
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler
from sottovoce.shared.speaker import normalisation
from sottovoce.simulations.audit.adversary_view import observe, round_weights
from sottovoce.simulations.audit.bounds import many_runs
from sottovoce.simulations.audit.bounds.gaussian import Floats
from sottovoce.simulations.audit.bounds.many_runs import EpsilonBound
from sottovoce.simulations.audit.device_under_test import (
    DeviceUnderTest,
    Observation,
    StatisticsRequest,
    Transcript,
    nearly_noiseless,
    run_trial,
)

CANARY_NORM = 1e3
"""Norm of a canary's row after the projection, where usual rows have a norm of about 1."""

CANARY_LOGIT = 10.0
"""Logit by which the server's model predicts against the canary. It is sure of the canary, and
unsure of utterances across it, whose gradients then show how the user's mean has moved."""

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CanaryDirection:
    """The direction in which a canary moves each message.

    Attributes:
        counts: The canary's label counts, shape (classes,), a unit vector.
        row: Its direction after the projection, shape (inputs,), a unit vector.
        own_gradient: Its own gradient's part of an update, shape (params,).
        effect_on_others: How far it moves all others' gradients by moving the user's mean, shape
            (params,).
        effect_on_statistics: How it moves the head statistics, shape (WIDTH,); empty where they are
            not asked for.
        round_weights: Weights of the rounds' updates, shape (rounds,).
    """

    counts: Tensor
    row: Tensor
    own_gradient: Tensor
    effect_on_others: Tensor
    effect_on_statistics: Tensor
    round_weights: Tensor

    def compute_statistics(self, observation: Observation) -> list[float]:
        """Compute test statistics: counts, centre, the update along both directions, the answer."""
        # The enrolment is counts first, then the centre's share.
        classes = len(observation.enrolment) - len(self.row)
        mean = self.round_weights @ observation.updates.double()
        return [
            float(observation.enrolment[:classes] @ self.counts),
            float(observation.enrolment[classes:] @ self.row),
            float(mean @ _unit(self.own_gradient)),
            float(mean @ _unit(self.effect_on_others)),
            *(
                [float(observation.head_statistics.double() @ _unit(self.effect_on_statistics))]
                if len(self.effect_on_statistics)
                else []
            ),
        ]


def examples_from_rows(projection: PublicProjection, rows: Tensor, labels: list[int]) -> Examples:
    """Make utterances whose projected rows are these, as raw features.

    Args:
        projection: The public projection; its inputs must not outnumber its features.
        rows: Shape (utterances, inputs).
        labels: One class an utterance.
    """
    # The projection has full row rank, so its pseudo-inverse is a right inverse.
    back = torch.linalg.pinv(projection.matrix.double())
    features = projection.mean.double() + rows.double() @ back
    ones = torch.ones(len(rows), dtype=torch.int64)
    classes = torch.tensor(labels, dtype=torch.int64)
    return Examples(features=features.float(), frames=ones, labels=classes)


def design_canary(transcript: Transcript, seed: int) -> tuple[Transcript, Examples, Tensor]:
    """Design a canary and the transcript of a server that looks for the canary.

    Returns:
        The transcript, whose model bets against the canary in every round; the utterance as raw
        features; its direction after the projection, shape (inputs,).
    """
    draws = seeding.torch_rng(seed, "audit", "canary")
    row = _unit(torch.randn(transcript.projection.output_size, generator=draws))
    transcript = with_model_every_round(transcript, _adversarial_weights(transcript, row))
    # Relative to the centre, which the normaliser subtracts with most of the mean.
    far = (transcript.centre + CANARY_NORM * row)[None]
    return (
        transcript,
        examples_from_rows(transcript.projection, far, [_least_likely_class(transcript, row)]),
        row,
    )


def design_user(transcript: Transcript, canary: Examples, row: Tensor, *, clips: int) -> Examples:
    """Design a whole user who is the canary, as raw features.

    A user's own mean is subtracted before training, so a user of equal utterances would train on
    nothing. A quarter of these lie the other way and are labelled as another class: both kinds
    move the model alike, and the user's mean is as far out as the canary.

    Args:
        transcript: As :func:`design_canary` gives it.
        canary: The utterance of most clips.
        row: Its direction, shape (inputs,).
        clips: How many clips the user has, at least 1.
    """
    label = (int(canary.labels[0]) + 1) % len(transcript.plan.labels)
    other_way = examples_from_rows(
        transcript.projection, (transcript.centre - CANARY_NORM * row)[None], [label]
    )
    which = (torch.arange(clips) % 4 == 3).long()
    return concatenate_examples([canary, other_way]).select(which)


def measure_direction(
    transcript: Transcript, others: Examples, canary: Examples, row: Tensor
) -> CanaryDirection:
    """Measure how updates move: three trials that the attacker runs itself, without noise."""
    quiet = nearly_noiseless(transcript.with_constant_model(1))
    observations = [
        run_trial(quiet, examples, 0)
        # What neither part explains alone is the canary's effect on the others, through the mean.
        for examples in (concatenate_examples([others, canary]), others, canary)
    ]
    both, without, alone = (one.updates[0].double() for one in observations)
    return CanaryDirection(
        counts=_unit(torch.bincount(canary.labels, minlength=len(transcript.plan.labels)).float()),
        row=row,
        own_gradient=alone,
        effect_on_others=both - without - alone,
        effect_on_statistics=(
            observations[0].head_statistics - observations[1].head_statistics
        ).double(),
        round_weights=round_weights(transcript.plan, len(transcript.weights)),
    )


def collect_statistics(
    transcript: Transcript,
    others: Examples,
    *,
    trials: int,
    seed: int,
    user_level: bool = False,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> tuple[Floats, Floats]:
    """Collect test statistics of many trials without and with the canary.

    Args:
        transcript: The server's requests; its model is set against the canary.
        others: The device's own utterances as raw features.
        trials: How many of each kind.
        seed: Decides the canary and all noise.
        user_level: Whether the canary is all that the user has, as many utterances as the others,
            and is looked for in the sums over users; then user-level privacy is audited.
        on_progress: Takes (what, done, total).

    Returns:
        Without and with the canary, each shape (trials, statistics).
    """
    transcript, canary, row = design_canary(transcript, seed)
    if user_level:
        canary, others = (
            design_user(transcript, canary, row, clips=len(others)),
            others.select(slice(0)),
        )
    direction = measure_direction(transcript, others, canary, row)
    device_examples = others, concatenate_examples([others, canary])
    found: tuple[list[list[float]], list[list[float]]] = ([], [])
    for number in range(trials):
        for kind in (0, 1):
            # Each trial has noise of its own, with and without: paired noise would make errors
            # dependent.
            own = seeding.derive_seed(seed, "audit", "life", number, kind)
            seen = run_trial(transcript, device_examples[kind], own)
            found[kind].append(
                direction.compute_statistics(observe(transcript, seen, own) if user_level else seen)
            )
        on_progress("trials of the canary's device", number + 1, trials)
    return np.array(found[0]), np.array(found[1])


def bound_epsilon(
    absent: Floats, present: Floats, *, delta: float, confidence: float, training_share: float = 0.3
) -> EpsilonBound:
    """Estimate lower bounds from statistics; the first trials fit the score.

    The others are counted, so that the score is independent of them.

    Args:
        absent: Statistics without the canary, shape (trials, statistics).
        present: With it, likewise.
        delta: Of the promise.
        confidence: Of each bound.
        training_share: Share of the trials that fit the score and the threshold.
    """
    # At least two of each: a variance needs them.
    cut = max(2, int(training_share * len(absent)))
    weights = _discriminant(absent[:cut], present[:cut])
    first, second = absent @ weights, present @ weights
    return many_runs.bound_from_trials(
        (first[:cut], second[:cut]),
        (first[cut:], second[cut:]),
        delta=delta,
        confidence=confidence,
    )


def bound_first_message(
    transcript: Transcript, *, trials: int, seed: int, delta: float, confidence: float
) -> EpsilonBound:
    """Bound epsilon by a device's share of the centre alone, over very many trials.

    The device holds nothing but the canary, or nothing. This release is the quickest to simulate:
    very many trials show what hundreds of whole ones could not. Without noise its cost exceeds
    any finite claim.
    A lower bound for a part is one for the whole.
    """
    settings = transcript.plan.centre
    row = torch.randn(
        transcript.projection.output_size, generator=seeding.torch_rng(seed, "audit", "first")
    )
    alone = (transcript.centre + CANARY_NORM * _unit(row))[None]
    draws = SeededGaussianSampler(seeding.torch_rng(seed, "audit", "first message"))
    if settings is None:
        # A few thousand trials fit a threshold on one number; all others count.
        return EpsilonBound(epsilon=0.0, epsilon_gaussian=0.0, mu=0.0, ceiling=0.0, trials=0)
    found = [
        np.array(
            [
                float(normalisation.release_sum(mine, settings, draws) @ _unit(row))
                for _ in range(trials)
            ]
        )[:, None]
        for mine in (alone[:0], alone)
    ]
    return bound_epsilon(*found, delta=delta, confidence=confidence, training_share=0.05)


def bound_last_message(
    transcript: Transcript, *, trials: int, seed: int, delta: float, confidence: float
) -> EpsilonBound | None:
    """Bound epsilon by a device's head statistics alone; None where none are asked for.

    The device enrols once, with the canary or with nothing; trials differ only by the noise of its
    answer.
    """
    if transcript.statistics_request is None or transcript.plan.calibration is None:
        return None
    transcript, canary, row = design_canary(transcript, seed)
    nothing = canary.select(slice(0))
    effect = measure_direction(transcript, nothing, canary, row).effect_on_statistics
    found = []
    for kind, examples in enumerate((nothing, canary)):
        subject = DeviceUnderTest(examples, transcript.plan.labels, seed)
        subject.enrol(transcript)
        noises = [
            seeding.derive_seed(seed, "audit", "last message", kind, n) for n in range(trials)
        ]
        along = [
            float(one.double() @ _unit(effect))
            for one in subject.sample_statistics(transcript, noises)
        ]
        found.append(np.array(along)[:, None])
    return bound_epsilon(*found, delta=delta, confidence=confidence, training_share=0.05)


def with_model_every_round(transcript: Transcript, weights: Tensor) -> Transcript:
    """Copy the transcript of a server that sends one model in every round, and asks about it last.

    The query subtracts the first range, in which no score of an utterance lies that the model bets
    against, so the answer has the largest norm there is.
    """
    transcript = replace(transcript, weights=[weights] * len(transcript.weights))
    if transcript.statistics_request is None:
        return transcript
    shares = torch.zeros_like(transcript.statistics_request.query.shares)
    shares[0] = 1.0
    query = replace(transcript.statistics_request.query, shares=shares)
    return replace(transcript, statistics_request=StatisticsRequest(weights=weights, query=query))


def _discriminant(absent: Floats, present: Floats) -> Floats:
    """Fisher's linear discriminant (1936), shape (statistics,)."""
    # The floor keeps a statistic without noise from dividing by zero.
    difference = present.mean(0) - absent.mean(0)
    scale = np.maximum(absent.std(0) + present.std(0), 1e-9 * (np.abs(difference).max() + 1e-300))
    # Shrinkage: few trials leave a covariance that is nearly singular.
    covariance = (np.cov((absent / scale).T) + np.cov((present / scale).T)) / 2
    covariance = np.atleast_2d(covariance) + 1e-3 * np.eye(len(difference))
    weights: Floats = np.linalg.solve(covariance, difference / scale) / scale
    return weights


def _adversarial_weights(transcript: Transcript, row: Tensor) -> Tensor:
    """The server's model; a linear one is changed to deny its class to all that lies along ``row``.

    Shape (params,).
    """
    weights, spec = transcript.weights[0].clone(), transcript.plan.model
    if spec.kind == "linear" and not spec.reads_frames:
        slope = CANARY_LOGIT / (transcript.projection.row_norm or CANARY_NORM)
        # Parameters are flattened row by row: a class's weights are consecutive.
        start = _least_likely_class(transcript, row) * spec.inputs
        weights[start : start + spec.inputs] -= slope * row
    return weights


def _least_likely_class(transcript: Transcript, row: Tensor) -> int:
    """The class that the server's model believes least of an utterance along ``row``."""
    model = build_network(transcript.plan.model, seed=0).eval()
    load_parameters(model, transcript.weights[0])
    inputs = row * (transcript.projection.row_norm or CANARY_NORM)
    with torch.no_grad():
        logits = model(inputs[None], torch.ones(1, dtype=torch.int64))[0]
    # Rare classes get a larger weight in the loss, which counts as a larger error.
    return int((logits - transcript.class_weights.log()).argmin())


def _unit(vector: Tensor) -> Tensor:
    """Scale a vector to norm 1; zeros stay zeros."""
    unit: Tensor = vector / torch.linalg.vector_norm(vector).clamp(min=1e-12)
    return unit
