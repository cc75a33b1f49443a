"""Prediction for one recording: an emotion with its probabilities, or the reason for none.

An app shows a prediction to a person, so it carries what a person needs: how sure it is, whether
it was made for this user or for anybody, what was wrong with the recording, what to do next.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sottovoce.shared.errors import ModelError

_SUM_TOLERANCE = 1e-3


class Abstention(enum.StrEnum):
    """Why a recogniser names no emotion, for programs."""

    UNUSABLE = "unusable recording"
    NO_SPEECH = "no speech"
    UNFAMILIAR = "unlike what the model knows"
    MIXED = "more than one emotion"
    UNSURE = "not sure enough"
    BROKEN_MODEL = "broken model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A recogniser's answer to one recording.

    Attributes:
        emotion: What was recognised; None where the recogniser abstained.
        probabilities: Chance of each emotion, in the model's order, summing to 1; empty where the
            recording was not fit to be listened to: nothing was guessed.
        confidence: The largest of them; 0 where there are none.
        prediction_set: Every emotion that cannot be ruled out at ``coverage``, the likeliest first;
            empty where nothing was guessed, or where the model came without scores. It is there for
            abstentions too: "either sad or neutral" is not nothing.
        coverage: How often such sets hold the true emotion, in (0, 1), for people like those whose
            scores the model came with; None without a set.
        abstained: Whether no emotion is given.
        reason: Why not; "" where one is given.
        abstention: The reason's kind, for programs; None where an emotion is given.
        quality: What is wrong with the recording, in words such as ``silent`` or ``noisy``.
        next_step: What to do now, for the user's eyes; "" where there is nothing to do.
        model_hash: Which model spoke, 64 hexadecimal digits.
        uses_own_normaliser: Whether this user's voice was taken into account.
        uses_own_head: Whether this user's calibration head was applied.
        uses_own_threshold: Whether this user's labelled clips moved the threshold of the set.

    Raises:
        ModelError: Probabilities that are none, an abstention that names an emotion, or a set
            without its coverage or of other emotions.
    """

    emotion: str | None
    probabilities: Mapping[str, float]
    confidence: float
    abstained: bool
    reason: str
    quality: tuple[str, ...]
    next_step: str
    model_hash: str
    uses_own_normaliser: bool
    uses_own_head: bool
    prediction_set: tuple[str, ...] = ()
    coverage: float | None = None
    uses_own_threshold: bool = False
    abstention: Abstention | None = None

    def __post_init__(self) -> None:
        shares = list(self.probabilities.values())
        # fsum: the order of emotions must not change whether a sum passes.
        total = math.fsum(shares)
        if shares and not (min(shares) >= 0 and abs(total - 1) < _SUM_TOLERANCE):
            raise ModelError(f"probabilities are {shares}; they must be 0 or above and sum to 1")
        if self.abstained != (self.emotion is None) or self.abstained != bool(self.reason):
            raise ModelError(
                f"a prediction of {self.emotion!r} with the reason {self.reason!r}; it must name "
                "an emotion, or say why it names none"
            )
        if self.abstention is not None and not self.abstained:
            raise ModelError(f"a prediction of {self.emotion!r} that abstains: {self.abstention}")
        # NaN fails both comparisons.
        has_coverage = self.coverage is not None and 0 < self.coverage < 1
        unknown = set(self.prediction_set) - set(self.probabilities)
        if unknown or has_coverage != bool(self.prediction_set):
            raise ModelError(
                f"the set {self.prediction_set} at coverage {self.coverage}; it must hold emotions "
                "with probabilities, and say how often it is right"
            )

    def __str__(self) -> str:
        """One line for a terminal."""
        parts = [f"no answer: {self.reason}"] if self.abstained else [self._answer()]
        if self.abstained and self.probabilities:
            parts.append(f"nearest {self._answer()}")
        # What the reason says already is not said twice.
        words = [word for word in self.quality if word not in self.reason]
        if words:
            parts.append(f"recording: {', '.join(words)}")
        return "; ".join([*parts, self.next_step] if self.next_step else parts)

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON object for programs; probabilities keep six digits."""
        return {
            "emotion": self.emotion,
            "confidence": round(self.confidence, 6),
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()},
            "set": list(self.prediction_set),
            "coverage": self.coverage,
            "abstained": self.abstained,
            "reason": self.reason,
            "abstention": None if self.abstention is None else self.abstention.value,
            "quality": list(self.quality),
            "next_step": self.next_step,
            "own_normaliser": self.uses_own_normaliser,
            "own_head": self.uses_own_head,
            "own_set": self.uses_own_threshold,
            "model": self.model_hash,
        }

    def _answer(self) -> str:
        """Name the likeliest emotion and the next one."""
        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])[:2]
        (best, share), *others = ranked
        rest = f" (then {others[0][0]} {others[0][1]:.0%})" if others else ""
        return f"{best} {share:.0%}{rest}"
