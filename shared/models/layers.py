"""Layers that respect padding: what lies behind an utterance's last frame changes nothing."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

_VARIANCE_FLOOR = 1e-5
"""Keeps the slope of the square root finite where an utterance does not vary."""


def frame_mask(features: Tensor, frames: Tensor) -> Tensor:
    """Which frames are real: shape (utterances, frames, 1), bool."""
    positions = torch.arange(features.shape[1], device=features.device)
    return (positions < frames.unsqueeze(-1)).unsqueeze(-1)


def weighted_moments(features: Tensor, weights: Tensor) -> Tensor:
    """Mean and standard deviation over time.

    Args:
        features: Shape (utterances, frames, features).
        weights: Weight of each frame, shape (utterances, frames, 1), summing to 1 over frames.

    Returns:
        Means, then deviations, shape (utterances, 2 x features). A deviation is taken from the
        centred features: the difference of two large squares could come out negative.
    """
    mean = (weights * features).sum(dim=1, keepdim=True)
    variance = (weights * (features - mean).square()).sum(dim=1)
    return torch.cat([mean.squeeze(1), (variance + _VARIANCE_FLOOR).sqrt()], dim=-1)


class MeanStdPooling(nn.Module):
    """Every frame counts the same: (utterances, frames, features) -> (utterances, 2 x features)."""

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Mean and standard deviation over each utterance's real frames."""
        real = frame_mask(features, frames).to(features.dtype)
        return weighted_moments(features, real / real.sum(dim=1, keepdim=True).clamp(min=1))


class AttentivePooling(nn.Module):
    """Attentive statistics pooling: the model learns which frames count (arXiv 1803.10963).

    (utterances, frames, features) -> (utterances, 2 x features)
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.projection = nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Mean and standard deviation over time, under the learnt weights."""
        scores: Tensor = self.score(torch.tanh(self.projection(features)))
        lowest = torch.finfo(scores.dtype).min  # not -inf: without any frame it would give NaN
        scores = scores.masked_fill(~frame_mask(features, frames), lowest)
        return weighted_moments(features, scores.softmax(dim=1))


class ConvolutionBlock(nn.Module):
    """Convolution over time, layer norm over each frame, GELU; padding stays 0.

    The norm is taken over one frame at a time: over all frames, padding would move it.
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        around = dilation * (kernel - 1) // 2
        self.stride = stride
        self.convolution = nn.Conv1d(
            inputs, outputs, kernel, stride=stride, padding=around, dilation=dilation
        )
        self.norm = nn.LayerNorm(outputs)

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Filter each utterance and count the frames that are left.

        Args:
            features: Shape (utterances, frames, inputs), 0 behind each utterance's last frame.
            frames: Shape (utterances,), int64.

        Returns:
            Shape (utterances, frames / stride rounded up, outputs), and the real frames of each.
        """
        # Convolutions want (utterances, inputs, frames); laid out anew once, not by every reader.
        filtered = self.convolution(features.mT).mT.contiguous()
        left = (frames + self.stride - 1) // self.stride
        active = F.gelu(self.norm(filtered))
        return active * frame_mask(active, left), left


class BidirectionalLstm(nn.LSTM):
    """A recurrent layer each way; the way back starts at each utterance's own last frame.

    A module of its own, so that whoever asks for the gradients of single utterances knows what it
    reads: (utterances, frames, inputs) -> (utterances, frames, outputs).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs // 2, batch_first=True, bidirectional=True)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:  # type: ignore[override]
        """Remember, 0 behind each utterance's last frame; needs at least one utterance."""
        packed = pack_padded_sequence(
            features, frames.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        remembered, _ = super().forward(packed)
        unpacked: Tensor = pad_packed_sequence(
            remembered, batch_first=True, total_length=features.shape[1]
        )[0]
        return unpacked
