"""What a run is to promise: unit, epsilon, deltas, and how the budget is divided."""

from dataclasses import dataclass, field
from typing import Final

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.release import PrivacyUnit

MAX_EPSILON: Final = 100.0
"""Largest epsilon that counts as a promise."""

MIN_DELTA: Final = 1e-30
"""Smallest delta that accountants compute with: below it floats lose the tails of noise."""

MIN_SHARE: Final = 1e-6
"""Smallest share of a budget that a release is paid from."""

MAX_TUNING_RUNS: Final = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetShares:
    """Shares of the squared privacy budget (Gaussian mu) for releases other than gradients.

    Rounds of training get what is left. A scheme uses the shares of the releases that it pays for:
    under ``utterance`` label counts have a fixed noise and take no share, ``centre`` and
    ``head_statistics`` are shares of what they leave, ``normaliser`` of what the centre leaves.

    Attributes:
        label_counts: Where users are hidden, in (0, 0.5).
        centre: In (0, 0.5).
        normaliser: Where utterances are hidden, in (0, 1).
        head_statistics: In [0, 0.5), of each promised unit; 0 asks devices for none.

    Example:
        >>> BudgetShares(head_statistics=0.04).head_statistics
        0.04
    """

    label_counts: float = 0.05
    centre: float = 0.04
    normaliser: float = 0.10
    head_statistics: float = 0.0

    def __post_init__(self) -> None:
        validation.require_between(0, 0.5, label_counts=self.label_counts, centre=self.centre)
        validation.require_between(0, 1, normaliser=self.normaliser)
        named = {"label_counts": self.label_counts, "centre": self.centre}
        named["normaliser"] = self.normaliser
        if self.head_statistics != 0:
            validation.require_between(0, 0.5, head_statistics=self.head_statistics)
            named["head_statistics"] = self.head_statistics
        # Of less, the noise is so large that floats do not hold its square.
        validation.require_range(MIN_SHARE, 1 - MIN_SHARE, **named)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyTarget:
    """Privacy guarantee that a run aims for.

    Attributes:
        unit: What is protected, by the name of a registered scheme: ``utterance``, ``user``,
            ``both`` or ``none``.
        epsilon: Budget of every device's life, in (0, 100]; with ``both``, of each unit.
        delta: For one utterance, in (0, 1).
        user_delta: For one user, in (0, 1); well below one over the number of users.
        secure: Whether sums over users are made by secure aggregation, so that nobody sees less
            than the noised sum.
        tuning_runs: How many runs like this one settings were chosen by, this one included, at
            least 1; all of them are charged for.
        shares: How the budget is divided among releases.

    Example:
        >>> PrivacyTarget(unit="user", epsilon=4.0).user_delta
        0.001
    """

    unit: str = "utterance"
    epsilon: float = 8.0
    delta: float = 1e-5
    user_delta: float = 1e-3
    secure: bool = False
    tuning_runs: int = 1
    shares: BudgetShares = field(default_factory=BudgetShares)

    def __post_init__(self) -> None:
        validation.require_positive(epsilon=self.epsilon)
        if self.epsilon > MAX_EPSILON:
            raise SettingError(
                f"epsilon is {self.epsilon:g}; above {MAX_EPSILON:g} it promises nothing: "
                "say so with unit none"
            )
        validation.require_between(0, 1, delta=self.delta, user_delta=self.user_delta)
        validation.require_range(MIN_DELTA, 1, delta=self.delta, user_delta=self.user_delta)
        validation.require_count(1, MAX_TUNING_RUNS, tuning_runs=self.tuning_runs)

    def delta_for(self, unit: PrivacyUnit) -> float:
        """The delta of one unit.

        Example:
            >>> PrivacyTarget(delta=1e-6).delta_for(PrivacyUnit.UTTERANCE)
            1e-06
        """
        return {PrivacyUnit.UTTERANCE: self.delta, PrivacyUnit.USER: self.user_delta}[unit]
