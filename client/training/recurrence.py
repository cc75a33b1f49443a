"""The bidirectional memory, written out: what each gate's slope was, for every utterance at once.

``nn.LSTM`` tells the gradient of a batch only. Here both directions of all utterances go through
the cell together, frame by frame, and one pass back (Hochreiter and Schmidhuber 1997, by the chain
rule through the frames) says how the loss changes with each gate before its squashing. All weight
gradients of one utterance are then products of those slopes with what the gates read.

Legend: T frames, D directions (2), B utterances, H units of one direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sottovoce.shared.models.layers import Memory, real_frames

_GATES = 4
"""Input, forget, cell, output: torch's order."""


@dataclass(frozen=True, slots=True, eq=False)
class Recalled:
    """One pass of a memory over a batch.

    Attributes:
        outputs: What ``Memory`` gives, (utterances, frames, 2 x H), 0 behind the last frame.
        gates: All gates before their squashing, but for what they hear of the last frame,
            (T, D, B, 4 x H); its gradient is the slope of the loss in the gates.
        read: What the gates read, in each direction's own order, (D, B, T, inputs).
        before: What they remembered, likewise, (D, B, T, H).
    """

    outputs: Tensor
    gates: Tensor
    read: Tensor
    before: Tensor


def recall(memory: Memory, features: Tensor, frames: Tensor) -> Recalled:
    """Run a memory, and keep what the gradients of single utterances need.

    Args:
        memory: Its weights are held constant.
        features: Shape (utterances, frames, inputs), at least one utterance.
        frames: Real frames of each, shape (utterances,), int64.

    Returns:
        The same outputs as ``memory(features, frames)`` up to float rounding, and the rest.
    """
    order = _backwards(frames.clamp(min=1), features.shape[1])
    read = torch.stack([features, _reorder(features, order)])
    inward, across, bias = _weights(memory)
    gates = torch.einsum("dbti,dgi->tdbg", read, inward) + bias.unsqueeze(1)
    if not gates.requires_grad:
        gates.requires_grad_()
    heard: Tensor = _Cell.apply(gates, across)
    states = heard.permute(1, 2, 0, 3)
    both = torch.cat([states[0], _reorder(states[1], order)], dim=-1)
    outputs = both.masked_fill(~real_frames(both, frames.clamp(min=1)), 0)
    before = torch.nn.functional.pad(states.detach()[:, :, :-1], (0, 0, 1, 0))
    return Recalled(outputs, gates, read.detach(), before)


def _weights(memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
    """Of both directions: (D, 4 x H, inputs), (D, 4 x H, H) and (D, 4 x H)."""
    named = [
        torch.stack([getattr(memory, f"{name}_l0{way}") for way in ("", "_reverse")])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    return named[0], named[1], named[2] + named[3]


def _backwards(frames: Tensor, longest: int) -> Tensor:
    """The order that reads each utterance from its own last frame, (utterances, frames)."""
    forwards = torch.arange(longest)
    turned = frames.unsqueeze(1) - 1 - forwards
    return torch.where(turned >= 0, turned, forwards)


def _reorder(features: Tensor, order: Tensor) -> Tensor:
    """Frames in another order; ``_backwards`` twice is no change."""
    return features.gather(1, order.unsqueeze(-1).expand_as(features))


class _Cell(torch.autograd.Function):
    """The recurrence over frames: gates (T, D, B, 4 x H) -> states (T, D, B, H)."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, across: Tensor) -> Tensor:  # noqa: ANN401
        """Frame by frame; keeps the squashed gates and the cells."""
        squashed, cells, states = _run(gates, across.mT.contiguous())
        ctx.save_for_backward(squashed, cells, across)
        return states

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """Slopes of the gates; the weights are constants."""
        squashed, cells, across = ctx.saved_tensors
        return _run_back(slopes[0], squashed, cells, across), None


def _run(gates: Tensor, across: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squashed gates (T, D, B, 4, H), cells and states (T, D, B, H)."""
    longest, ways, utterances, width = gates.shape
    units = width // _GATES
    squashed = gates.new_empty(longest, ways, utterances, _GATES, units)
    cells, states = gates.new_empty(2, longest, ways, utterances, units)
    cell = state = gates.new_zeros(ways, utterances, units)
    for time in range(longest):
        raw = torch.baddbmm(gates[time], state, across).view(squashed.shape[1:])
        now = torch.sigmoid(raw, out=squashed[time])
        torch.tanh(raw[:, :, 2], out=now[:, :, 2])
        taken, kept, new, shown = now.unbind(2)
        cell = torch.addcmul(kept * cell, taken, new, out=cells[time])
        state = torch.mul(shown, cell.tanh(), out=states[time])
    return squashed, cells, states


def _run_back(slopes: Tensor, squashed: Tensor, cells: Tensor, across: Tensor) -> Tensor:
    """Slopes of the gates, (T, D, B, 4 x H), from those of the states."""
    pull, scale = _local_slopes(squashed, cells)
    found = torch.empty_like(squashed)
    state_slope = cell_slope = slopes.new_zeros(slopes.shape[1:])
    for time in reversed(range(len(slopes))):
        state_slope = slopes[time] + state_slope
        cell_slope = torch.addcmul(cell_slope, state_slope, pull[time])
        now = found[time]
        torch.mul(cell_slope.unsqueeze(2), scale[time, :, :, :3], out=now[:, :, :3])
        torch.mul(state_slope, scale[time, :, :, 3], out=now[:, :, 3])
        cell_slope = cell_slope * squashed[time, :, :, 1]
        state_slope = torch.bmm(now.flatten(2), across)
    return found.flatten(3)


def _local_slopes(squashed: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """What a state's slope does to its cell (T, D, B, H), and a cell's to the gates."""
    taken, kept, new, shown = squashed.unbind(3)
    before = torch.cat([torch.zeros_like(cells[:1]), cells[:-1]])
    shape = cells.tanh()
    parts: Sequence[Tensor] = (
        new * taken * (1 - taken),
        before * kept * (1 - kept),
        taken * (1 - new.square()),
        shape * shown * (1 - shown),
    )
    return shown * (1 - shape.square()), torch.stack(tuple(parts), dim=3)
