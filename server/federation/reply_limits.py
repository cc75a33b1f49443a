"""Norm limits of a device's replies, from the plan alone: what exceeds them is no honest device's.

Where sums are not secure, validation stands between one lying device and the model. A limit that
was learned from what devices send could be moved by them, so each follows from public settings: as
many clips as a device may hold, each within the plan's bound, and the noise that the device adds.
It bounds what one device can do; it does not outvote anybody.
"""

import math
from typing import Final

from sottovoce.shared.calibration.head_statistics import STATISTICS_SIZE
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.protocol.training_plan import Plan

_TAIL: Final = 8.0
"""Noise of n numbers is longer than its scale times (sqrt(n) + 8) with a chance of e^-32."""

_ROUNDING: Final = 1.001
"""Devices bound in float64 or float32, and send float32."""


def max_counts_norm(plan: Plan) -> float:
    """Largest L2 norm of label counts."""
    return _max_norm(plan, SumKind.LABEL_COUNTS, len(plan.labels))


def max_centre_norm(plan: Plan) -> float:
    """Largest L2 norm of a share of the centre; infinite where rows are not bounded."""
    return _max_norm(plan, SumKind.CENTRE, plan.model.inputs)


def max_statistics_norm(plan: Plan) -> float:
    """Largest L2 norm of a device's head statistics."""
    return _max_norm(plan, SumKind.HEAD_STATISTICS, STATISTICS_SIZE)


def max_update_norm(plan: Plan, *, params: int, denominator: float) -> float:
    """Largest L2 norm of a round's update, in weights; infinite where nothing is bounded.

    Args:
        plan: For clip, noise, steps and what hides users.
        params: How many weights there are.
        denominator: What a device divides a step's sum by.
    """
    reach = plan.scheme.update_reach(plan, denominator)
    # Devices add noise in every step, so the reach scales the noise as it scales the bound.
    return reach * _max_norm(plan, SumKind.UPDATE, params)


def _max_norm(plan: Plan, kind: SumKind, numbers: int) -> float:
    """Largest L2 norm of what a device adds to a sum of so many numbers, with its noise."""
    bounded = plan.scheme.max_device_norm(plan, kind)
    noise = plan.scheme.device_noise(plan, kind)
    # A triangle inequality: the longest honest part, and the longest noise that is likely to come.
    return _ROUNDING * bounded + noise * (math.sqrt(numbers) + _TAIL)
