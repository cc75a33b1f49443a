"""A round of training as a pure function from state to state; Flower is glue around it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.server.aggregation import private_sums
from sottovoce.shared import validation
from sottovoce.shared.protocol.training_plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregationSettings:
    """Settings of how the server turns updates into a new model (FedOpt, Reddi et al. 2021).

    Attributes:
        optimiser: ``average`` adds the mean update (federated averaging, with momentum);
            ``adam`` scales it per weight, with bias correction.
        learning_rate: Of the server, above 0; with noise an upper limit, see
            ``max_weight_noise_std``.
        schedule: ``constant``, or ``cosine`` down to 0 over the plan's rounds (Loshchilov &
            Hutter 2017).
        max_weight_noise_std: Most standard deviation that privacy noise may leave in one weight by
            the end of training, above 0; the learning rate is lowered to keep it.
        momentum: Decay of the first moment, in [0, 1).
        second_moment_decay: Adam's beta2, in [0, 1).
        adaptivity: Adam's epsilon, above 0.
        averaged_rounds: How many of the last rounds' weights are averaged into the released model
            (Polyak averaging), at least 1. It touches noised weights only, so it costs nothing.
        max_update_norm: Validation refuses an update of a larger norm, above 0; where the plan
            bounds clips or users, also one larger than any honest device's
            (``reply_limits.max_update_norm``).
    """

    optimiser: str = "average"
    learning_rate: float = 1.0
    momentum: float = 0.0
    second_moment_decay: float = 0.99
    adaptivity: float = 1e-8
    schedule: str = "constant"
    max_weight_noise_std: float = 0.75
    averaged_rounds: int = 1
    max_update_norm: float = 1e6

    def __post_init__(self) -> None:
        validation.require_one_of(("average", "adam"), optimiser=self.optimiser)
        validation.require_one_of(("constant", "cosine"), schedule=self.schedule)
        validation.require_norm(
            learning_rate=self.learning_rate,
            max_weight_noise_std=self.max_weight_noise_std,
            adaptivity=self.adaptivity,
            max_update_norm=self.max_update_norm,
        )
        validation.require_count(1, validation.MAX_ROUNDS, averaged_rounds=self.averaged_rounds)
        validation.require_fraction(
            momentum=self.momentum, second_moment_decay=self.second_moment_decay
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServerState:
    """State of training on the server: all that the next round depends on.

    Attributes:
        round: Rounds done, from 0.
        weights: What the next round trains, shape (params,), float32.
        first_moment: Momentum, shape (params,), float32; zeros where none is kept.
        second_moment: Adam's second moment, shape (params,), float32.
        recent_weights: Weights after each of the last rounds, shape (rounds, params), float32.
        clip_norm: The next round's clip norm on a user's update, shape (), float64; 1 where it is
            fixed.
    """

    round: int
    weights: Tensor
    first_moment: Tensor
    second_moment: Tensor
    recent_weights: Tensor
    clip_norm: Tensor

    @property
    def released_weights(self) -> Tensor:
        """Model to use: the mean of ``recent_weights``, shape (params,), float32."""
        return (
            self.recent_weights[0]
            if len(self.recent_weights) == 1
            else self.recent_weights.double().mean(0).float()
        )


def initial_state(weights: Tensor, clip_norm: float = 1.0) -> ServerState:
    """Make the state before the first round."""
    zeros = torch.zeros_like(weights)
    return ServerState(
        round=0,
        weights=weights,
        first_moment=zeros,
        second_moment=zeros,
        recent_weights=weights[None],
        clip_norm=torch.tensor(clip_norm, dtype=torch.float64),
    )


def compute_class_weights(counts: Tensor, exponent: float) -> Tensor:
    """Compute class weights from label counts, shape (classes,), float32.

    Frequency to the power of ``-exponent``, with an average of 1 over utterances. A class counts as
    at least a quarter of its even share, so that noise cannot make one class everything.
    Post-processing of a booked release: it costs nothing more.

    Args:
        counts: Noised label counts of all devices, shape (classes,), float64.
        exponent: 1 weighs classes by their inverse frequency, 0 not at all.
    """
    # Noise can make a count negative, and a negative share has no power.
    share = counts.clamp(min=1.0) / counts.clamp(min=1.0).sum()
    weights = share.clamp(min=1 / len(counts) / 4) ** -exponent
    # An average of 1: class weights change what a step is for, not its size.
    return (weights / (weights * share).sum()).float()


def compute_learning_rate(
    settings: AggregationSettings,
    plan: Plan,
    number: int,
    *,
    devices: float,
    denominator: float,
    clip_norm: float = 1.0,
) -> float:
    """Compute the server's learning rate in a round; it depends on public figures alone.

    Args:
        settings: How the server aggregates.
        plan: For clip, noise, steps and rounds.
        number: The round, from 1.
        devices: How many contribute, or are expected to.
        denominator: What a device divides a step's sum by.
        clip_norm: The round's clip norm, where it is learned.
    """
    rate = settings.learning_rate
    noise_std = clip_norm * private_sums.noise_std(plan, devices=devices, denominator=denominator)
    if noise_std:
        # The mean update's noise adds up over rounds.
        rate = min(
            rate,
            settings.max_weight_noise_std
            / (noise_std / devices * private_sums.cumulative_noise_factor(plan)),
        )
    if settings.schedule == "cosine":
        # number - 1: the first round has the full rate, and the last one is not lost at 0.
        rate *= 0.5 * (1 + math.cos(math.pi * (number - 1) / plan.rounds))
    return rate


def apply_update(
    state: ServerState,
    update: Tensor,
    settings: AggregationSettings,
    *,
    rate: float,
    next_clip_norm: float | None = None,
) -> ServerState:
    """Compute the state after a round.

    Args:
        state: The state before it.
        update: Mean update of the round's devices, shape (params,).
        settings: How the server aggregates.
        rate: What :func:`compute_learning_rate` gives.
        next_clip_norm: The next round's clip norm; None keeps it.
    """
    number = state.round + 1
    momentum = settings.momentum
    first_moment = momentum * state.first_moment + (1 - momentum) * update
    second_moment = state.second_moment
    if settings.optimiser == "adam":
        beta = settings.second_moment_decay
        second_moment = beta * second_moment + (1 - beta) * update.square()
        # Bias correction (Kingma & Ba 2015, algorithm 1): moments begin at zero.
        step = first_moment / (1 - momentum**number)
        step = step / ((second_moment / (1 - beta**number)).sqrt() + settings.adaptivity)
    else:
        step = first_moment / (1 - momentum)  # heavy ball: the sum of past updates, not their mean
    weights = state.weights + rate * step
    start = [] if state.round == 0 else [state.recent_weights]
    recent_weights = torch.cat([*start, weights[None]])[-settings.averaged_rounds :]
    return ServerState(
        round=number,
        weights=weights,
        first_moment=first_moment if momentum else state.first_moment,
        second_moment=second_moment,
        recent_weights=recent_weights,
        clip_norm=state.clip_norm
        if next_clip_norm is None
        else torch.tensor(next_clip_norm, dtype=torch.float64),
    )
