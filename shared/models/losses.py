"""What training makes small: losses of single utterances, and one that looks at a whole batch.

============= ================================================ =================================
kind          an utterance's loss                              from
============= ================================================ =================================
cross-entropy ``-log p[label]``                                targets smoothed: Szegedy et al. 2016
focal         ``(1 - p[label])^gamma * -log p[label]``         Lin et al., ICCV 2017
brier         ``sum over classes of (p - target)^2``           Brier 1950
mmce          cross-entropy, and ``weight`` times the batch's  Kumar et al., ICML 2018
              maximum mean calibration error
============= ================================================ =================================

Each is weighed by the label's public class weight. Training needs nothing else of a loss: the
slope of every utterance's loss in the logits is taken from it, and all gradients follow from that.

Cross-entropy and Brier are proper: the least loss is reached by true chances. Focal is not, it
makes a model too unsure; :func:`recover_class_posterior` says what it makes of true chances, and
undoes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError

MAX_GAMMA: Final = 10.0
_KERNEL_WIDTH: Final = 0.4
_FLOOR: Final = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """A loss and its settings.

    Attributes:
        kind: One of ``LOSS_KINDS``.
        gamma: Of ``focal``: how little sure utterances count, from 0 (cross-entropy) to 10.
        weight: Of ``mmce``: how much the calibration error counts beside the cross-entropy, above
            0.

    Raises:
        SettingError: An unknown kind, or a number out of range.
    """

    kind: str = "cross-entropy"
    gamma: float = 2.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        validation.require_one_of(LOSS_KINDS, kind=self.kind)
        validation.require_non_negative(gamma=self.gamma)
        if self.gamma > MAX_GAMMA:
            raise SettingError(f"gamma is {self.gamma}; it must be at most {MAX_GAMMA:g}")
        validation.require_positive(weight=self.weight)

    @property
    def couples_utterances(self) -> bool:
        """Whether an utterance's loss depends on the others of its batch."""
        return self.kind == "mmce"

    @property
    def supports_smoothing(self) -> bool:
        """Whether its targets may be smoothed."""
        return self.kind in ("cross-entropy", "mmce")

    @property
    def is_proper(self) -> bool:
        """Whether true chances cost least, so that there is nothing to undo."""
        return self.kind != "focal" or self.gamma == 0

    def require_uncoupled(self) -> None:
        """Refuse a loss under which no bound on one utterance's gradient bounds the utterance.

        Raises:
            SettingError: The loss couples utterances.
        """
        if self.couples_utterances:
            raise SettingError(
                f"the loss {self.kind} couples the utterances of a batch: without one of them the "
                "gradients of all others move, and clipping each bounds nothing. Where one is "
                "promised anything, choose cross-entropy, focal or brier; or hide users alone"
            )

    def check_smoothing(self, smoothing: float) -> None:
        """Refuse smoothed targets where the loss has none.

        Raises:
            SettingError: Smoothing above 0 with such a loss.
        """
        if smoothing > 0 and not self.supports_smoothing:
            raise SettingError(
                f"label_smoothing is {smoothing:g} with the loss {self.kind}, which has no targets "
                "to smooth; set label_smoothing to 0"
            )


def utterance_losses(
    loss: Loss, logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Loss of each utterance.

    Args:
        loss: Which one.
        logits: Shape (utterances, classes), float32.
        labels: Shape (utterances,), int64, each in [0, classes).
        weights: Public weight of each class, shape (classes,), float32.
        smoothing: As in :func:`cross_entropy`, where the loss has smoothed targets.

    Returns:
        Shape (utterances,), float32.

    Guarantees:
        - Unless ``couples_utterances``, each depends on its own utterance alone, and an utterance
          whose logits hold a NaN or an infinity leaves the others as they were.

    Example:
        >>> logits, labels, weights = torch.zeros(1, 2), torch.tensor([1]), torch.ones(2)
        >>> utterance_losses(Loss(kind="focal", gamma=1.0), logits, labels, weights)
        tensor([0.3466])
    """
    return _LOSS_FUNCTIONS[loss.kind](loss, logits, labels, weights, smoothing)


def logit_gradients(
    loss: Loss,
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    smoothing: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """Gradients of all utterances' summed losses with respect to their logits.

    Of cross-entropy in closed form, at a fraction of what autograd costs; else by autograd.

    Args:
        loss: Which one.
        logits: Shape (utterances, classes), float32; autograd may take note of them.
        labels: Shape (utterances,), int64, each in [0, classes).
        weights: Public weight of each class, shape (classes,), float32.
        smoothing: As in :func:`utterance_losses`.
        scale: What the sum is multiplied by.

    Returns:
        Shape (utterances, classes), float32. Where logits hold a NaN or an infinity, the row does.

    Example:
        >>> logits, labels, weights = torch.zeros(1, 2), torch.tensor([1]), torch.ones(2)
        >>> logit_gradients(CROSS_ENTROPY, logits, labels, weights)
        tensor([[ 0.5000, -0.5000]])
    """
    if loss.kind != "cross-entropy":
        each = utterance_losses(loss, logits.requires_grad_(), labels, weights, smoothing)
        (found,) = torch.autograd.grad(each, logits, torch.full_like(each, scale))
        return found
    chosen = labels.unsqueeze(1)
    own = weights.index_select(0, labels).mul_(scale * (1 - smoothing)).unsqueeze_(1)
    probabilities = torch.softmax(logits, 1)
    if smoothing == 0:
        return probabilities.mul_(own).scatter_add_(1, chosen, -own)
    smoothed = weights * (scale * smoothing / len(weights))
    return probabilities.mul_(own + smoothed.sum()).sub_(smoothed).scatter_add_(1, chosen, -own)


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Class-weighted cross-entropy of each utterance.

    The loss of an utterance depends on that utterance alone: it is its class's weight times
    ``-log softmax(logits)[label]``, and is never divided by the weights of a batch.

    Args:
        logits: Shape (utterances, classes), float32.
        labels: Shape (utterances,), int64, each in [0, classes).
        weights: Public weight of each class, shape (classes,), float32.
        smoothing: Share of the target that is spread over all classes (Szegedy et al. 2016), in
            [0, 1); every class's share weighs what that class weighs.

    Returns:
        Shape (utterances,), float32, in nats.

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([1.0, 2.0]))
        tensor([1.3863])
    """
    return F.cross_entropy(
        logits, labels, weight=weights, reduction="none", label_smoothing=smoothing
    )


def recover_class_posterior(loss: Loss, probabilities: Tensor) -> Tensor:
    """The class posterior that a model trained on a loss has learned, from what it predicts.

    Cross-entropy and Brier ask for true chances, so they come back as they are. Focal asks for
    others; Charoenphakdee et al., "On Focal Loss for Class-Posterior Probability Estimation" (CVPR
    2021, theorem 11), give the way back::

        true ~ v / ((1 - v)^gamma - gamma (1 - v)^(gamma - 1) v log v)

    Args:
        loss: What the model was trained on.
        probabilities: Shape (utterances, classes), float64, rows sum to 1.

    Returns:
        Same shape, rows sum to 1.
    """
    if loss.is_proper:
        return probabilities
    clamped = probabilities.clamp(_FLOOR, 1 - _FLOOR)
    miss = 1 - clamped
    divisor = miss.pow(loss.gamma)
    divisor = divisor - loss.gamma * miss.pow(loss.gamma - 1) * clamped * clamped.log()
    odds = clamped / divisor
    return odds / odds.sum(1, keepdim=True)


_LossFunction = Callable[[Loss, Tensor, Tensor, Tensor, float], Tensor]


def _cross_entropy(
    loss: Loss,  # noqa: ARG001  (one shape for all kinds)
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    smoothing: float,
) -> Tensor:
    """See :func:`cross_entropy`."""
    return cross_entropy(logits, labels, weights, smoothing)


def _focal(
    loss: Loss,
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    smoothing: float,  # noqa: ARG001
) -> Tensor:
    """Cross-entropy, less for those that are sure; its slope is 0 where nothing is missing."""
    surprise = F.cross_entropy(logits, labels, reduction="none")
    # Not 1 - p, which has no digits near 0; the floor keeps a power's slope finite there.
    miss = -torch.expm1(-surprise)
    return weights[labels] * miss.clamp(min=_FLOOR).pow(loss.gamma) * surprise


def _brier(
    loss: Loss,  # noqa: ARG001
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    smoothing: float,  # noqa: ARG001
) -> Tensor:
    """Squared distance to the label's own distribution, at most 2 times the weight."""
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return weights[labels] * (torch.softmax(logits, 1) - target).square().sum(1)


def _mmce(loss: Loss, logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy, and the same share of the batch's calibration error for everybody."""
    base = cross_entropy(logits, labels, weights, smoothing)
    return base + loss.weight * calibration_error(logits, labels, weights)


def calibration_error(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Maximum mean calibration error (MMCE) of a batch, a scalar, 0 or above.

    The largest mean of (right - confidence) f(confidence) over all functions f of norm 1 in the
    space of the kernel exp(-|difference| / 0.4). Utterances count as their classes weigh.

    Args:
        logits: Shape (utterances, classes); a row that holds a NaN or an infinity counts for
            nothing.
        labels: Shape (utterances,).
        weights: Public weight of each class, shape (classes,).
    """
    sure, guess = torch.softmax(logits, 1).max(1)
    usable = logits.isfinite().all(1)
    gap = torch.where(usable, (guess == labels).to(logits.dtype) - sure, 0.0) * weights[labels]
    sure = torch.where(usable, sure, 0.0)
    kernel = torch.exp(-(sure[:, None] - sure[None, :]).abs() / _KERNEL_WIDTH)
    counted = (weights[labels] * usable).sum().clamp(min=_FLOOR)
    # The floor keeps the root's slope finite where nothing is wrong.
    return (gap @ kernel @ gap / counted.square() + _FLOOR).sqrt()


_LOSS_FUNCTIONS: dict[str, _LossFunction] = {
    "cross-entropy": _cross_entropy,
    "focal": _focal,
    "brier": _brier,
    "mmce": _mmce,
}
LOSS_KINDS: Final = tuple(_LOSS_FUNCTIONS)
CROSS_ENTROPY: Final = Loss()
