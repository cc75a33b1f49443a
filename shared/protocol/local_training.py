"""How a device trains, and what it promises about one utterance: the settings both sides read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.losses import CROSS_ENTROPY, Loss

TARGETS: Final = ("majority", "soft")
"""What an utterance is trained towards."""

CURRICULA: Final = ("none", "agreement", "confidence")
"""What makes an utterance easy."""

MAX_STRENGTH: Final = 100.0

MIN_SAMPLE_RATE: Final = 1e-6
"""Random draws have finitely many bits, and a ledger must not book less than they release."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curriculum:
    """Weights by which easy utterances count in full from the first round, and hard ones later.

    A loss is multiplied by s to the power of ``strength`` x (1 - progress), where progress goes
    from 0 in the first round to 1 in the last. Who joins a step never depends on s.

    Attributes:
        kind: ``none``; ``agreement``, where s is the largest share of the raters' votes; or
            ``confidence``, where s is the present model's probability of the label.
        strength: Above 0.
    """

    kind: str = "none"
    strength: float = 2.0

    def __post_init__(self) -> None:
        validation.require_one_of(CURRICULA, curriculum=self.kind)
        validation.require_range(validation.MIN_FACTOR, MAX_STRENGTH, strength=self.strength)

    def check_loss(self, loss: Loss) -> None:
        """Refuse a loss of whole batches, of which no utterance has a share to weigh.

        Raises:
            SettingError: There is a curriculum, and the loss couples utterances.

        Example:
            >>> Curriculum(kind="confidence").check_loss(CROSS_ENTROPY)
        """
        if self.kind != "none" and loss.couples_utterances:
            raise SettingError(
                f"curriculum is {self.kind} with the loss {loss.kind}, which couples utterances; "
                "set the curriculum to none, or choose another loss"
            )


NO_CURRICULUM: Final = Curriculum()


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalTraining:
    """One round of training on one device.

    Attributes:
        steps: Steps of gradient descent in a round, 1 or more.
        sample_rate: Chance that an utterance joins a step (Poisson), in (0, 1].
        learning_rate: Step size, above 0.
        denominator: Public number of utterances that the noised sum of gradients is divided by,
            above 0. It is never counted on the device: a count is a release.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        loss: What a step makes small.
        targets: ``majority`` for the label, or ``soft`` for the shares of the raters' votes, where
            an utterance has any.
        curriculum: What counts less in early rounds.
        momentum: Of the gradient descent, in [0, 1). It only sees noised gradients.
    """

    steps: int
    sample_rate: float
    learning_rate: float
    denominator: float
    momentum: float = 0.0
    label_smoothing: float = 0.0
    loss: Loss = CROSS_ENTROPY
    targets: str = "majority"
    curriculum: Curriculum = NO_CURRICULUM

    def __post_init__(self) -> None:
        validation.require_at_least(1, steps=self.steps)
        if not MIN_SAMPLE_RATE <= self.sample_rate <= 1:
            raise SettingError(
                f"sample_rate is {self.sample_rate}; it must be in [{MIN_SAMPLE_RATE:g}, 1]: draws "
                "of lower probability cannot be told from none"
            )
        validation.require_positive(learning_rate=self.learning_rate, denominator=self.denominator)
        if not 0 <= self.momentum < 1:
            raise SettingError(f"momentum is {self.momentum}; it must be in [0, 1)")
        if not 0 <= self.label_smoothing < 1:
            raise SettingError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        self.loss.check_smoothing(self.label_smoothing)
        validation.require_one_of(TARGETS, targets=self.targets)
        self.curriculum.check_loss(self.loss)

    @property
    def reads_votes(self) -> bool:
        """Whether training looks at the votes of raters, and not at labels alone.

        Example:
            >>> rates = {"sample_rate": 1.0, "learning_rate": 0.1, "denominator": 8.0}
            >>> LocalTraining(steps=1, targets="soft", **rates).reads_votes
            True
        """
        return self.targets == "soft" or self.curriculum.kind == "agreement"

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "LocalTraining":
        """From plain numbers; a record without a loss means cross-entropy."""
        settings = dict(record)
        if "loss" in settings:
            settings["loss"] = Loss.from_dict(settings["loss"])
        if "curriculum" in settings:
            settings["curriculum"] = Curriculum(**settings["curriculum"])
        return cls(**settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleLevelMechanism:
    """Each utterance's gradient is clipped, and their sum is noised.

    Attributes:
        clip_norm: L2 bound on one utterance's gradient, from 1e-12 to 1e12.
        noise_multiplier: Standard deviation of the noise in units of ``clip_norm``, above 0.
        sum_norm: L2 bound on the sum of a step's clipped gradients before it is noised, likewise,
            so that the noise of all devices together hides the whole user; None bounds nothing.
    """

    clip_norm: float
    noise_multiplier: float
    sum_norm: float | None = None

    def __post_init__(self) -> None:
        validation.require_norm(clip_norm=self.clip_norm)
        validation.require_positive(noise_multiplier=self.noise_multiplier)
        if self.sum_norm is not None:
            validation.require_norm(sum_norm=self.sum_norm)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoPrivacy:
    """No bound and no noise: epsilon is infinite. The shape of ``ExampleLevelMechanism``."""

    clip_norm: float = field(default=math.inf, init=False)
    noise_multiplier: float = field(default=0.0, init=False)
    sum_norm: None = field(default=None, init=False)


GradientMechanism = ExampleLevelMechanism | NoPrivacy
