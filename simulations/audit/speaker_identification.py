"""Speaker identification: the user's name from a device's messages."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sottovoce.shared import seeding
from sottovoce.shared.models.examples import Examples
from sottovoce.simulations.audit.adversary_view import observe, split_parts
from sottovoce.simulations.audit.audited_fold import SpeakerExamples
from sottovoce.simulations.audit.device_under_test import (
    Observation,
    Transcript,
    nearly_noiseless,
    run_trial,
)
from sottovoce.simulations.audit.gender_inference import ALL_PARTS

PartCosines = Mapping[str, Tensor]
"""Cosines between trials and users' templates, by part; each of shape (trials, users)."""

_LEAST_VARIANCE = 1e-6


def identify_speakers(
    transcript: Transcript,
    users: Mapping[str, SpeakerExamples],
    rounds: Sequence[int],
    *,
    repeats: int,
    seed: int,
) -> dict[int, dict[str, float]]:
    """Measure how often the attacker names the user behind a device.

    It holds one half of everybody's clips and computes what a device with them would send; the
    device holds the other half. The weight of each part is fitted before, on the quarters of the
    attacker's own half.

    Returns:
        By number of rounds seen and by part, the share of trials that are named correctly;
        1 / users by chance.
    """
    halves = [
        (_every_other(one.examples, 0), _every_other(one.examples, 1)) for one in users.values()
    ]
    quarters = [(_every_other(known, 0), _every_other(known, 1)) for known, _ in halves]
    practice = _template_cosines(
        # Another seed than the attack's: weights must not be fitted on the trials they score.
        transcript,
        quarters,
        rounds,
        1,
        seeding.derive_seed(seed, "audit", "practice"),
    )
    shown = _template_cosines(
        transcript, halves, rounds, repeats, seeding.derive_seed(seed, "audit", "named")
    )
    truth = torch.arange(len(halves)).repeat_interleave(repeats)
    return {
        number: _identification_rates(shown[number], truth, _part_weights(practice[number]))
        for number in rounds
    }


def _every_other(examples: Examples, which: int) -> Examples:
    """Every other utterance."""
    # Alternate utterances: corpora are sorted by emotion, so halves would differ in emotion.
    return examples.select(torch.arange(len(examples)) % 2 == which)


def _template_cosines(
    transcript: Transcript,
    halves: Sequence[tuple[Examples, Examples]],
    rounds: Sequence[int],
    repeats: int,
    seed: int,
) -> dict[int, PartCosines]:
    """Cosines of trials on second halves with what first halves would send, by rounds seen."""
    quiet = nearly_noiseless(transcript)
    known = [run_trial(quiet, first, 0) for first, _ in halves]
    examples = [second for _, second in halves for _ in range(repeats)]
    draws = [seeding.derive_seed(seed, "life", number) for number in range(len(examples))]
    shown = [
        observe(transcript, run_trial(transcript, one, own), own)
        for one, own in zip(examples, draws, strict=True)
    ]
    return {number: _cosines(shown, known, number) for number in rounds}


def _cosines(
    shown: Sequence[Observation], known: Sequence[Observation], rounds: int
) -> PartCosines:
    """Cosines of what is not common to all, part by part."""
    trials, templates = ([split_parts(one, rounds) for one in seen] for seen in (shown, known))
    found = {}
    for part in templates[0]:
        # Everybody's mean is no evidence of anybody; it would dominate every cosine.
        sides = [torch.stack([one[part] for one in side]) for side in (trials, templates)]
        units = [_unit_rows(side - side.mean(0)) for side in sides]
        found[part] = units[0] @ units[1].T
    return found


def _part_weights(practice: PartCosines) -> dict[str, float]:
    """Weights of the parts' cosines: the slope of their log likelihood ratio.

    Cosines with the right user and with others are taken to be normal, of one variance.
    """
    found = {}
    for part, cosines in practice.items():
        own = torch.eye(len(cosines), dtype=torch.bool)
        difference = float(cosines[own].mean() - cosines[~own].mean())
        # A part that is nearer to others than to its own user is noise: weight 0.
        found[part] = max(difference, 0.0) / max(float(cosines[~own].var()), _LEAST_VARIANCE)
    return found


def _identification_rates(
    shown: PartCosines, truth: Tensor, weights: Mapping[str, float]
) -> dict[str, float]:
    """Share of trials that are nearest to the right template; part by part and in all."""
    everything = torch.stack([weights[part] * cosines for part, cosines in shown.items()]).sum(0)
    return {
        part: float((cosines.argmax(1) == truth).double().mean())
        for part, cosines in {**shown, ALL_PARTS: everything}.items()
    }


def _unit_rows(vectors: Tensor) -> Tensor:
    """Rows of length 1."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    units: Tensor = vectors / lengths.clamp(min=1e-12)
    return units
