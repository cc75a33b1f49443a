"""A round of training as a pure function from state to state; Flower is glue around it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.server import sums
from sottovoce.shared import check
from sottovoce.shared.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregation:
    """How the server turns updates into a new model (FedOpt, Reddi et al. 2021).

    Attributes:
        optimiser: ``average`` adds the mean update (federated averaging, with momentum);
            ``adam`` scales it per weight, with bias correction.
        learning_rate: Of the server, above 0; with noise an upper limit, see ``weight_noise``.
        schedule: ``constant``, or ``cosine`` down to 0 over the plan's rounds (Loshchilov &
            Hutter 2017).
        weight_noise: Most standard deviation that privacy noise may leave in one weight by the
            end of training, above 0; the learning rate is lowered to keep it.
        momentum: Share of the old direction that is kept, in [0, 1).
        second_moment: Adam's beta2, in [0, 1).
        adaptivity: Adam's epsilon, above 0.
        averaged_rounds: How many of the last rounds' weights are averaged into the released model
            (Polyak averaging), at least 1. It touches noised weights only, so it costs nothing.
        update_norm: Validation refuses an update longer than this, above 0; where the plan bounds
            clips or users, one longer than any honest device's too (``limits.update``).
    """

    optimiser: str = "average"
    learning_rate: float = 1.0
    momentum: float = 0.0
    second_moment: float = 0.99
    adaptivity: float = 1e-8
    schedule: str = "constant"
    weight_noise: float = 0.75
    averaged_rounds: int = 1
    update_norm: float = 1e6

    def __post_init__(self) -> None:
        check.one_of(("average", "adam"), optimiser=self.optimiser)
        check.one_of(("constant", "cosine"), schedule=self.schedule)
        check.positive(
            weight_noise=self.weight_noise,
            learning_rate=self.learning_rate,
            adaptivity=self.adaptivity,
            update_norm=self.update_norm,
        )
        check.at_least(1, averaged_rounds=self.averaged_rounds)
        check.not_negative(momentum=self.momentum, second_moment=self.second_moment)
        check.inside(-1, 1, momentum=self.momentum, second_moment=self.second_moment)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class State:
    """All that the next round depends on.

    Attributes:
        round: Rounds done, from 0.
        weights: What the next round trains, shape (params,), float32.
        direction: Momentum, shape (params,), float32; zeros where none is kept.
        scale: Adam's second moment, shape (params,), float32.
        tail: Weights after each of the last rounds, shape (kept, params), float32.
        clip: The next round's clip norm on a user's update, shape (), float64; 1 where it is fixed.
    """

    round: int
    weights: Tensor
    direction: Tensor
    scale: Tensor
    tail: Tensor
    clip: Tensor

    @property
    def released(self) -> Tensor:
        """The model to use: the mean over the tail, shape (params,), float32."""
        return self.tail[0] if len(self.tail) == 1 else self.tail.double().mean(0).float()


def begin(weights: Tensor, clip: float = 1.0) -> State:
    """The state before the first round."""
    zeros = torch.zeros_like(weights)
    return State(
        round=0,
        weights=weights,
        direction=zeros,
        scale=zeros,
        tail=weights[None],
        clip=torch.tensor(clip, dtype=torch.float64),
    )


def class_weights(counts: Tensor, exponent: float) -> Tensor:
    """Class weights from label counts, shape (classes,), float32.

    Frequency to the power of ``-exponent``, with an average of 1 over utterances. A class counts as
    at least a quarter of its even share, so that noise cannot make one class everything.
    Post-processing of a booked release: it costs nothing more.

    Args:
        counts: Noised label counts of all devices, shape (classes,), float64.
        exponent: 1 weighs classes by their inverse frequency, 0 not at all.
    """
    share = counts.clamp(min=1.0) / counts.clamp(min=1.0).sum()
    weights = share.clamp(min=1 / len(counts) / 4) ** -exponent
    return (weights / (weights * share).sum()).float()


def learning_rate(
    settings: Aggregation,
    plan: Plan,
    number: int,
    *,
    devices: float,
    denominator: float,
    clip: float = 1.0,
) -> float:
    """The server's learning rate in a round; it depends on public figures alone.

    Args:
        settings: How the server aggregates.
        plan: For clip, noise, steps and rounds.
        number: The round, from 1.
        devices: How many contribute, or are expected to.
        denominator: What a device divides a step's sum by.
        clip: The round's clip norm, where it is learned.
    """
    rate = settings.learning_rate
    spread = clip * sums.spread(plan, devices=devices, denominator=denominator)
    if spread:
        # The mean update's noise adds up over rounds.
        rate = min(rate, settings.weight_noise / (spread / devices * sums.growth(plan)))
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * (number - 1) / plan.rounds))
    return rate


def advance(
    state: State,
    update: Tensor,
    settings: Aggregation,
    *,
    rate: float,
    clip: float | None = None,
) -> State:
    """The state after a round.

    Args:
        state: The state before it.
        update: Mean update of the round's devices, shape (params,).
        settings: How the server aggregates.
        rate: What :func:`learning_rate` gives.
        clip: The next round's clip norm; None keeps it.
    """
    number = state.round + 1
    kept = settings.momentum
    direction = kept * state.direction + (1 - kept) * update
    scale = state.scale
    if settings.optimiser == "adam":
        beta = settings.second_moment
        scale = beta * scale + (1 - beta) * update.square()
        step = direction / (1 - kept**number)
        step = step / ((scale / (1 - beta**number)).sqrt() + settings.adaptivity)
    else:
        step = direction / (1 - kept)  # heavy ball: the sum of past updates, not their mean
    weights = state.weights + rate * step
    start = [] if state.round == 0 else [state.tail]
    tail = torch.cat([*start, weights[None]])[-settings.averaged_rounds :]
    return State(
        round=number,
        weights=weights,
        direction=direction if kept else state.direction,
        scale=scale,
        tail=tail,
        clip=state.clip if clip is None else torch.tensor(clip, dtype=torch.float64),
    )
