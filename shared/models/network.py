"""What all shared models are: a backbone that makes one vector an utterance, and a linear layer.

Every model is valid for per-utterance gradients: no batch normalisation, no state that one
utterance leaves for the next, no hidden randomness. Dropout's mask is an argument, so the same
call gives the same logits, whatever ran before, and there is no training mode to forget.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sottovoce.shared.errors import ModelError


class Backbone(nn.Module):
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


class ScaledBiasLinear(nn.Linear):
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
    """A backbone and the linear layer that reads it; dropout acts between the two.

    Args:
        backbone: Makes one vector an utterance.
        classes: How many emotions there are.
        dropout: Chance that a number of the vector is dropped in training, in [0, 1).
        bias_feature: The constant input that the bias weighs, above 0; a small one leaves more of
            a clipped gradient to the other weights.
    """

    def __init__(
        self, backbone: Backbone, classes: int, dropout: float, bias_feature: float = 1.0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = ScaledBiasLinear(backbone.width, classes, bias_feature)
        self.axes = backbone.axes
        self.inputs = backbone.inputs
        self.classes = classes
        self.dropout = dropout

    def forward(
        self, features: Tensor, frames: Tensor, dropout_mask: Tensor | None = None
    ) -> Tensor:
        """Logits of each utterance.

        Args:
            features: Shape (utterances, inputs), or (utterances, frames, inputs) padded with 0,
                float32.
            frames: Real frames of each utterance, shape (utterances,), int64, each 1 or more;
                models that read one vector an utterance do not look at it.
            dropout_mask: From :meth:`draw_dropout_mask`; ``None`` drops nothing.

        Returns:
            Shape (utterances, classes), float32, before the softmax. What lies behind an
            utterance's last frame does not change its logits, as long as it is 0.

        Raises:
            ModelError: Features of another number of axes or another width.
        """
        vectors = self.compute_embeddings(features, frames)
        logits: Tensor = self.head(vectors if dropout_mask is None else vectors * dropout_mask)
        return logits

    def compute_embeddings(self, features: Tensor, frames: Tensor) -> Tensor:
        """What the last layer reads, shape (utterances, width); arguments as in :meth:`forward`."""
        self.check_features(features)
        vectors: Tensor = self.backbone(features, frames)
        return vectors

    def check_features(self, features: Tensor) -> None:
        """Refuse features of another number of axes or another width.

        Raises:
            ModelError: They do not fit.
        """
        if features.dim() != self.axes or features.shape[-1] != self.inputs:
            raise ModelError(self._shape_error(features))

    def draw_dropout_mask(self, utterances: int, generator: torch.Generator) -> Tensor:
        """Draw a dropout mask, independently for every utterance.

        Returns:
            What to multiply the backbone's vectors by, shape (utterances, width), or
            (utterances, 1) where nothing is dropped, float32; its mean is 1.
        """
        if self.dropout == 0:
            return torch.ones(utterances, 1)
        draws = torch.rand(utterances, self.backbone.width, generator=generator)
        return (draws >= self.dropout) / (1 - self.dropout)

    def _shape_error(self, features: Tensor) -> str:
        """What to say of features that this model cannot read."""
        wanted = "(utterances, inputs)" if self.axes == 2 else "(utterances, frames, inputs)"
        return (
            f"features of shape {tuple(features.shape)} cannot be read; this model needs "
            f"{wanted} with {self.inputs} inputs: use the extractor it was made for"
        )
