"""The adversary's view of one device under the run's threat model.

Under ``none`` and ``utterance`` the server sees everything that a device sends. Under ``user`` and
``both`` the guarantee to a user is about sums. The attacker sees each sum, noised, and is assumed
to know every other user's clips, so it subtracts their part and is left with one user's part and
all of the noise. That is what secure aggregation leaves visible; a server that adds the noise
itself, without it, sees every single update. Under ``utterance`` with secure sums the audited
device noises its messages with all of a sum's noise itself, which comes to the same.

Where noise is correlated across rounds, the server's own code draws it. The attacker knows the
matrix C of that correlation and undoes it.
"""

import math

import torch
from torch import Tensor

from sottovoce.server.aggregation.correlated_noise import SeededCorrelatedNoise
from sottovoce.shared import seeding
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler
from sottovoce.shared.privacy.release import SumMechanism
from sottovoce.shared.privacy.scheme import PrivacyScheme, SumKind
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.audit.device_under_test import (
    Observation,
    Transcript,
    trains_in_round,
)

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
    noised_counts, noised_centre = (
        part.double() + draws.sample_noise(tuple(part.shape), noise)
        for part, noise in zip((counts, centre), enrolment_sum_noise(transcript), strict=True)
    )
    noise, noise_std = UpdateNoise(transcript.plan, draws), update_sum_noise(transcript)
    updates = noise.add_to_rounds(observation.updates.double(), noise_std)
    statistics = observation.head_statistics.double()
    statistics += draws.sample_noise(tuple(statistics.shape), statistics_sum_noise(transcript))
    return Observation(
        enrolment=torch.cat([noised_counts, noised_centre]).float(),
        updates=updates.float(),
        head_statistics=statistics.float(),
    )


class UpdateNoise:
    """Noise of the sums of updates over a plan's rounds, independent or correlated.

    Args:
        plan: Says how the noise of rounds is correlated.
        draws: Where it comes from.
    """

    def __init__(self, plan: Plan, draws: SeededGaussianSampler) -> None:
        self._draws = draws
        self._correlated: SeededCorrelatedNoise | None = plan.participation.match_noise(
            independent=lambda: None,
            correlated=lambda banded_noise: SeededCorrelatedNoise(banded_noise, lambda _: draws),
        )

    def add(self, number: int, total: Tensor, noise_std: float) -> Tensor:
        """Add a round's noise to its sum, shape (params,), float64.

        Args:
            number: The round; from 1, one after another.
            total: The sum, shape (params,), float64.
            noise_std: Standard deviation of one independent draw.
        """
        if self._correlated:
            return self._correlated.add_noise(number, total, noise_std)
        return total + self._draws.sample_noise(tuple(total.shape), noise_std)

    def add_to_rounds(self, updates: Tensor, noise_std: float) -> Tensor:
        """Add the noise of all rounds, from the first, shape (rounds, params), float64."""
        if not self._correlated:
            return updates + self._draws.sample_noise(tuple(updates.shape), noise_std)
        return torch.stack(
            [self.add(number, one, noise_std) for number, one in enumerate(updates, 1)]
        )


def round_weights(plan: Plan, rounds: int) -> Tensor:
    """Weights of the rounds in the best estimate of what a device sends in each, it being the same.

    Args:
        plan: Says in which rounds the device trains, and how noise is correlated.
        rounds: How many there are.

    Returns:
        Shape (rounds,), float64. Weighted by them, updates add up to one update of the device:
        1 / rounds each where noise is independent and the device is in every round. With noise
        correlated by C and p telling the device's rounds, they are C'C p over the norm of Cp
        squared, for independent noise is what C makes of the noised sums.
    """

    def correlated(banded_noise: BandedNoise) -> Tensor:
        joined = torch.tensor(
            [float(trains_in_round(plan, number)) for number in range(1, rounds + 1)],
            dtype=torch.float64,
        )
        matrix = torch.zeros(rounds, rounds, dtype=torch.float64)
        for back, weight in enumerate(banded_noise.coefficients[:rounds]):
            matrix.diagonal(-back).fill_(weight)
        signal = matrix @ joined
        weights: Tensor = matrix.T @ signal / signal.square().sum()
        return weights

    return plan.participation.match_noise(
        independent=lambda: torch.full((rounds,), 1 / rounds, dtype=torch.float64),
        correlated=correlated,
    )


def repeated_update_noise(transcript: Transcript) -> float:
    """Compute the noise of one of a device's updates, correlation undone, in weights."""
    # Each of its rounds is seen through a whole column of C.
    return update_sum_noise(transcript) / transcript.plan.participation.match_noise(
        independent=lambda: 1.0, correlated=lambda banded_noise: banded_noise.column_norm
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
    """Compute the noise of the sum of one round's updates less one device's, in weights.

    Where noise is correlated across rounds, that of one independent draw.
    """
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
