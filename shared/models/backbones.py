"""Backbones of the shared models: from utterances to one vector each.

Backbones on log-mel spectrograms read frames at 50 Hz and halve the frame rate twice before the
expensive layers: emotion changes more slowly than phonemes.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from sottovoce.shared.models.layers import AttentivePooling, BidirectionalLstm, ConvolutionBlock
from sottovoce.shared.models.network import Backbone

_DILATIONS = (1, 3, 9)
"""Dilations of the TCN's blocks: their receptive field is 27 frames at 12.5 Hz, 2.2 s."""
_RESIDUAL_SCALE = 0.1
"""Factor of a residual block's output; with 1, early steps of plain gradient descent diverge."""


class IdentityBackbone(Backbone):
    """Backbone for utterances that are one vector already."""

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, inputs, axes=2)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:  # noqa: ARG002  (one shape)
        """Return the features unchanged, shape (utterances, inputs).

        Example:
            >>> import torch
            >>> IdentityBackbone(2)(torch.tensor([[1.0, 2.0]]), torch.ones(1, dtype=torch.int64))
            tensor([[1., 2.]])
        """
        return features


class PoolingBackbone(Backbone):
    """Backbone that only pools frames into one vector."""

    def __init__(self, inputs: int, pool: nn.Module) -> None:
        super().__init__(inputs, 2 * inputs)
        self.pool = pool

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Pool the frames, (utterances, frames, inputs) -> (utterances, 2 x inputs).

        Example:
            >>> import torch
            >>> from sottovoce.shared.models.layers import MeanStdPooling
            >>> frames = torch.tensor([4, 2])
            >>> PoolingBackbone(3, MeanStdPooling())(torch.zeros(2, 4, 3), frames).shape
            torch.Size([2, 6])
        """
        pooled: Tensor = self.pool(features, frames)
        return pooled


class HiddenLayerBackbone(Backbone):
    """Another backbone, followed by one hidden layer."""

    def __init__(self, inner: Backbone, hidden: int) -> None:
        super().__init__(inner.inputs, hidden, axes=inner.axes)
        self.inner = inner
        self.layer = nn.Linear(inner.width, hidden)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Compute the hidden layer, (utterances, inner width) -> (utterances, hidden).

        Example:
            >>> import torch
            >>> backbone = HiddenLayerBackbone(IdentityBackbone(3), hidden=5)
            >>> backbone(torch.zeros(2, 3), torch.ones(2, dtype=torch.int64)).shape
            torch.Size([2, 5])
        """
        return F.relu(self.layer(self.inner(features, frames)))


class CnnAttention(Backbone):
    """Three convolutions over time, then attention."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, 2 * hidden)
        self.first = ConvolutionBlock(inputs, hidden, kernel=5, stride=2)
        self.second = ConvolutionBlock(hidden, hidden, kernel=5, stride=2)
        self.third = ConvolutionBlock(hidden, hidden, kernel=5)
        self.pool = AttentivePooling(hidden, hidden)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Encode utterances, (utterances, frames, inputs) -> (utterances, 2 x hidden).

        Example:
            >>> import torch
            >>> CnnAttention(8, hidden=4)(torch.zeros(2, 16, 8), torch.tensor([16, 9])).shape
            torch.Size([2, 8])
        """
        for layer in (self.first, self.second, self.third):
            features, frames = layer(features, frames)
        pooled: Tensor = self.pool(features, frames)
        return pooled


class Tcn(Backbone):
    """Temporal convolutional network: residual dilated convolutions, then attention.

    Unlike those of Bai et al. (arXiv 1803.01271) the convolutions are not causal: an utterance is
    recognised after it has ended.

    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, 2 * hidden)
        self.first = ConvolutionBlock(inputs, hidden, kernel=5, stride=2)
        self.second = ConvolutionBlock(hidden, hidden, kernel=3, stride=2)
        self.blocks = nn.ModuleList(
            ConvolutionBlock(hidden, hidden, kernel=3, dilation=dilation) for dilation in _DILATIONS
        )
        self.pool = AttentivePooling(hidden, hidden)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Encode utterances, (utterances, frames, inputs) -> (utterances, 2 x hidden)."""
        features, frames = self.first(features, frames)
        features, frames = self.second(features, frames)
        for block in self.blocks:
            change, _ = block(features, frames)
            features = features + _RESIDUAL_SCALE * change
        pooled: Tensor = self.pool(features, frames)
        return pooled


class BilstmAttention(Backbone):
    """Two strided convolutions, a bidirectional LSTM, then attention."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, 2 * hidden)
        self.first = ConvolutionBlock(inputs, hidden, kernel=5, stride=2)
        self.second = ConvolutionBlock(hidden, hidden, kernel=3, stride=2)
        self.lstm = BidirectionalLstm(hidden, hidden)
        self.pool = AttentivePooling(hidden, hidden)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Encode utterances, (utterances, frames, inputs) -> (utterances, 2 x hidden)."""
        features, frames = self.first(features, frames)
        features, frames = self.second(features, frames)
        if len(features) == 0:  # packed sequences refuse an empty batch
            return features.new_zeros(0, self.width)
        remembered = self.lstm(features, frames)
        # A residual connection: the convolutions learn early, before the LSTM is of any use.
        pooled: Tensor = self.pool(features + remembered, frames)
        return pooled
