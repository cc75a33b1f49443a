"""What a device's owner decided, and has recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from sottovoce.shared.examples import Examples
from sottovoce.shared.privacy.ledger import Budget

UNKNOWN: Final = -1
"""Label of a clip that its user has not labelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the owner decided.

    Attributes:
        user: The user's pseudonym.
        budgets: What the device may spend in its life, one for each unit that is promised anything;
            none at all allows unprotected releases.
        contributes: Whether the device takes part in training; if not, it only receives models.
        neutral_enrolment: Whether the clips that enrol the user are known to be neutral.
        labels: Names of the labels that the clips carry.
        simulated_seed: Seed of a simulated device, whose noise can be repeated and protects
            nobody; None on a real one.
    """

    user: str
    budgets: tuple[Budget, ...]
    contributes: bool = True
    neutral_enrolment: bool = False
    labels: tuple[str, ...]
    simulated_seed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return {
            "user": self.user,
            "budgets": [asdict(budget) for budget in self.budgets],
            "contributes": self.contributes,
            "neutral_enrolment": self.neutral_enrolment,
            "labels": list(self.labels),
            "simulated_seed": self.simulated_seed,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Facts":
        """Read it back; the caller turns what is raised into its own error."""
        known = dict(record)
        labels, budgets = tuple(known.pop("labels")), _read_budgets(known)
        return cls(**known, budgets=budgets, labels=labels)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clips:
    """The device's own recordings as features.

    Attributes:
        examples: Features, frames and labels; a label of -1 is unknown.
        enrols: Which clips the user's normaliser is learned from, shape (utterances,), bool.
        calibrates: Which labelled clips the user's head is fitted on, shape (utterances,), bool.
        trains: Which labelled clips training uses, shape (utterances,), bool.
    """

    examples: Examples
    enrols: Tensor
    calibrates: Tensor
    trains: Tensor

    def relabelled(self, own: Sequence[str], labels: Sequence[str]) -> "Clips":
        """With labels numbered as others number them; ``UNKNOWN`` where they have no such label.

        Args:
            own: Names of the labels that the clips carry.
            labels: The others', in their order.
        """
        order = [labels.index(name) if name in labels else UNKNOWN for name in own]
        numbers = torch.tensor([*order, UNKNOWN])[self.examples.labels]  # unknown is the last
        return replace(self, examples=replace(self.examples, labels=numbers))

    def tensors(self) -> dict[str, Tensor]:
        """By name; half precision is plenty for log-mel and halves the disk."""
        features = self.examples.features
        return {
            "features": features.half() if features.dim() == 3 else features,
            "frames": self.examples.frames,
            "labels": self.examples.labels,
            "enrols": self.enrols,
            "calibrates": self.calibrates,
            "trains": self.trains,
        }

    @classmethod
    def of(cls, kept: Mapping[str, Tensor]) -> "Clips":
        """What :meth:`tensors` gave."""
        examples = Examples(
            features=kept["features"].float(), frames=kept["frames"], labels=kept["labels"]
        )
        uses = {name: kept[name] for name in ("enrols", "calibrates", "trains")}
        return cls(examples=examples, **uses)


def _read_budgets(record: dict[str, Any]) -> tuple[Budget, ...]:
    """The budgets, taken out of the record; the first devices had one, for utterances, or null."""
    if "budget" in record:
        budget = record.pop("budget")
        return (Budget(**budget),) if budget else ()
    budgets = record.pop("budgets")
    return tuple(Budget.from_dict(budget) for budget in budgets)
