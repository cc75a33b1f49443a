"""Where users' heads start: a prior learned from speakers of public corpora, and from no one else.

Public speakers are a sample of how far people's heads lie from each other. Their heads are fitted
one by one, and mean and widths follow by expectation-maximisation for a hierarchical Gaussian
(Dempster, Laird and Rubin, 1977, with Laplace's approximation of each speaker's posterior). With
few speakers the result is shrunk: the mean towards the head that changes nothing, the widths
towards the defaults, each as if :data:`PSEUDO_SPEAKERS` more speakers had been seen there.

Only what travels from corpus to corpus is taken over. How far the biases of users' heads lie from
each other does. Which class a model prefers on public recordings does not: the mean bias is 0. How
much surer the model is than right hardly does: a strange corpus makes any model look too sure.
So the mean temperature is the one that undoes training's label smoothing and loss, known without
any label, and public labels move it only by what is beyond :data:`CORPUS_SHIFT`; its width stays
the default's, since public speakers do not show how far corpora lie from each other. Classes that
no public speaker has are left out of the fit: public clips would teach that they never occur.

The model must not have been trained on the logits given here: on its own training speakers it is
too sure, and so would be the prior. Use speakers held out of the warm start.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared import conformal
from sottovoce.shared.errors import ModelError
from sottovoce.shared.heads import Head, HeadPrior, apply, fitted, identity
from sottovoce.shared.models.loss import CROSS_ENTROPY, Loss, believed

PSEUDO_SPEAKERS: Final = 4.0
"""Weight of the default prior, in speakers."""

LEAST_SD: Final = 0.1
"""No width is learned below this: public speakers are more alike than users will be."""

CORPUS_SHIFT: Final = 0.35
"""How far two corpora's best log temperatures lie apart: public labels say nothing below it."""

STRANGERS: Final = 10.0
"""Public people weigh at most as much in a user's sets as so many of the user's own clips: however
alike they are, they are another corpus."""

_ROUNDS: Final = 8
_LEAST_TARGET: Final = 1e-3
_SHARPEST: Final = -3.0
_HALVINGS: Final = 40


def default_prior(classes: int, *, log_temperature: float = 0.0) -> HeadPrior:
    """The prior without public labels: no bias, and the default widths.

    Args:
        classes: How many classes the model has.
        log_temperature: Of the mean; 0 changes nothing.
    """
    return HeadPrior(mean=replace(identity(classes), log_temperature=log_temperature))


def unsmoothed(logits: Tensor, smoothing: float, loss: Loss = CROSS_ENTROPY) -> float:
    """The log temperature that undoes label smoothing and the loss, in [-3, 0], without labels.

    Label smoothing (Szegedy et al., CVPR 2016) trains for (1 - s) p + s / classes where p is right.
    Solved for p, with a floor of 1e-3 under negative shares, this gives targets; the temperature
    is the one whose probabilities come nearest to them, by cross-entropy. A loss whose least value
    lies elsewhere than at true chances is undone likewise, see ``loss.believed``.

    Args:
        logits: Of any utterances, shape (utterances, classes), finite.
        smoothing: Share s of the target that was spread over all classes, in [0, 1).
        loss: What the model was trained on.
    """
    if not len(logits) or (not smoothing and loss.proper):
        return 0.0
    logits = logits.double()
    spread_out = smoothing / logits.shape[1]
    chances = believed(loss, torch.softmax(logits, 1))
    wanted = (chances - spread_out).clamp(min=_LEAST_TARGET * (1 - smoothing))
    wanted = wanted / wanted.sum(1, keepdim=True)
    low, high = _SHARPEST, 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        sharp = torch.softmax(logits * math.exp(-middle), 1)
        too_sharp = float(((sharp - wanted) * logits).sum()) > 0
        low, high = (middle, high) if too_sharp else (low, middle)
    return (low + high) / 2


def population_prior(
    speakers: Sequence[tuple[Tensor, Tensor]],
    *,
    classes: int,
    smoothing: float = 0.0,
    loss: Loss = CROSS_ENTROPY,
) -> HeadPrior:
    """The prior over heads, from public speakers under the global model.

    Args:
        speakers: For each public speaker the model's logits, shape (utterances, classes), and the
            labels, shape (utterances,). A speaker without utterances counts for nothing.
        classes: How many classes the model has.
        smoothing: Label smoothing that the model was trained with, in [0, 1).
        loss: What it was trained on.

    Returns:
        Mean, widths and the scores that prediction sets start from; without scores, and with the
        default's widths, where fewer than two classes are heard. The width of the biases is at
        least 0.1 and at most the default's: a wider one lets five labels turn a class round. The
        biases of the mean are 0.

    Raises:
        ModelError: Logits or labels that cannot be used; the message names the speaker's place.
    """
    heard = [speaker for speaker in speakers if len(speaker[1]) > 0]
    present = sorted({int(label) for _, labels in heard for label in labels})
    if len(present) < 2:
        return default_prior(classes)
    chosen = [_only(place, present, classes, *speaker) for place, speaker in enumerate(heard)]
    start = unsmoothed(torch.cat([logits for logits, _ in heard]), smoothing, loss)
    prior = default_prior(len(present), log_temperature=start)
    for _ in range(_ROUNDS):
        posteriors = [_posterior(place, *speaker, prior) for place, speaker in enumerate(chosen)]
        prior = _shrunken(
            torch.stack([mode for mode, _ in posteriors]),
            torch.stack([variance for _, variance in posteriors]),
            start,
        )
    moved = _beyond(prior.mean.log_temperature - start)
    settled = default_prior(classes, log_temperature=start + moved)
    scores = conformal.learn(usual_scores(settled.mean, heard))
    weight = min(scores.concentration, STRANGERS)
    scores = replace(scores, concentration=weight)
    return replace(settled, bias_sd=prior.bias_sd, scores=scores)


def _beyond(shift: float) -> float:
    """What is left of a shift that corpora alone would not explain."""
    return math.copysign(max(abs(shift) - CORPUS_SHIFT, 0.0), shift)


def usual_scores(mean: Head, speakers: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """How strange each speaker's utterances look behind the usual head; see ``conformal``."""
    return [
        conformal.scores(torch.softmax(apply(mean, logits).double(), 1), labels)
        for logits, labels in speakers
    ]


def _only(
    place: int, present: Sequence[int], classes: int, logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """A speaker's logits of some classes, and the labels among them."""
    if logits.shape[1:] != (classes,) or not 0 <= present[0] <= present[-1] < classes:
        raise ModelError(
            f"public speaker {place}: logits {tuple(logits.shape)} and labels {present} do not fit "
            f"{classes} classes"
        )
    chosen = torch.tensor(present)
    return logits[:, chosen], torch.searchsorted(chosen, labels)


def _posterior(
    place: int, logits: Tensor, labels: Tensor, prior: HeadPrior
) -> tuple[Tensor, Tensor]:
    """One speaker's most probable head and its variances, each (1 + classes,)."""
    try:
        found = fitted(logits, labels, prior)
    except ModelError as error:
        raise ModelError(f"public speaker {place}: {error}") from error
    head = found.head
    mode = torch.cat([head.bias.new_tensor([head.log_temperature]), head.bias])
    return mode, found.variance


def _bounded(width: float, most: float) -> float:
    """A width that trusts neither public speakers' likeness nor a handful of labels too far."""
    return min(max(LEAST_SD, width), most)


def _shrunken(modes: Tensor, variances: Tensor, start: float) -> HeadPrior:
    """Mean and widths over speakers, both (speakers, 1 + classes), drawn towards the default."""
    speakers, width = modes.shape
    default = default_prior(width - 1, log_temperature=start)
    mean = modes.sum(0) / (speakers + PSEUDO_SPEAKERS)
    mean[0] += start * PSEUDO_SPEAKERS / (speakers + PSEUDO_SPEAKERS)
    mean[1:] = 0
    squares = ((modes - mean).square() + variances).sum(0)
    drawn = squares + PSEUDO_SPEAKERS / default.precision
    widths = (drawn / (speakers + PSEUDO_SPEAKERS)).sqrt()
    return HeadPrior(
        mean=Head(log_temperature=float(mean[0]), bias=mean[1:]),
        log_temperature_sd=_bounded(float(widths[0]), default.log_temperature_sd),
        bias_sd=_bounded(float(widths[1:].square().mean().sqrt()), default.bias_sd),
    )
