"""The bidirectional LSTM, written out: the gradients of its gates, for every utterance at once.

``nn.LSTM`` gives the gradient of a batch only. Here both directions of all utterances go through
the cell together, frame by frame, and one pass back (Hochreiter and Schmidhuber 1997, by the chain
rule through the frames) gives the gradient in each gate's preactivation. All weight gradients of
one utterance are then products of those with the gates' inputs.

Legend: T frames, D directions (2), B utterances, H units of one direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sottovoce.shared.models.layers import BidirectionalLstm, frame_mask

_GATES = 4
"""Input, forget, cell, output: torch's order."""


@dataclass(frozen=True, slots=True, eq=False)
class LSTMPass:
    """One pass of an LSTM over a batch.

    Attributes:
        outputs: What ``BidirectionalLstm`` gives, (utterances, frames, 2 x H), 0 behind the last
            frame.
        gate_preactivations: All gates before their activation, but for the recurrent part,
            (T, D, B, 4 x H); its gradient is that of the loss in the gates.
        inputs: What the gates read, in each direction's own order, (D, B, T, inputs).
        previous_states: The states before each frame, likewise, (D, B, T, H).
    """

    outputs: Tensor
    gate_preactivations: Tensor
    inputs: Tensor
    previous_states: Tensor


def run_lstm(lstm: BidirectionalLstm, features: Tensor, frames: Tensor) -> LSTMPass:
    """Run an LSTM, and keep what the gradients of single utterances need.

    Args:
        lstm: Its weights are held constant.
        features: Shape (utterances, frames, inputs), at least one utterance.
        frames: Real frames of each, shape (utterances,), int64.

    Returns:
        The same outputs as ``lstm(features, frames)`` up to float rounding, and the rest.
    """
    # An utterance without frames is read as one frame, or it would have no last state.
    order = _backwards(frames.clamp(min=1), features.shape[1])
    inputs = torch.stack([features, _reorder(features, order)])
    inward, across, bias = _weights(lstm)
    gates = torch.einsum("dbti,dgi->tdbg", inputs, inward) + bias.unsqueeze(1)
    if not gates.requires_grad:
        gates.requires_grad_()
    forward_states: Tensor = _Cell.apply(gates, across)
    states = forward_states.permute(1, 2, 0, 3)
    both = torch.cat([states[0], _reorder(states[1], order)], dim=-1)
    outputs = both.masked_fill(~frame_mask(both, frames.clamp(min=1)), 0)
    # The state before the first frame is 0.
    previous_states = torch.nn.functional.pad(states.detach()[:, :, :-1], (0, 0, 1, 0))
    return LSTMPass(outputs, gates, inputs.detach(), previous_states)


def _weights(lstm: BidirectionalLstm) -> tuple[Tensor, Tensor, Tensor]:
    """Stack both directions' weights: (D, 4 x H, inputs), (D, 4 x H, H) and (D, 4 x H)."""
    named = [
        torch.stack([getattr(lstm, f"{name}_l0{way}") for way in ("", "_reverse")])
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    # torch has two biases that only ever act as their sum.
    return named[0], named[1], named[2] + named[3]


def _backwards(frames: Tensor, longest: int) -> Tensor:
    """Order that reads each utterance from its own last frame, (utterances, frames)."""
    forwards = torch.arange(longest)
    turned = frames.unsqueeze(1) - 1 - forwards
    return torch.where(turned >= 0, turned, forwards)


def _reorder(features: Tensor, order: Tensor) -> Tensor:
    """Put frames in another order; ``_backwards`` twice is no change."""
    return features.gather(1, order.unsqueeze(-1).expand_as(features))


class _Cell(torch.autograd.Function):
    """Recurrence over frames: gates (T, D, B, 4 x H) -> states (T, D, B, H)."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, across: Tensor) -> Tensor:  # noqa: ANN401
        """Run frame by frame; keeps the activated gates and the cells."""
        activated, cells, states = _run(gates, across.mT.contiguous())
        ctx.save_for_backward(activated, cells, across)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """Run back to the gradients of the gates; the weights are constants."""
        activated, cells, across = ctx.saved_tensors
        return _run_back(gradients[0], activated, cells, across), None


def _run(gates: Tensor, across: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute activated gates (T, D, B, 4, H), cells and states (T, D, B, H)."""
    longest, ways, utterances, width = gates.shape
    units = width // _GATES
    activated = gates.new_empty(longest, ways, utterances, _GATES, units)
    cells, states = gates.new_empty(2, longest, ways, utterances, units)
    cell = state = gates.new_zeros(ways, utterances, units)
    for time in range(longest):
        preactivations = torch.baddbmm(gates[time], state, across).view(activated.shape[1:])
        gates_now = torch.sigmoid(preactivations, out=activated[time])
        # The candidate is squashed by tanh; the sigmoid was computed for all gates in one call.
        torch.tanh(preactivations[:, :, 2], out=gates_now[:, :, 2])
        input_gate, forget_gate, candidate, output_gate = gates_now.unbind(2)
        cell = torch.addcmul(forget_gate * cell, input_gate, candidate, out=cells[time])
        state = torch.mul(output_gate, cell.tanh(), out=states[time])
    return activated, cells, states


def _run_back(gradients: Tensor, activated: Tensor, cells: Tensor, across: Tensor) -> Tensor:
    """Backpropagate from the states to the gates' preactivations, (T, D, B, 4 x H)."""
    to_cell, to_gates = _local_gradients(activated, cells)
    found = torch.empty_like(activated)
    state_gradient = cell_gradient = gradients.new_zeros(gradients.shape[1:])
    # Through time from the last frame: a state acts on its own output and on the next gates.
    for time in reversed(range(len(gradients))):
        state_gradient = gradients[time] + state_gradient
        cell_gradient = torch.addcmul(cell_gradient, state_gradient, to_cell[time])
        gates_now = found[time]
        torch.mul(cell_gradient.unsqueeze(2), to_gates[time, :, :, :3], out=gates_now[:, :, :3])
        torch.mul(state_gradient, to_gates[time, :, :, 3], out=gates_now[:, :, 3])
        cell_gradient = cell_gradient * activated[time, :, :, 1]
        state_gradient = torch.bmm(gates_now.flatten(2), across)
    return found.flatten(3)


def _local_gradients(activated: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Local derivatives of a state in its cell (T, D, B, H), and of a cell in the gates."""
    input_gate, forget_gate, candidate, output_gate = activated.unbind(3)
    # The cell before the first frame is 0.
    previous_cells = torch.cat([torch.zeros_like(cells[:1]), cells[:-1]])
    cell_outputs = cells.tanh()
    gate_derivatives: Sequence[Tensor] = (
        candidate * input_gate * (1 - input_gate),
        previous_cells * forget_gate * (1 - forget_gate),
        input_gate * (1 - candidate.square()),
        cell_outputs * output_gate * (1 - output_gate),
    )
    return output_gate * (1 - cell_outputs.square()), torch.stack(tuple(gate_derivatives), dim=3)
