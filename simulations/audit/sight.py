"""What an attacker sees of one device, by what the run protects: the attacks' raw material.

Under ``none`` and ``utterance`` whatever a device sends lies open to the server. Under ``user`` and
``both`` the promise to a user is about sums: the attacker sees each sum, noised, and is taken to
know every other user's clips, so that it takes their part off and is left with one user's part and
all of the noise. That is what secure aggregation leaves visible; a server that adds the noise
itself, without it, sees every single update.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sottovoce.server import sums
from sottovoce.shared import seeds
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.noise import SeededNoise
from sottovoce.shared.privacy.release import UserNoise
from sottovoce.simulations.audit.subject import Course, Seen

OPENLY, SUM = "everything that a device sends", "the noised sums, and all other users' clips"


def witnessed(course: Course, seen: Seen, seed: int) -> Seen:
    """What is seen of a device's life.

    Args:
        course: What was asked; its plan says what is hidden.
        seen: What the device sent.
        seed: Decides the noise of the sums.
    """
    return _SIGHTS[course.plan.unit](course, seen, seed)


def sees(plan: Plan) -> str:
    """The same in words."""
    return SUM if plan.user else OPENLY


def parts(seen: Seen, rounds: int) -> dict[str, Tensor]:
    """A life as named vectors, one dimension each, float64.

    Args:
        seen: What was seen of it.
        rounds: How many rounds were seen, from the first on.

    Returns:
        ``first message``: label counts and share of the centre; ``updates``: their mean; ``last
        message``: head statistics, once all rounds are over and where they were asked for.
    """
    found = {
        "first message": seen.enrolment.double(),
        "updates": seen.updates[:rounds].double().mean(0),
    }
    if rounds == len(seen.updates) and len(seen.answer):
        found["last message"] = seen.answer.double()
    return found


def _openly(course: Course, seen: Seen, seed: int) -> Seen:  # noqa: ARG001  (one shape for all)
    """Everything that the device sends."""
    return seen


def _in_the_sum(course: Course, seen: Seen, seed: int) -> Seen:
    """What is left of a sum once all others' parts are known and taken off."""
    draws = SeededNoise(seeds.torch_rng(seed, "audit", "sums"))
    classes = len(course.plan.labels)
    counts, centre = seen.enrolment[:classes], seen.enrolment[classes:]
    noises = (*first_noise(course), update_noise(course), last_noise(course))
    noised = [
        part.double() + draws.normal(tuple(part.shape), noise)
        for part, noise in zip((counts, centre, seen.updates, seen.answer), noises, strict=True)
    ]
    return Seen(
        enrolment=torch.cat(noised[:2]).float(),
        updates=noised[2].float(),
        answer=noised[3].float(),
    )


def first_noise(course: Course) -> tuple[float, float]:
    """Noise of the sums of counts and of centres beside one device's own, standard deviations."""
    plan = course.plan
    if plan.user is None:
        return 0.0, 0.0
    own = plan.centre.radius * plan.centre.noise_multiplier if plan.centre and plan.private else 0.0
    return (
        _added(plan.user.counts, plan.count_noise, course.devices),
        _added(plan.user.centre, own, course.devices),
    )


def _added(user: UserNoise | None, own: float, devices: int) -> float:
    """All noise in a sum, less one device's."""
    if user is None:
        return 0.0
    whole = max(user.noise_multiplier * user.clip_norm, own * math.sqrt(devices))
    return math.sqrt(whole**2 - own**2)


def update_noise(course: Course) -> float:
    """The same for the sum of one round's updates, in weights."""
    plan, denominator = course.plan, course.denominator
    if plan.user is None:
        return 0.0
    whole = sums.spread(plan, devices=course.devices, denominator=denominator)
    own = sums.spread(replace(plan, user=None), devices=1, denominator=denominator)
    return math.sqrt(max(0.0, whole**2 - own**2))


def last_noise(course: Course) -> float:
    """The same for the sum of head statistics, in each number."""
    plan = course.plan
    if plan.user is None or plan.calibration is None:
        return 0.0
    whole = sums.calibration_spread(plan, course.devices)
    own = sums.calibration_spread(replace(plan, user=None), 1)
    return math.sqrt(max(0.0, whole**2 - own**2))


_SIGHTS: Mapping[str, Callable[[Course, Seen, int], Seen]] = {
    "none": _openly,
    "utterance": _openly,
    "user": _in_the_sum,
    "both": _in_the_sum,
}
