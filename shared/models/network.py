"""Architecture of all shared models: a backbone (one vector per utterance) and a linear layer.

Every model is valid for per-utterance gradients: no batch normalisation, no state that one
utterance leaves for the next, no hidden randomness. The dropout mask is an argument, so the same
call always gives the same logits, and there is no training mode to forget.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sottovoce.shared.errors import ModelError


class Backbone(nn.Module):
    """Maps utterances to one vector each: ``forward(features, frames)``, (utterances, width).

    Attributes:
        inputs: Width of its features.
        width: Width of its output vector.
        axes: Axes of its features: 2 if an utterance is one vector, 3 if it has frames.
    """

    def __init__(self, inputs: int, width: int, *, axes: int = 3) -> None:
        super().__init__()
        self.inputs = inputs
        self.width = width
        self.axes = axes


class ScaledBiasLinear(nn.Linear):
    """Linear layer whose bias multiplies a constant input other than 1.

    A module of its own, so that hooks for per-utterance gradients can recognise it.

    """

    def __init__(self, inputs: int, classes: int, bias_feature: float) -> None:
        super().__init__(inputs, classes)
        self.bias_feature = bias_feature

    def forward(self, vector: Tensor) -> Tensor:
        """Compute logits, (utterances, inputs) -> (utterances, classes).

        Example:
            >>> layer = ScaledBiasLinear(2, 3, bias_feature=0.1)
            >>> layer(torch.zeros(4, 2)).shape
            torch.Size([4, 3])
        """
        return F.linear(vector, self.weight, self.bias * self.bias_feature)


class Network(nn.Module):
    """A backbone followed by a linear layer, with dropout between the two.

    Args:
        backbone: Maps each utterance to one vector.
        classes: Number of emotions.
        dropout: Probability that an entry of the vector is dropped in training, in [0, 1).
        bias_feature: Constant input of the bias, above 0; a small one leaves more of a clipped
            gradient to the other weights.
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
        """Compute the logits of each utterance.

        Args:
            features: Shape (utterances, inputs), or (utterances, frames, inputs) padded with 0,
                float32.
            frames: Real frames of each utterance, shape (utterances,), int64, each 1 or more;
                ignored by models that read one vector per utterance.
            dropout_mask: From :meth:`draw_dropout_mask`; ``None`` drops nothing.

        Returns:
            Shape (utterances, classes), float32, before the softmax. Zero padding behind an
            utterance's last frame does not change its logits.

        Raises:
            ModelError: Features of another number of axes or another width.

        Example:
            >>> from sottovoce.shared.models import ModelSpec, build_network
            >>> network = build_network(ModelSpec(kind="linear", inputs=3, classes=2), seed=0)
            >>> network(torch.ones(1, 3), torch.tensor([1])).tolist()  # a linear model starts at 0
            [[0.0, 0.0]]
        """
        vectors = self.compute_embeddings(features, frames)
        logits: Tensor = self.head(vectors if dropout_mask is None else vectors * dropout_mask)
        return logits

    def compute_embeddings(self, features: Tensor, frames: Tensor) -> Tensor:
        """Compute the last layer's input; arguments as in :meth:`forward`.

        Returns:
            Shape (utterances, width), float32.

        Example:
            >>> from sottovoce.shared.models import ModelSpec, build_network
            >>> spec = ModelSpec(kind="mlp", inputs=3, classes=2, hidden=7)
            >>> network = build_network(spec, seed=0)
            >>> network.compute_embeddings(torch.ones(1, 3), torch.tensor([1])).shape
            torch.Size([1, 7])
        """
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
            Factors of the backbone's vectors, shape (utterances, width), or (utterances, 1) if
            nothing is dropped, float32; their mean is 1.

        Example:
            >>> from sottovoce.shared.models import ModelSpec, build_network
            >>> spec = ModelSpec(kind="linear", inputs=4, classes=2, dropout=0.5)
            >>> mask = build_network(spec, seed=0).draw_dropout_mask(2, torch.Generator())
            >>> mask.shape, {0.0, 2.0} >= set(mask.flatten().tolist())
            (torch.Size([2, 4]), True)
        """
        if self.dropout == 0:
            return torch.ones(utterances, 1)
        draws = torch.rand(utterances, self.backbone.width, generator=generator)
        # Inverted dropout: prediction needs no rescaling.
        return (draws >= self.dropout) / (1 - self.dropout)

    def _shape_error(self, features: Tensor) -> str:
        wanted = "(utterances, inputs)" if self.axes == 2 else "(utterances, frames, inputs)"
        return (
            f"features of shape {tuple(features.shape)} cannot be read; this model needs "
            f"{wanted} with {self.inputs} inputs: use the extractor it was made for"
        )
