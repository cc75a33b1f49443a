"""Backbones of the shared models: utterances in, one vector each out.

Those on log-mel take frames at 50 Hz and halve their rate twice before the costly layers: emotion
moves slower than phonemes.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from sottovoce.shared.models.layers import AttentivePooling, BidirectionalLstm, ConvolutionBlock
from sottovoce.shared.models.network import Backbone

_DILATIONS = (1, 3, 9)
"""Of the tcn's blocks: together they see 27 frames at 12.5 Hz, 2.2 s."""
_RESIDUAL_SCALE = 0.1
"""How much a residual block adds at first; at 1, early steps of plain gradient descent run away."""


class IdentityBackbone(Backbone):
    """An utterance is one vector already."""

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, inputs, axes=2)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:  # noqa: ARG002  (one shape)
        """Hand on, (utterances, inputs)."""
        return features


class PoolingBackbone(Backbone):
    """Frames become one vector by pooling alone."""

    def __init__(self, inputs: int, pool: nn.Module) -> None:
        super().__init__(inputs, 2 * inputs)
        self.pool = pool

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Pool, (utterances, frames, inputs) -> (utterances, 2 x inputs)."""
        pooled: Tensor = self.pool(features, frames)
        return pooled


class HiddenLayerBackbone(Backbone):
    """Another backbone and one hidden layer on its vector."""

    def __init__(self, inner: Backbone, hidden: int) -> None:
        super().__init__(inner.inputs, hidden, axes=inner.axes)
        self.inner = inner
        self.layer = nn.Linear(inner.width, hidden)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Read, (utterances, width of what lies below) -> (utterances, hidden)."""
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
        """Read, (utterances, frames, inputs) -> (utterances, 2 x hidden)."""
        for layer in (self.first, self.second, self.third):
            features, frames = layer(features, frames)
        pooled: Tensor = self.pool(features, frames)
        return pooled


class Tcn(Backbone):
    """Residual convolutions, each looking thrice as far as the last, then attention.

    Unlike those of Bai et al. (arXiv 1803.01271) they look both ways: an utterance is over when it
    is recognised.
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
        """Read, (utterances, frames, inputs) -> (utterances, 2 x hidden)."""
        features, frames = self.first(features, frames)
        features, frames = self.second(features, frames)
        for block in self.blocks:
            change, _ = block(features, frames)
            features = features + _RESIDUAL_SCALE * change
        pooled: Tensor = self.pool(features, frames)
        return pooled


class BilstmAttention(Backbone):
    """Two convolutions that thin out time, a recurrent layer each way, then attention."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, 2 * hidden)
        self.first = ConvolutionBlock(inputs, hidden, kernel=5, stride=2)
        self.second = ConvolutionBlock(hidden, hidden, kernel=3, stride=2)
        self.lstm = BidirectionalLstm(hidden, hidden)
        self.pool = AttentivePooling(hidden, hidden)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Read, (utterances, frames, inputs) -> (utterances, 2 x hidden)."""
        features, frames = self.first(features, frames)
        features, frames = self.second(features, frames)
        if len(features) == 0:  # nothing to remember
            return features.new_zeros(0, self.width)
        remembered = self.lstm(features, frames)
        # Added to what it remembers of, which learns early, while the memory is still vague.
        pooled: Tensor = self.pool(features + remembered, frames)
        return pooled
