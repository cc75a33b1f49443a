"""What training makes small."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Class-weighted cross-entropy of each utterance.

    The loss of an utterance depends on that utterance alone: it is its class's weight times
    ``-log softmax(logits)[label]``, and is never divided by the weights of a batch.

    Args:
        logits: Shape (utterances, classes), float32.
        labels: Shape (utterances,), int64, each in [0, classes).
        weights: Public weight of each class, shape (classes,), float32.
        smoothing: Share of the target that is spread over all classes (Szegedy et al. 2016), in
            [0, 1); every class's share weighs what that class weighs.

    Returns:
        Shape (utterances,), float32, in nats.

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([1.0, 2.0]))
        tensor([1.3863])
    """
    return F.cross_entropy(
        logits, labels, weight=weights, reduction="none", label_smoothing=smoothing
    )
