"""Labelled utterances ready for a model: features, numbers of real frames, and labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.shared.errors import FeatureError

MAX_FRAMES = 200
"""Most frames of an utterance that a model with frames reads: 4 s of log-mel at 50 Hz."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Examples:
    """Labelled utterances, padded to a common length.

    Attributes:
        features: Shape (utterances, features), or (utterances, frames, features) padded with 0
            behind each utterance's last frame, float32.
        frames: Real frames of each utterance, shape (utterances,), int64; 1 where features are
            one vector.
        labels: Class of each utterance, shape (utterances,), int64.
        votes: Share of the raters' votes that each class got, shape (utterances, classes),
            float32, rows sum to 1; None where nobody asked several raters.
    """

    features: Tensor
    frames: Tensor
    labels: Tensor
    votes: Tensor | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def select(self, index: Tensor | slice) -> "Examples":
        """Select utterances; returns views if ``index`` is a slice.

        Args:
            index: A slice, or a tensor of shape (chosen,), int64 or bool.

        Example:
            >>> both = stack_utterances([torch.zeros(3), torch.ones(3)], labels=[0, 1])
            >>> both.select(torch.tensor([1])).labels
            tensor([1])
        """
        return Examples(
            features=self.features[index],
            frames=self.frames[index],
            labels=self.labels[index],
            votes=None if self.votes is None else self.votes[index],
        )


def stack_utterances(
    features: Sequence[Tensor], labels: Sequence[int], *, max_frames: int = 0
) -> Examples:
    """Collect utterances into one batch, padded with zeros where they have frames.

    Args:
        features: One tensor per utterance, all (features,) or all (frames, features).
        labels: One class per utterance.
        max_frames: Longer utterances are cut off here; 0 for no limit.

    Raises:
        FeatureError: No utterances, or tensors that do not fit each other.

    Example:
        >>> batch = stack_utterances([torch.ones(4, 2), torch.ones(3, 2)], labels=[0, 1])
        >>> batch.features.shape, batch.frames
        (torch.Size([2, 4, 2]), tensor([4, 3]))
    """
    if not features or len(features) != len(labels):
        raise FeatureError(f"{len(features)} features for {len(labels)} labels; need one each, >0")
    dims = {tensor.dim() for tensor in features}
    widths = {tensor.shape[-1] for tensor in features}
    if len(widths) != 1 or dims not in ({1}, {2}):
        raise FeatureError(f"features of {dims} axes and widths {widths} cannot be put together")
    classes = torch.tensor(labels, dtype=torch.int64)
    if dims == {1}:
        ones = torch.ones(len(features), dtype=torch.int64)
        return Examples(features=torch.stack(list(features)).float(), frames=ones, labels=classes)
    # The beginning, so that the same utterance always gives the same example.
    cut = [tensor[:max_frames] if max_frames else tensor for tensor in features]
    frames = torch.tensor([len(tensor) for tensor in cut], dtype=torch.int64)
    padded = torch.nn.utils.rnn.pad_sequence(cut, batch_first=True).float()
    return Examples(features=padded, frames=frames, labels=classes)


def concatenate_examples(parts: Sequence[Examples]) -> Examples:
    """Concatenate several batches, padded to the longest utterance.

    Args:
        parts: At least one, all of vectors or all of frames, equally wide.

    Example:
        >>> one = stack_utterances([torch.ones(4, 2)], labels=[0])
        >>> other = stack_utterances([torch.ones(1, 2)], labels=[1])
        >>> concatenate_examples([one, other]).frames
        tensor([4, 1])
    """
    longest = max(part.features.shape[1] for part in parts)
    features = [
        torch.nn.functional.pad(part.features, (0, 0, 0, longest - part.features.shape[1]))
        if part.features.dim() == 3
        else part.features
        for part in parts
    ]
    return Examples(
        features=torch.cat(features),
        frames=torch.cat([part.frames for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        votes=_concatenate_votes(parts),
    )


def complete_votes(examples: Examples, classes: int) -> Tensor:
    """Complete the shares of raters' votes: an utterance without usable ones has its label's alone.

    Args:
        examples: With votes or without.
        classes: How many classes there are.

    Returns:
        Shape (utterances, classes), float32; rows sum to 1, or are zeros where the label is
        unknown and there are no votes.

    Guarantees:
        - Each row depends on its own utterance alone. A NaN, an infinity or a share below 0 leaves
          its utterance the label.

    Example:
        >>> both = stack_utterances([torch.zeros(3), torch.ones(3)], labels=[0, 1])
        >>> complete_votes(both, 2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    certain = _label_shares(examples, classes)
    votes = examples.votes
    if votes is None or votes.shape != certain.shape:
        return certain
    total = votes.sum(1, keepdim=True)
    usable = (votes >= 0).all(1, keepdim=True) & total.isfinite() & (total > 0)
    # A share of a broken row is no number, which a mere product with 0 would keep.
    return torch.where(usable, votes / total.clamp(min=torch.finfo(total.dtype).tiny), certain)


def _label_shares(examples: Examples, classes: int) -> Tensor:
    """Shares that give all to the label, shape (utterances, classes), float32."""
    # A label of -1 is unknown: it matches no class, and its row stays at zeros.
    return (examples.labels[:, None] == torch.arange(classes)).float()


def _concatenate_votes(parts: Sequence[Examples]) -> Tensor | None:
    """Votes of several batches; an utterance without any has all of its label's."""
    widths = [part.votes.shape[1] for part in parts if part.votes is not None]
    if not widths:
        return None
    return torch.cat(
        [_label_shares(part, max(widths)) if part.votes is None else part.votes for part in parts]
    )
