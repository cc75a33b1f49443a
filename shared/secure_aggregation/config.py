"""What all devices and the server agree on before a secure sum: one frozen record."""

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Final

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.secure_aggregation.discrete_gaussian import MAX_STD, MIN_STD

ROUNDING_FAILURE_PROBABILITY: Final = 2.0**-20
"""Kairouz et al.'s beta: a rounding that makes an update too long is drawn again, which happens at
most this often, so that rounding is unbiased up to this share."""

MAX_WRAP_PROBABILITY: Final = 2.0**-40
"""Most chance that noise makes a sum of bounded updates wrap around."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureAggregationConfig:
    """One secure sum: who must be there, how numbers become integers, how much noise each adds.

    ``parameter_selection.select_parameters`` chooses all of it from what a round must bear.

    Attributes:
        devices: Most devices that are summed, at least 3.
        parameters: Length of an update, at least 1.
        degree: Neighbours of each device: even, or ``devices - 1``.
        threshold: Neighbours whose shares open a secret, above ``degree / 2``, at most ``degree``.
            See ``parameter_selection.select_graph_parameters`` for how lying devices raise it.
        quorum: Fewest devices that may be summed, above ``threshold``, at most ``devices``.
        clip_norm: L2 bound on an update, in the units of the update, from 1e-12 to 1e12.
        granularity: What one integer step is worth, in the units of the update, above 0.
        noise: Scale of the discrete Gaussian that *each* device adds, in integer steps: 0, or 0.5
            and above. See ``noise_accounting.calibrate_local_noise``.
        bits: Sums are taken modulo 2^bits, from 8 to 32.

    Guarantees:
        - Sums of updates within the bound do not wrap around, but for a chance of 2^-40 that the
          noise makes one do so: settings that could not promise this cannot be made. Wrapping
          would spoil a sum; it reveals nothing.
    """

    devices: int
    parameters: int
    degree: int
    threshold: int
    quorum: int
    clip_norm: float
    granularity: float
    noise: float = 0.0
    bits: int = 32

    def __post_init__(self) -> None:
        validation.require_whole_number(
            devices=self.devices, parameters=self.parameters, bits=self.bits
        )
        validation.require_whole_number(
            degree=self.degree, threshold=self.threshold, quorum=self.quorum
        )
        validation.require_at_least(3, devices=self.devices)
        validation.require_at_least(1, parameters=self.parameters)
        validation.require_norm(clip_norm=self.clip_norm)
        validation.require_positive(granularity=self.granularity)
        validation.require_non_negative(noise=self.noise)
        self._check_graph()
        self._check_ring()

    def _check_graph(self) -> None:
        """Refuse a graph that cannot be drawn or would not hide anybody."""
        complete = self.devices - 1
        if not (2 <= self.degree <= complete and (self.degree % 2 == 0 or self.degree == complete)):
            raise SettingError(f"degree is {self.degree}; it must be even from 2, or {complete}")
        if not self.degree / 2 < self.threshold <= self.degree:
            raise SettingError(
                f"threshold is {self.threshold}; with {self.degree} neighbours it must be from"
                f" {self.degree // 2 + 1} to {self.degree}, or a server could open both secrets"
            )
        if not self.threshold < self.quorum <= self.devices:
            raise SettingError(
                f"quorum is {self.quorum}; it must be above the threshold of {self.threshold} and"
                f" at most {self.devices} devices"
            )

    def _check_ring(self) -> None:
        """Refuse numbers that could wrap around, or noise that cannot be drawn."""
        if not 8 <= self.bits <= 32:
            raise SettingError(f"bits is {self.bits}; it must be from 8 to 32")
        if self.noise and not MIN_STD <= self.noise <= MAX_STD:
            raise SettingError(f"noise is {self.noise} steps; 0, or {MIN_STD} and above")
        if self.wrap_probability > MAX_WRAP_PROBABILITY:
            raise SettingError(
                f"granularity is {self.granularity:.3g}: a sum of {self.devices} updates could wrap"
                f" around 2^{self.bits}; raise granularity or bits, or lower noise"
            )

    @property
    def rounded_norm(self) -> float:
        """L2 bound on a clipped and rounded update, in integer steps: the sum's sensitivity.

        Kairouz et al. 2021, theorem 1 (of the conditional rounding of section 4).
        """
        scaled, root = self.clip_norm / self.granularity, math.sqrt(self.parameters)
        deviation = math.sqrt(2 * math.log(1 / ROUNDING_FAILURE_PROBABILITY)) * (scaled + root / 2)
        # A hair more, so that the floats of the check err on the right side.
        return math.sqrt(min(scaled**2 + root**2 / 4 + deviation, (scaled + root) ** 2)) * (
            1 + 1e-9
        )

    @property
    def wrap_probability(self) -> float:
        """Bound on the chance that any value of the sum wraps around.

        A sum of n discrete Gaussians is sub-Gaussian with variance n noise^2 (Canonne et al. 2020,
        corollary 17); what is left of the ring beside n updates at their bound is room for it.
        """
        largest = min(math.floor(self.clip_norm / self.granularity) + 1, self.rounded_norm)
        room = 2 ** (self.bits - 1) - 1 - self.devices * largest
        if room < 0:
            return 1.0
        if not self.noise:
            return 0.0
        tail = -(room**2) / (2 * self.devices * self.noise**2)
        return min(1.0, 2 * self.parameters * math.exp(tail))

    def config_hash(self) -> bytes:
        """SHA-256 over all fields: everybody in a round must have the same."""
        text = "\x1f".join(f"{name}={value!r}" for name, value in sorted(asdict(self).items()))
        return hashlib.sha256(text.encode()).digest()
