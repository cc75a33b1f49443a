"""Prior of users' heads, estimated from speakers of public corpora, and from no one else.

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
too sure, and so would be the prior. Use speakers held out of pretraining.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared.calibration import (
    CalibrationHead,
    HeadPrior,
    calibrate_logits,
    conformal,
    conformal_fit,
    fit_head,
    identity_head,
)
from sottovoce.shared.errors import ModelError
from sottovoce.shared.models.losses import CROSS_ENTROPY, Loss, recover_class_posterior

PSEUDO_SPEAKERS: Final = 4.0
"""Weight of the default prior, in speakers."""

MIN_SD: Final = 0.1
"""No width is learned below this: public speakers differ less than users will."""

CORPUS_SHIFT: Final = 0.35
"""How far two corpora's best log temperatures lie apart: public labels say nothing below it."""

MAX_PUBLIC_WEIGHT: Final = 10.0
"""Public speakers weigh at most as much in a user's sets as so many of the user's own clips:
however similar they are, they are another corpus."""

_EM_ITERATIONS: Final = 8
_MIN_TARGET: Final = 1e-3
_MIN_LOG_TEMPERATURE: Final = -3.0
_BISECTIONS: Final = 40


def default_prior(classes: int, *, log_temperature: float = 0.0) -> HeadPrior:
    """Make the prior without public labels: no bias, and the default widths.

    Args:
        classes: How many classes the model has.
        log_temperature: Of the mean; 0 changes nothing.
    """
    return HeadPrior(mean=replace(identity_head(classes), log_temperature=log_temperature))


def undo_label_smoothing(logits: Tensor, smoothing: float, loss: Loss = CROSS_ENTROPY) -> float:
    """Find the log temperature that undoes label smoothing and loss, in [-3, 0], without labels.

    Label smoothing (Szegedy et al., CVPR 2016) trains for (1 - s) p + s / classes where p is right.
    Solved for p, with a floor of 1e-3 under negative shares, this gives targets; the temperature
    is the one whose probabilities come nearest to them, by cross-entropy. A loss whose least value
    lies elsewhere than at true chances is undone likewise, see ``losses.recover_class_posterior``.

    Args:
        logits: Of any utterances, shape (utterances, classes), finite.
        smoothing: Share s of the target that was spread over all classes, in [0, 1).
        loss: What the model was trained on.
    """
    if not len(logits) or (not smoothing and loss.is_proper):
        return 0.0
    logits = logits.double()
    spread_out = smoothing / logits.shape[1]
    posterior = recover_class_posterior(loss, torch.softmax(logits, 1))
    # A floor instead of negative targets, which no softmax reaches.
    wanted = (posterior - spread_out).clamp(min=_MIN_TARGET * (1 - smoothing))
    wanted = wanted / wanted.sum(1, keepdim=True)
    low, high = _MIN_LOG_TEMPERATURE, 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        sharp = torch.softmax(logits * math.exp(-middle), 1)
        too_sharp = float(((sharp - wanted) * logits).sum()) > 0
        low, high = (middle, high) if too_sharp else (low, middle)
    return (low + high) / 2


def fit_head_prior(
    speakers: Sequence[tuple[Tensor, Tensor]],
    *,
    classes: int,
    smoothing: float = 0.0,
    loss: Loss = CROSS_ENTROPY,
) -> HeadPrior:
    """Fit the prior over heads to public speakers under the global model.

    Args:
        speakers: For each public speaker the model's logits, shape (utterances, classes), and the
            labels, shape (utterances,). A speaker without utterances counts for nothing.
        classes: How many classes the model has.
        smoothing: Label smoothing that the model was trained with, in [0, 1).
        loss: What it was trained on.

    Returns:
        Mean, widths and the scores that prediction sets start from; without scores, and with the
        default's widths, where fewer than two classes are present. The width of the biases is at
        least 0.1 and at most the default's: a wider one lets five labels turn a class round. The
        biases of the mean are 0.

    Raises:
        ModelError: Logits or labels that cannot be used; the message names the speaker's index.
    """
    usable = [speaker for speaker in speakers if len(speaker[1]) > 0]
    present = sorted({int(label) for _, labels in usable for label in labels})
    if len(present) < 2:
        return default_prior(classes)
    chosen = [
        _restrict_classes(index, present, classes, *speaker) for index, speaker in enumerate(usable)
    ]
    start = undo_label_smoothing(torch.cat([logits for logits, _ in usable]), smoothing, loss)
    prior = default_prior(len(present), log_temperature=start)
    for _ in range(_EM_ITERATIONS):
        # E step: each speaker's head under the current prior; M step: mean and widths from all.
        posteriors = [
            _fit_posterior(index, *speaker, prior) for index, speaker in enumerate(chosen)
        ]
        prior = _shrink_to_default(
            torch.stack([mode for mode, _ in posteriors]),
            torch.stack([variance for _, variance in posteriors]),
            start,
        )
    moved = _beyond_corpus_shift(prior.mean.log_temperature - start)
    settled = default_prior(classes, log_temperature=start + moved)
    scores = conformal_fit.fit_population_scores(speaker_nonconformity(settled.mean, usable))
    # However many public speakers there are, they are of another corpus than users.
    weight = min(scores.concentration, MAX_PUBLIC_WEIGHT)
    scores = replace(scores, concentration=weight)
    return replace(settled, bias_sd=prior.bias_sd, scores=scores)


def _beyond_corpus_shift(shift: float) -> float:
    """Part of a shift that a difference between corpora would not explain."""
    return math.copysign(max(abs(shift) - CORPUS_SHIFT, 0.0), shift)


def speaker_nonconformity(
    mean: CalibrationHead, speakers: Sequence[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """Nonconformity scores of each speaker's utterances under the mean head; see ``conformal``."""
    return [
        conformal.nonconformity(torch.softmax(calibrate_logits(mean, logits).double(), 1), labels)
        for logits, labels in speakers
    ]


def _restrict_classes(
    index: int, present: Sequence[int], classes: int, logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Restrict a speaker's logits and labels to some classes."""
    if logits.shape[1:] != (classes,) or not 0 <= present[0] <= present[-1] < classes:
        raise ModelError(
            f"public speaker {index}: logits {tuple(logits.shape)} and labels {present} do not fit "
            f"{classes} classes"
        )
    chosen = torch.tensor(present)
    return logits[:, chosen], torch.searchsorted(chosen, labels)


def _fit_posterior(
    index: int, logits: Tensor, labels: Tensor, prior: HeadPrior
) -> tuple[Tensor, Tensor]:
    """Fit one speaker's most probable head and its variances, each (1 + classes,)."""
    try:
        found = fit_head(logits, labels, prior)
    except ModelError as error:
        raise ModelError(f"public speaker {index}: {error}") from error
    head = found.head
    mode = torch.cat([head.bias.new_tensor([head.log_temperature]), head.bias])
    return mode, found.variance


def _clamp_width(width: float, limit: float) -> float:
    """Clamp a width: public speakers differ too little, and a handful of labels says little."""
    return min(max(MIN_SD, width), limit)


def _shrink_to_default(modes: Tensor, variances: Tensor, start: float) -> HeadPrior:
    """Estimate mean and widths from modes and variances, shrunk towards the default."""
    speakers, width = modes.shape
    default = default_prior(width - 1, log_temperature=start)
    mean = modes.sum(0) / (speakers + PSEUDO_SPEAKERS)
    mean[0] += start * PSEUDO_SPEAKERS / (speakers + PSEUDO_SPEAKERS)
    # Preferences for classes are a corpus's own: the mean bias stays 0.
    mean[1:] = 0
    squares = ((modes - mean).square() + variances).sum(0)
    # As if so many more speakers had been seen at the default's width.
    drawn = squares + PSEUDO_SPEAKERS / default.precision
    widths = (drawn / (speakers + PSEUDO_SPEAKERS)).sqrt()
    return HeadPrior(
        mean=CalibrationHead(log_temperature=float(mean[0]), bias=mean[1:]),
        log_temperature_sd=_clamp_width(float(widths[0]), default.log_temperature_sd),
        bias_sd=_clamp_width(float(widths[1:].square().mean().sqrt()), default.bias_sd),
    )
