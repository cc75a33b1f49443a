"""Who joins a step of training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.client.training.gradients import Read
from sottovoce.shared.examples import Examples
from sottovoce.shared.models.network import Network
from sottovoce.shared.privacy.coins import Coins


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Who joined a step, and each one's dropout mask; None where nothing is dropped."""

    examples: Examples
    keep: Tensor | None

    def __len__(self) -> int:
        return len(self.examples)

    def read(self) -> Read:
        """What a model is called with."""
        return self.examples.features, self.examples.frames, self.keep

    def split(self, size: int) -> list["Batch"]:
        """Parts of at most ``size`` utterances; one, if empty, where nobody joined.

        A part has no padding but its own, so that a part of one knows nothing of the others.
        """
        if len(self) <= size:
            return [self]
        keep = self.keep
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [
            Batch(_trim(self.examples.take(part)), None if keep is None else keep[part])
            for part in parts
        ]


def poisson(
    model: Network,
    examples: Examples,
    sample_rate: float,
    coins: Coins,
    generator: torch.Generator,
) -> Batch:
    """Toss each utterance's coin; cut the padding that nobody who joined needs."""
    joined = coins.toss(len(examples), sample_rate)
    chosen = examples if sample_rate >= 1 else examples.take(joined)
    keep = model.keep(len(chosen), generator) if model.dropout else None
    return Batch(_trim(chosen), keep)


def _trim(examples: Examples) -> Examples:
    """Without the frames that are padding for all."""
    if examples.features.dim() < 3 or len(examples) == 0:
        return examples
    longest = int(examples.frames.max())
    return Examples(
        features=examples.features[:, :longest], frames=examples.frames, labels=examples.labels
    )
