"""What all shared models are: a body that makes one vector an utterance, and a layer that reads it.

Every model is valid for per-utterance gradients: no batch normalisation, no state that one
utterance leaves for the next, no hidden randomness. Dropout's mask is an argument, so the same
call gives the same logits, whatever ran before, and there is no training mode to forget.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sottovoce.shared.errors import ModelError


class Body(nn.Module):
    """Turns utterances into one vector each: ``forward(features, frames) -> (utterances, width)``.

    Attributes:
        inputs: Width of what it reads.
        width: Width of the vector it makes.
        axes: Axes of its features: 2 where an utterance is one vector, 3 where it has frames.
    """

    def __init__(self, inputs: int, width: int, *, axes: int = 3) -> None:
        super().__init__()
        self.inputs = inputs
        self.width = width
        self.axes = axes


class Reader(nn.Linear):
    """A linear layer whose bias weighs a constant input other than 1.

    A module of its own, so that whoever hooks modules for their gradients sees it.
    """

    def __init__(self, inputs: int, classes: int, bias_feature: float) -> None:
        super().__init__(inputs, classes)
        self.bias_feature = bias_feature

    def forward(self, vector: Tensor) -> Tensor:
        """Logits, (utterances, inputs) -> (utterances, classes)."""
        return F.linear(vector, self.weight, self.bias * self.bias_feature)


class Network(nn.Module):
    """A body and the linear layer that reads it; dropout acts between the two.

    Args:
        body: Makes one vector an utterance.
        classes: How many emotions there are.
        dropout: Chance that a number of the vector is dropped in training, in [0, 1).
        bias_feature: The constant input that the bias weighs, above 0; a small one leaves more of
            a clipped gradient to the other weights.
    """

    def __init__(self, body: Body, classes: int, dropout: float, bias_feature: float = 1.0) -> None:
        super().__init__()
        self.body = body
        self.head = Reader(body.width, classes, bias_feature)
        self.axes = body.axes
        self.inputs = body.inputs
        self.classes = classes
        self.dropout = dropout

    def forward(self, features: Tensor, frames: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits of each utterance.

        Args:
            features: Shape (utterances, inputs), or (utterances, frames, inputs) padded with 0,
                float32.
            frames: Real frames of each utterance, shape (utterances,), int64, each 1 or more;
                models that read one vector an utterance do not look at it.
            keep: Dropout mask from ``keep``; ``None`` drops nothing.

        Returns:
            Shape (utterances, classes), float32, before the softmax. What lies behind an
            utterance's last frame does not change its logits, as long as it is 0.

        Raises:
            ModelError: Features of another number of axes or another width.
        """
        vectors = self.vectors(features, frames)
        logits: Tensor = self.head(vectors if keep is None else vectors * keep)
        return logits

    def vectors(self, features: Tensor, frames: Tensor) -> Tensor:
        """What the last layer reads, shape (utterances, width); arguments as in ``forward``."""
        self.check(features)
        vectors: Tensor = self.body(features, frames)
        return vectors

    def check(self, features: Tensor) -> None:
        """Refuse features of another number of axes or another width.

        Raises:
            ModelError: They do not fit.
        """
        if features.dim() != self.axes or features.shape[-1] != self.inputs:
            raise ModelError(self._misfit(features))

    def keep(self, utterances: int, generator: torch.Generator) -> Tensor:
        """Draw a dropout mask, every utterance's apart from every other's.

        Returns:
            What to multiply the body's vectors by, shape (utterances, width), or
            (utterances, 1) where nothing is dropped, float32; its mean is 1.
        """
        if self.dropout == 0:
            return torch.ones(utterances, 1)
        draws = torch.rand(utterances, self.body.width, generator=generator)
        return (draws >= self.dropout) / (1 - self.dropout)

    def _misfit(self, features: Tensor) -> str:
        """What to say of features that this model cannot read."""
        wanted = "(utterances, inputs)" if self.axes == 2 else "(utterances, frames, inputs)"
        return (
            f"features of shape {tuple(features.shape)} cannot be read; this model needs "
            f"{wanted} with {self.inputs} inputs: use the extractor it was made for"
        )
