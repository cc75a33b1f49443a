"""Norm limits of a device's replies, from the plan alone: what exceeds them is no honest device's.

Where sums are not secure, validation stands between one lying device and the model. A limit that
was learned from what devices send could be moved by them, so each follows from public settings: as
many clips as a device may hold, each within the plan's bound, and the noise that the device adds.
It bounds what one device can do; it does not outvote anybody.
"""

import math
from typing import Final

from sottovoce.shared.calibration.head_statistics import SENSITIVITY, STATISTICS_SIZE
from sottovoce.shared.protocol.training_plan import Plan

MAX_UTTERANCES: Final = 10_000
"""Most utterances that a device is taken to hold: some nine hours of speech, a hundred times what
users of the corpora have. What a device with more sends may be refused."""

_TAIL: Final = 8.0
"""Noise of n numbers is longer than its scale times (sqrt(n) + 8) with a chance of e^-32."""

_ROUNDING: Final = 1.001
"""Devices bound in float64 or float32, and send float32."""


def max_counts_norm(plan: Plan) -> float:
    """Largest L2 norm of label counts."""
    hidden = plan.user.counts.clip_norm if plan.user else math.inf
    return _limit(min(float(MAX_UTTERANCES), hidden), plan.count_noise, len(plan.labels))


def max_centre_norm(plan: Plan) -> float:
    """Largest L2 norm of a share of the centre; infinite where rows are not bounded."""
    settings = plan.centre
    if settings is None:
        return 0.0
    hidden = plan.user.centre.clip_norm if plan.user and plan.user.centre else math.inf
    noise = settings.clip_norm * settings.noise_multiplier if settings.noise_multiplier else 0.0
    return _limit(min(MAX_UTTERANCES * settings.clip_norm, hidden), noise, plan.model.inputs)


def max_statistics_norm(plan: Plan) -> float:
    """Largest L2 norm of a device's head statistics."""
    settings = plan.calibration
    if settings is None:
        return 0.0
    user = plan.user.calibration if plan.user else None
    hidden = user.clip_norm if user else math.inf
    noise = SENSITIVITY * settings.noise_multiplier
    return _limit(min(MAX_UTTERANCES * SENSITIVITY, hidden), noise, STATISTICS_SIZE)


def max_update_norm(plan: Plan, *, params: int, denominator: float) -> float:
    """Largest L2 norm of a round's update, in weights; infinite where nothing is bounded.

    Args:
        plan: For clip, noise, steps and what hides users.
        params: How many weights there are.
        denominator: What a device divides a step's sum by.
    """
    if not plan.utterance_level:
        return _limit(plan.user.update.clip_norm if plan.user else math.inf, 0.0, params)
    training, mechanism = plan.training, plan.mechanism
    bounded = math.inf if mechanism.sum_norm is None else mechanism.sum_norm
    clipped = min(MAX_UTTERANCES * mechanism.clip_norm, bounded)
    noise = mechanism.clip_norm * mechanism.noise_multiplier
    # Momentum passes a step on to all later ones.
    steps = training.steps / (1 - training.momentum)
    return steps * training.learning_rate / denominator * _limit(clipped, noise, params)


def _limit(bounded: float, noise: float, numbers: int) -> float:
    """Largest L2 norm of a bounded vector of so many numbers, with its noise."""
    return _ROUNDING * bounded + noise * (math.sqrt(numbers) + _TAIL)
