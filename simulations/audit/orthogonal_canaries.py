"""Many canaries of one device whose gradients are orthogonal, so that none hides another.

A linear model's gradient is an outer product of an error over classes and an input. The canaries'
rows are orthonormal directions and their opposites. The server's model is sure of one class along a
direction and of another one along its opposite; with four different classes for what it predicts
and what the canaries are labelled as, both gradients are as long as their clip norm lets them be,
and orthogonal. Other models are sent as they are; their canaries share directions and differ by
label, and are distinguished less well.
"""

import torch
from torch import Tensor

from sottovoce.shared import seeding
from sottovoce.shared.models.examples import Examples
from sottovoce.simulations.audit.canary import (
    CANARY_LOGIT,
    CANARY_NORM,
    examples_from_rows,
    with_model_every_round,
)
from sottovoce.simulations.audit.device_under_test import Transcript

_LABELS = 4
"""Canaries along one direction of a model that is not linear, distinguished by their labels."""


def design_canaries(
    transcript: Transcript, max_canaries: int, seed: int
) -> tuple[Transcript, Examples]:
    """Design many canaries of one device, and the transcript of a server that bets against all.

    Args:
        transcript: The server's requests.
        max_canaries: Most canaries of one device, at least 1.
        seed: Decides directions and labels.

    Returns:
        The transcript, with one model in every round; the canaries as raw features. There may be
        fewer of them: directions are as many as the model's inputs, and a bound on the sum of a
        device's gradients holds only so many.
    """
    limit = min(max_canaries, _most_in_bound(transcript))
    spec = transcript.plan.model
    if spec.kind == "linear" and not spec.reads_frames:
        return _design_for_linear_model(transcript, limit, seed)
    return transcript.with_constant_model(), _with_several_labels(transcript, limit, seed)


def _most_in_bound(transcript: Transcript) -> int:
    """How many orthogonal gradients a bound on their sum holds whole."""
    mechanism = transcript.plan.mechanism
    if mechanism.sum_norm is None:
        return transcript.projection.output_size * _LABELS
    return max(1, int((mechanism.sum_norm / mechanism.clip_norm) ** 2))


def _design_for_linear_model(
    transcript: Transcript, limit: int, seed: int
) -> tuple[Transcript, Examples]:
    """Canaries along directions and their opposites, and a model that bets against all."""
    classes, inputs = len(transcript.plan.labels), transcript.projection.output_size
    draws = seeding.torch_rng(seed, "audit", "orthogonal canaries")
    # Fewer than four classes leave no class for an opposite that the direction does not use.
    sides = 2 if classes >= 4 else 1
    directions = min(inputs, -(-limit // sides))
    rows = _orthonormal_rows(inputs, directions, draws)
    chosen = torch.stack([torch.randperm(classes, generator=draws) for _ in range(directions)])
    predicted, labels = chosen[:, 0:1], chosen[:, 1:2]
    weights = torch.zeros(classes, inputs)
    slope = CANARY_LOGIT / (transcript.projection.row_norm or CANARY_NORM)
    weights.index_add_(0, predicted[:, 0], slope * rows)
    if sides == 2:
        weights.index_add_(0, chosen[:, 2], -slope * rows)
        labels, rows = chosen[:, 1:4:2], torch.stack([rows, -rows], dim=1).flatten(0, 1)
    flat = torch.zeros_like(transcript.weights[0])
    # Parameters are flattened row by row, a class's weights after another's; biases stay 0.
    flat[: weights.numel()] = weights.flatten()
    return (
        with_model_every_round(transcript, flat),
        _far_examples(transcript, rows[:limit], labels.flatten()[:limit]),
    )


def _with_several_labels(transcript: Transcript, limit: int, seed: int) -> Examples:
    """Canaries along orthonormal directions, each with several labels."""
    # All classes together would be linearly dependent.
    labels = min(_LABELS, len(transcript.plan.labels) - 1, limit)
    inputs = transcript.projection.output_size
    directions = min(inputs, limit // labels)
    draws = seeding.torch_rng(seed, "audit", "canaries")
    rows = _orthonormal_rows(inputs, directions, draws).repeat_interleave(labels, dim=0)
    return _far_examples(transcript, rows, torch.arange(len(rows)) % labels)


def _orthonormal_rows(inputs: int, directions: int, draws: torch.Generator) -> Tensor:
    """Random orthonormal directions, shape (directions, inputs), float32."""
    normal = torch.randn(inputs, directions, generator=draws, dtype=torch.float64)
    rows: Tensor = torch.linalg.qr(normal).Q.T.float()
    return rows


def _far_examples(transcript: Transcript, rows: Tensor, labels: Tensor) -> Examples:
    """Utterances far along such rows from the centre, which a normaliser subtracts."""
    return examples_from_rows(
        transcript.projection, transcript.centre + CANARY_NORM * rows, labels.tolist()
    )
