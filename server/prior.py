"""Where users' heads start: a prior learned from speakers of public corpora, and from no one else.

Public speakers are a sample of how far people's heads lie from each other. Their heads are fitted
one by one, and mean and widths follow by expectation-maximisation for a hierarchical Gaussian
(Dempster, Laird and Rubin, 1977, with Laplace's approximation of each speaker's posterior). With
few speakers the result is shrunk: the mean towards the head that changes nothing, the widths
towards the defaults, each as if :data:`PSEUDO_SPEAKERS` more speakers had been seen there.

Only what travels from corpus to corpus is taken over: how much surer the model is than right (the
temperature), and how far users' heads lie from each other. Which class a model prefers on public
recordings is theirs; the mean bias is 0. Classes that no public speaker has are left out of the
fit: public clips would teach that they never occur.

The model must not have been trained on the logits given here: on its own training speakers it is
too sure, and so would be the prior. Use speakers held out of the warm start.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared.errors import ModelError
from sottovoce.shared.head import Head, HeadPrior, fit, identity, spread

PSEUDO_SPEAKERS: Final = 4.0
"""Weight of the default prior, in speakers."""

LEAST_SD: Final = 0.1
"""No width is learned below this: public speakers are more alike than users will be."""

_ROUNDS: Final = 8


def default_prior(classes: int) -> HeadPrior:
    """The prior without a public corpus: a head that changes nothing, and the default widths.

    Args:
        classes: How many classes the model has.
    """
    return HeadPrior(mean=identity(classes))


def population_prior(speakers: Sequence[tuple[Tensor, Tensor]], *, classes: int) -> HeadPrior:
    """The prior over heads, from public speakers under the global model.

    Args:
        speakers: For each public speaker the model's logits, shape (utterances, classes), and the
            labels, shape (utterances,). A speaker without utterances counts for nothing.
        classes: How many classes the model has.

    Returns:
        Mean and widths; :func:`default_prior` where fewer than two classes are heard. Widths are
        at least 0.1 and at most the default's: wider ones let five labels turn a class round. The
        biases of the mean are 0.

    Raises:
        ModelError: Logits or labels that cannot be used; the message names the speaker's place.
    """
    heard = [speaker for speaker in speakers if len(speaker[1]) > 0]
    present = sorted({int(label) for _, labels in heard for label in labels})
    if len(present) < 2:
        return default_prior(classes)
    heard = [_only(place, present, classes, *speaker) for place, speaker in enumerate(heard)]
    prior = default_prior(len(present))
    for _ in range(_ROUNDS):
        posteriors = [_posterior(place, *speaker, prior) for place, speaker in enumerate(heard)]
        prior = _shrunken(
            torch.stack([mode for mode, _ in posteriors]),
            torch.stack([variance for _, variance in posteriors]),
        )
    everyone = identity(classes).bias
    return replace(prior, mean=replace(prior.mean, bias=everyone))


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
        head = fit(logits, labels, prior)
        variance = spread(head, logits, labels, prior)
    except ModelError as error:
        raise ModelError(f"public speaker {place}: {error}") from error
    return torch.cat([head.bias.new_tensor([head.log_temperature]), head.bias]), variance


def _bounded(width: float, most: float) -> float:
    """A width that trusts neither public speakers' likeness nor a handful of labels too far."""
    return min(max(LEAST_SD, width), most)


def _shrunken(modes: Tensor, variances: Tensor) -> HeadPrior:
    """Mean and widths over speakers, both (speakers, 1 + classes), drawn towards the default."""
    speakers, width = modes.shape
    default = default_prior(width - 1)
    mean = modes.sum(0) / (speakers + PSEUDO_SPEAKERS)
    mean[1:] = 0
    squares = ((modes - mean).square() + variances).sum(0)
    drawn = squares + PSEUDO_SPEAKERS / default.precision
    widths = (drawn / (speakers + PSEUDO_SPEAKERS)).sqrt()
    return HeadPrior(
        mean=Head(log_temperature=float(mean[0]), bias=mean[1:]),
        log_temperature_sd=_bounded(float(widths[0]), default.log_temperature_sd),
        bias_sd=_bounded(float(widths[1:].square().mean().sqrt()), default.bias_sd),
    )
