"""Layers that ignore padding: values behind an utterance's last frame change nothing."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

_VARIANCE_FLOOR = 1e-5
"""Keeps the derivative of the square root finite where an utterance is constant."""


def frame_mask(features: Tensor, frames: Tensor) -> Tensor:
    """Mask of the real frames, shape (utterances, frames, 1), bool.

    Example:
        >>> frame_mask(torch.zeros(2, 3, 1), torch.tensor([3, 1]))[:, :, 0]
        tensor([[ True,  True,  True],
                [ True, False, False]])
    """
    positions = torch.arange(features.shape[1], device=features.device)
    return (positions < frames.unsqueeze(-1)).unsqueeze(-1)


def weighted_moments(features: Tensor, weights: Tensor) -> Tensor:
    """Compute weighted mean and standard deviation over time.

    Args:
        features: Shape (utterances, frames, features).
        weights: Weight of each frame, shape (utterances, frames, 1), summing to 1 over frames.

    Returns:
        Means, then deviations, shape (utterances, 2 x features). A deviation is taken from the
        centred features: the difference of two large squares could come out negative.

    Example:
        >>> signal = torch.tensor([[[1.0], [3.0]]])
        >>> weighted_moments(signal, torch.full((1, 2, 1), 0.5))
        tensor([[2.0000, 1.0000]])
    """
    mean = (weights * features).sum(dim=1, keepdim=True)
    variance = (weights * (features - mean).square()).sum(dim=1)
    return torch.cat([mean.squeeze(1), (variance + _VARIANCE_FLOOR).sqrt()], dim=-1)


class MeanStdPooling(nn.Module):
    """Mean and standard deviation over time: (u, frames, features) -> (u, 2 x features)."""

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Pool each utterance's real frames with equal weights.

        Example:
            >>> padded = torch.tensor([[[1.0], [3.0], [0.0]]])
            >>> MeanStdPooling()(padded, torch.tensor([2]))
            tensor([[2.0000, 1.0000]])
        """
        mask = frame_mask(features, frames)
        real = mask.to(features.dtype)
        # Filled, since a weight of 0 times an infinity is NaN. The clamp leaves an utterance
        # without frames at a mean of 0 instead of NaN.
        return weighted_moments(
            features.masked_fill(~mask, 0), real / real.sum(dim=1, keepdim=True).clamp(min=1)
        )


class AttentivePooling(nn.Module):
    """Attentive statistics pooling with learnt weights of frames (arXiv 1803.10963).

    (utterances, frames, features) -> (utterances, 2 x features)
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.projection = nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Pool each utterance's real frames with learnt weights.

        Example:
            >>> pool = AttentivePooling(3, hidden=2)
            >>> pool(torch.zeros(2, 5, 3), torch.tensor([5, 2])).shape
            torch.Size([2, 6])
        """
        padding = ~frame_mask(features, frames)
        # Filled first, since a weight of 0 times an infinity is NaN, and so is its gradient.
        features = features.masked_fill(padding, 0)
        scores: Tensor = self.score(torch.tanh(self.projection(features)))
        # Not -inf: the softmax of an utterance without frames would be NaN.
        lowest = torch.finfo(scores.dtype).min
        return weighted_moments(features, scores.masked_fill(padding, lowest).softmax(dim=1))


class ConvolutionBlock(nn.Module):
    """Convolution over time, layer norm of each frame, GELU; padding stays 0.

    The norm is taken over one frame at a time: over all frames, it would depend on padding.
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        # "Same" padding for odd kernels: without stride, frames keep their positions.
        around = dilation * (kernel - 1) // 2
        self.stride = stride
        self.convolution = nn.Conv1d(
            inputs, outputs, kernel, stride=stride, padding=around, dilation=dilation
        )
        self.norm = nn.LayerNorm(outputs)

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Filter each utterance and count the frames that remain.

        Args:
            features: Shape (utterances, frames, inputs), 0 behind each utterance's last frame.
            frames: Shape (utterances,), int64.

        Returns:
            Shape (utterances, frames / stride rounded up, outputs), and the real frames of each.

        Example:
            >>> block = ConvolutionBlock(2, 4, kernel=5, stride=2)
            >>> filtered, frames = block(torch.zeros(1, 7, 2), torch.tensor([7]))
            >>> filtered.shape, frames
            (torch.Size([1, 4, 4]), tensor([4]))
        """
        # Conv1d wants (utterances, inputs, frames). Contiguous again: later layers would copy it.
        filtered = self.convolution(features.mT).mT.contiguous()
        # As Conv1d counts with this padding: rounded up.
        left = (frames + self.stride - 1) // self.stride
        active = F.gelu(self.norm(filtered))
        # Bias and norm make padding non-zero; the next convolution must read zeros there.
        return active.masked_fill(~frame_mask(active, left), 0), left


class BidirectionalLstm(nn.LSTM):
    """Bidirectional LSTM; the backward pass starts at each utterance's last frame.

    A module of its own, so that per-utterance gradients can be computed for it as a whole:
    (utterances, frames, inputs) -> (utterances, frames, outputs).

    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs // 2, batch_first=True, bidirectional=True)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:  # type: ignore[override]
        """Run both directions; outputs are 0 behind each utterance's last frame.

        Needs at least one utterance.

        Example:
            >>> lstm = BidirectionalLstm(3, 4)
            >>> outputs = lstm(torch.ones(2, 5, 3), torch.tensor([5, 2])).detach()
            >>> outputs.shape, float(outputs[1, 2:].abs().sum())
            (torch.Size([2, 5, 4]), 0.0)
        """
        # Packing needs lengths of 1 or more on the CPU; a row without frames is pooled away anyway.
        packed = pack_padded_sequence(
            features, frames.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        remembered, _ = super().forward(packed)
        unpacked: Tensor = pad_packed_sequence(
            remembered, batch_first=True, total_length=features.shape[1]
        )[0]
        return unpacked
