"""Configuration of a secure sum, on which the server and all devices agree beforehand."""

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.secure_aggregation.discrete_gaussian import MAX_STD, MIN_STD

ROUNDING_FAILURE_PROBABILITY: Final = 2.0**-20
"""Kairouz et al.'s beta: the probability that a rounding makes an update too long and is drawn
again, which bounds the bias of rounding."""

MAX_WRAP_PROBABILITY: Final = 2.0**-40
"""Largest probability with which noise may make a sum of bounded updates wrap around."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureAggregationConfig:
    """One secure sum: its participants, graph, quantisation and local noise.

    ``parameter_selection.select_parameters`` chooses all of it from what a round must tolerate.

    Attributes:
        devices: Largest number of devices in the sum, at least 3.
        parameters: Length of an update, at least 1.
        degree: Neighbours of each device: even, or ``devices - 1``.
        threshold: Shares that reconstruct a secret, above ``degree / 2``, at most ``degree``.
            See ``parameter_selection.select_graph_parameters`` for how lying devices raise it.
        quorum: Smallest number of devices in the sum, above ``threshold``, at most ``devices``.
        clip_norm: L2 bound on an update, in the units of the update, from 1e-12 to 1e12.
        granularity: Size of one integer step, in the units of the update, above 0.
        noise: Scale of the discrete Gaussian that *each* device adds, in integer steps: 0, or 0.5
            and above. See ``noise_accounting.calibrate_local_noise``.
        bits: Sums are taken modulo 2^bits, from 8 to 32.
        sensitivity: L2 distance of two updates that differ in what the noise hides, in the units of
            the update, at most ``clip_norm``; 0 where it hides the whole update.

    Guarantees:
        - Sums of updates within the bound wrap around with a probability of at most 2^-40, which
          is due to the noise: other settings are refused. Wrapping would spoil a sum; it reveals
          nothing.
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
    sensitivity: float = 0.0

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
        validation.require_range(0, self.clip_norm, sensitivity=self.sensitivity)
        self._check_graph()
        self._check_ring()

    def _check_graph(self) -> None:
        complete = self.devices - 1
        if not (2 <= self.degree <= complete and (self.degree % 2 == 0 or self.degree == complete)):
            raise SettingError(f"degree is {self.degree}; it must be even from 2, or {complete}")
        # A server that asks one half of the neighbours for one secret and the other half for the
        # other must end up with too few shares of each (Bonawitz et al. 2017, section 6.2).
        if not self.degree / 2 < self.threshold <= self.degree:
            raise SettingError(
                f"threshold is {self.threshold}; with {self.degree} neighbours it must be from"
                f" {self.degree // 2 + 1} to {self.degree}, or a server could open both secrets"
            )
        # Every survivor needs ``threshold`` surviving neighbours besides itself.
        if not self.threshold < self.quorum <= self.devices:
            raise SettingError(
                f"quorum is {self.quorum}; it must be above the threshold of {self.threshold} and"
                f" at most {self.devices} devices"
            )

    def _check_ring(self) -> None:
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
        """L2 bound on a clipped and rounded update, in integer steps.

        Kairouz et al. 2021, theorem 1 (of the conditional rounding of section 4).

        Example:
            >>> from sottovoce.shared.secure_aggregation import parameter_selection as selection
            >>> settings = selection.select_parameters(24, 10, 1.0, dropout=0.1, corruption=0.1)
            >>> round(settings.rounded_norm * settings.granularity, 3)  # about the clip norm
            1.0
        """
        scaled, root = self.clip_norm / self.granularity, math.sqrt(self.parameters)
        if self.sensitivity:  # no draw is repeated, so the longest one counts
            return (scaled + root) * (1 + 1e-9)
        deviation = math.sqrt(2 * math.log(1 / ROUNDING_FAILURE_PROBABILITY)) * (scaled + root / 2)
        # Slightly more, so that rounding of this formula never refuses a valid update.
        return math.sqrt(min(scaled**2 + root**2 / 4 + deviation, (scaled + root) ** 2)) * (
            1 + 1e-9
        )

    @property
    def rounded_sensitivity(self) -> float:
        """L2 distance of two rounded updates that differ in what the noise hides, in integer steps.

        The bound on the whole update, :attr:`rounded_norm`, where that is what is hidden. Else two
        updates at most ``sensitivity`` apart, whose values are rounded by the same draws: of two
        numbers x apart, both rounded up or down by one draw, the results are less than x + 1 apart.
        So the vectors are less than the square root of their length further apart than before.

        Example:
            >>> from dataclasses import replace
            >>> from sottovoce.shared.secure_aggregation import parameter_selection as selection
            >>> settings = selection.select_parameters(24, 10, 1.0, dropout=0.1, corruption=0.1)
            >>> part = replace(settings, sensitivity=0.01)
            >>> round(part.rounded_sensitivity * part.granularity, 5)
            0.01
        """
        if not self.sensitivity:
            return self.rounded_norm
        # Floats: gradients are clipped to 1e-5, relative; one step for all other rounding of sums.
        scaled = self.sensitivity * (1 + 1e-5) / self.granularity
        return (scaled + math.sqrt(self.parameters) + 1) * (1 + 1e-9)

    @property
    def wrap_probability(self) -> float:
        """Bound on the probability that any value of the sum wraps around.

        A sum of n discrete Gaussians is sub-Gaussian with variance n noise^2 (Canonne et al. 2020,
        corollary 17); the part of the ring beyond n updates at their bound is room for it.

        Example:
            >>> from sottovoce.shared.secure_aggregation import parameter_selection as selection
            >>> settings = selection.select_parameters(24, 10, 1.0, dropout=0.1, corruption=0.1)
            >>> settings.wrap_probability  # no noise, no wrapping
            0.0
        """
        largest: float = math.floor(self.clip_norm / self.granularity) + 1
        if not self.sensitivity:  # else every draw counts, also one that makes the vector longer
            largest = min(largest, self.rounded_norm)
        room = 2 ** (self.bits - 1) - 1 - self.devices * largest
        if room < 0:
            return 1.0
        if not self.noise:
            return 0.0
        tail = -(room**2) / (2 * self.devices * self.noise**2)
        return min(1.0, 2 * self.parameters * math.exp(tail))

    def to_dict(self) -> dict[str, Any]:
        """JSON's view of the settings; what does not apply is left out, as in earlier plans."""
        record = asdict(self)
        if not self.sensitivity:
            del record["sensitivity"]
        return record

    def config_hash(self) -> bytes:
        """Hash all fields with SHA-256; everybody in a round must have the same hash.

        Example:
            >>> from sottovoce.shared.secure_aggregation import parameter_selection as selection
            >>> settings = selection.select_parameters(24, 10, 1.0, dropout=0.1, corruption=0.1)
            >>> len(settings.config_hash())
            32
        """
        text = "\x1f".join(f"{name}={value!r}" for name, value in sorted(self.to_dict().items()))
        return hashlib.sha256(text.encode()).digest()
