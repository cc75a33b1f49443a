"""Bounds on what one utterance and one user add to a release: settings that noise is scaled to.

They say nothing about whether a unit is protected: a :class:`PrivacyTarget` does, and its scheme
uses the bounds that it needs.
"""

from dataclasses import dataclass, field
from typing import Final

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.banded_noise import BandedNoise

MIN_USER_SAMPLING_RATE: Final = 1e-9
"""One user of a billion; accountants lose what is far below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserLevelSettings:
    """Settings of user-level privacy in sums over users.

    Attributes:
        update_norm: L2 bound on a user's update in weights; where devices add noise of their own,
            on the sum of the user's clipped gradients.
        counts_norm: L2 bound on a user's label counts.
        centre_norm: L2 bound on a user's mean row; where devices add noise of their own, on the
            sum of the user's rows.
        calibration_norm: L2 bound on a user's mean head statistics; where devices add noise of
            their own, on the sum over the user's clips.
        user_sampling_rate: Probability that a user joins a round, in (0, 1]; 1 has everybody in
            every round.
        adaptive: Whether the update's clip norm is learned, from ``update_norm`` on.
        quantile: Share of the updates that it should leave whole, in (0, 1).
        dropout: Share of the devices that a secure sum must bear to lose, in [0, 1).
        corruption: Share of them that may side with the server, in [0, 1).
        min_separation: How many participation groups there are, at least 1; each user trains in
            every ``min_separation``-th round. 1 has everybody in every round.
        bands: Over how many rounds the noise of updates is correlated, at least 1 and at most
            ``min_separation``; 1 gives each round independent noise.

    Example:
        >>> UserLevelSettings().banded_noise is None
        True
        >>> UserLevelSettings(min_separation=3, bands=2).banded_noise.band_count
        2
    """

    update_norm: float = 0.05
    counts_norm: float = 30.0
    centre_norm: float = 1.5
    calibration_norm: float = 0.4
    user_sampling_rate: float = 1.0
    adaptive: bool = False
    quantile: float = 0.5
    dropout: float = 0.1
    corruption: float = 0.1
    min_separation: int = 1
    bands: int = 1

    def __post_init__(self) -> None:
        validation.require_fraction(dropout=self.dropout, corruption=self.corruption)
        validation.require_norm(
            update_norm=self.update_norm,
            counts_norm=self.counts_norm,
            centre_norm=self.centre_norm,
            calibration_norm=self.calibration_norm,
        )
        validation.require_between(0, 1, quantile=self.quantile)
        validation.require_range(
            MIN_USER_SAMPLING_RATE, 1, user_sampling_rate=self.user_sampling_rate
        )
        validation.require_count(
            1, validation.MAX_ROUNDS, min_separation=self.min_separation, bands=self.bands
        )
        # Raises where bands is larger.
        BandedNoise.from_square_root(bands=self.bands, min_separation=self.min_separation)
        if self.min_separation > 1 and (self.adaptive or self.user_sampling_rate < 1):
            raise SettingError(
                f"min_separation is {self.min_separation}, with adaptive {self.adaptive} and "
                f"user_sampling_rate {self.user_sampling_rate:g}; users in participation groups "
                "have a fixed clip norm and are not sampled: leave those out, or leave "
                "min_separation at 1"
            )

    @property
    def banded_noise(self) -> BandedNoise | None:
        """Participation groups and correlated noise; None where all train in each round."""
        # A single group is everybody, and a single band is independent noise: the plain scheme.
        if self.min_separation == 1:
            return None
        return BandedNoise.from_square_root(bands=self.bands, min_separation=self.min_separation)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyBounds:
    """Bounds on what one utterance adds, and those on what one user adds.

    Attributes:
        clip_norm: L2 bound on an utterance's gradient, above 0.
        centre_radius: L2 bound on a row in the release of the centre, above 0.
        normaliser_radius: L2 bound on a row in the release of the normaliser, above 0.
        normaliser_count: Weight of the count coordinate there, as a share of the radius, above 0.
        count_noise: Standard deviation of the noise on label counts that hides an utterance,
            above 0.
        user: Bounds and participation of a user.
    """

    clip_norm: float = 0.5
    centre_radius: float = 1.5
    normaliser_radius: float = 0.8
    normaliser_count: float = 0.3
    count_noise: float = 10.0
    user: UserLevelSettings = field(default_factory=UserLevelSettings)

    def __post_init__(self) -> None:
        validation.require_norm(
            clip_norm=self.clip_norm,
            centre_radius=self.centre_radius,
            normaliser_radius=self.normaliser_radius,
            normaliser_count=self.normaliser_count,
            count_noise=self.count_noise,
        )
