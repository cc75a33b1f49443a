"""Poisson sampling of the utterances that join a step of training."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sottovoce.client.training.per_example_gradients import ModelInputs
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.network import Network
from sottovoce.shared.privacy.poisson_sampling import PoissonSampler


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Utterances that joined a step, and each one's dropout mask; None where nothing is dropped."""

    examples: Examples
    dropout_mask: Tensor | None

    def __len__(self) -> int:
        return len(self.examples)

    def model_inputs(self) -> ModelInputs:
        """Arguments of the model: features, frames and the dropout mask."""
        return self.examples.features, self.examples.frames, self.dropout_mask

    def split(self, size: int) -> list["Batch"]:
        """Split into parts of at most ``size`` utterances; one, if empty, where nobody joined.

        A part has no padding but its own, so that a part of one knows nothing of the others.
        """
        if len(self) <= size:
            return [self]
        dropout_mask = self.dropout_mask
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [
            Batch(
                _trim(self.examples.select(part)),
                None if dropout_mask is None else dropout_mask[part],
            )
            for part in parts
        ]


def sample_batch(
    model: Network,
    examples: Examples,
    sample_rate: float,
    sampler: PoissonSampler,
    generator: torch.Generator,
) -> Batch:
    """Sample each utterance by itself; cut the padding that nobody who joined needs."""
    joined = sampler.sample(len(examples), sample_rate)
    # At rate 1 everybody joins, and a copy of all features would be wasted.
    chosen = examples if sample_rate >= 1 else examples.select(joined)
    dropout_mask = model.draw_dropout_mask(len(chosen), generator) if model.dropout else None
    return Batch(_trim(chosen), dropout_mask)


def _trim(examples: Examples) -> Examples:
    """Cut off the frames that are padding for all."""
    if examples.features.dim() < 3 or len(examples) == 0:
        return examples
    # The longest of those who joined: padding beyond it costs time and means nothing.
    longest = int(examples.frames.max())
    return replace(examples, features=examples.features[:, :longest])
