"""The adversary's view of one device under the run's threat model.

Under ``none`` and ``utterance`` the server sees everything that a device sends. Under ``user`` and
``both`` the guarantee to a user is about sums. The attacker sees each sum, noised, and is assumed
to know every other user's clips, so it subtracts their part and is left with one user's part and
all of the noise. That is what secure aggregation leaves visible; a server that adds the noise
itself, without it, sees every single update. Under ``utterance`` with secure sums the audited
device noises its messages with all of a sum's noise itself, which comes to the same.
"""

import math

import torch
from torch import Tensor

from sottovoce.shared import seeding
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler
from sottovoce.shared.privacy.release import SumMechanism
from sottovoce.shared.privacy.scheme import PrivacyScheme, SumKind
from sottovoce.simulations.audit.device_under_test import Observation, Transcript

ALL_MESSAGES, NOISED_SUMS = (
    "everything that a device sends",
    "the noised sums, and all other users' clips",
)


def observe(transcript: Transcript, observation: Observation, seed: int) -> Observation:
    """Compute what the adversary observes in a trial.

    Args:
        transcript: The server's requests; its plan says what is protected.
        observation: Everything that the device sent.
        seed: Decides the noise of the sums.
    """
    if not transcript.plan.scheme.has_private_sums:
        return observation  # everything that the device sends
    return _observe_sums(transcript, observation, seed)


def threat_model(scheme: PrivacyScheme) -> str:
    """Name the threat model in words, for the audit's table.

    Args:
        scheme: What the run promised. Where secure sums hide an utterance, one device's message
            under all of their noise is such a sum, to whoever knows all others' clips.
    """
    return NOISED_SUMS if scheme.hides_in_sums else ALL_MESSAGES


def split_parts(observation: Observation, rounds: int) -> dict[str, Tensor]:
    """Split an observation into named vectors, one dimension each, float64.

    Args:
        observation: The adversary's observation of a trial.
        rounds: How many rounds were seen, from the first on.

    Returns:
        ``first message``: label counts and share of the centre; ``updates``: their mean; ``last
        message``: head statistics, once all rounds are over and where they were asked for.
    """
    found = {
        "first message": observation.enrolment.double(),
        "updates": observation.updates[:rounds].double().mean(0),
    }
    # Head statistics are asked for after the last round only.
    if rounds == len(observation.updates) and len(observation.head_statistics):
        found["last message"] = observation.head_statistics.double()
    return found


def _observe_sums(transcript: Transcript, observation: Observation, seed: int) -> Observation:
    """What is left of a sum once all others' parts are known and taken off."""
    # A stream of its own: the device's noise must not be drawn again as the sum's.
    draws = SeededGaussianSampler(seeding.torch_rng(seed, "audit", "sums"))
    classes = len(transcript.plan.labels)
    counts, centre = observation.enrolment[:classes], observation.enrolment[classes:]
    noises = (
        *enrolment_sum_noise(transcript),
        update_sum_noise(transcript),
        statistics_sum_noise(transcript),
    )
    noised = [
        part.double() + draws.sample_noise(tuple(part.shape), noise)
        for part, noise in zip(
            (counts, centre, observation.updates, observation.head_statistics), noises, strict=True
        )
    ]
    return Observation(
        enrolment=torch.cat(noised[:2]).float(),
        updates=noised[2].float(),
        head_statistics=noised[3].float(),
    )


def enrolment_sum_noise(transcript: Transcript) -> tuple[float, float]:
    """Compute the noise of the sums of counts and centres less one device's own, as std."""
    plan = transcript.plan
    counts, centre = (
        _remaining_noise(
            plan.scheme.sum_mechanism(plan, kind),
            plan.scheme.device_noise(plan, kind),
            transcript.devices,
        )
        for kind in (SumKind.LABEL_COUNTS, SumKind.CENTRE)
    )
    return counts, centre


def _remaining_noise(user: SumMechanism | None, own: float, devices: int) -> float:
    """All noise in a sum, less one device's."""
    if user is None:
        return 0.0
    # The device's own noise is already in its message; the sum has the noise of all, or more.
    whole = max(user.noise_multiplier * user.clip_norm, own * math.sqrt(devices))
    return math.sqrt(whole**2 - own**2)


def update_sum_noise(transcript: Transcript) -> float:
    """Compute the noise of the sum of one round's updates less one device's, in weights."""
    return _added_noise(transcript, SumKind.UPDATE, denominator=transcript.denominator)


def statistics_sum_noise(transcript: Transcript) -> float:
    """Compute the noise of the sum of head statistics less one device's, in each number."""
    return _added_noise(transcript, SumKind.HEAD_STATISTICS)


def _added_noise(transcript: Transcript, kind: SumKind, *, denominator: float = 1.0) -> float:
    """All noise in a sum that hides users, less one device's."""
    plan, scheme = transcript.plan, transcript.plan.scheme
    if scheme.sum_mechanism(plan, kind) is None:
        return 0.0
    whole = scheme.sum_noise_std(plan, kind, devices=transcript.devices, denominator=denominator)
    own = scheme.device_noise_std(plan, kind, devices=1, denominator=denominator)
    # Rounding can leave a difference of equals just below 0.
    return math.sqrt(max(0.0, whole**2 - own**2))
