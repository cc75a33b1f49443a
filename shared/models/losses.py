"""Training losses: of single utterances, and one that depends on a whole batch.

============= ================================================ =================================
kind          an utterance's loss                              from
============= ================================================ =================================
cross-entropy ``-log p[label]``                                targets smoothed: Szegedy et al. 2016
focal         ``(1 - p[label])^gamma * -log p[label]``         Lin et al., ICCV 2017
brier         ``sum over classes of (p - target)^2``           Brier 1950
mmce          cross-entropy, and ``weight`` times the batch's  Kumar et al., ICML 2018
              maximum mean calibration error
ordinal       cross-entropy, and ``weight`` times the squared  Hou et al. 2016
              earth mover's distance by valence and arousal
hierarchical  cross-entropy, and ``weight`` times ``-log p``   Bertinetto et al., CVPR 2020
              of the right branches by arousal and valence
============= ================================================ =================================

Each is multiplied by the label's public class weight. Targets may be soft, the shares of several
raters' votes: logarithms are then averaged over classes by share and class weight, and other losses
take shares in place of zeros and ones. Training uses only the gradient of every
utterance's loss in its logits; all other gradients follow by the chain rule.

All but ``focal`` and ``mmce`` are proper scoring rules: true probabilities minimise them. Focal
loss is not and makes a model underconfident; :func:`recover_class_posterior` inverts its effect.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.structured_losses import (
    Coordinates,
    compute_axis_distance,
    compute_group_surprise,
    locate_classes,
)

MAX_GAMMA: Final = 10.0
# Kumar et al. 2018 use this width throughout.
_KERNEL_WIDTH: Final = 0.4
_FLOOR: Final = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Training loss and its settings.

    Attributes:
        kind: One of ``LOSS_KINDS``.
        gamma: Focusing parameter of ``focal``, from 0 (cross-entropy) to 10.
        weight: Weight of what ``mmce``, ``ordinal`` and ``hierarchical`` add to cross-entropy,
            above 0.
        coordinates: Valence and arousal of each class, which a plan fills in for ``ordinal`` and
            ``hierarchical`` (:meth:`assign_coordinates`); others have none.

    Raises:
        SettingError: An unknown kind, a number out of range, or coordinates that are none.
    """

    kind: str = "cross-entropy"
    gamma: float = 2.0
    weight: float = 1.0
    coordinates: Coordinates = ()

    def __post_init__(self) -> None:
        validation.require_one_of(LOSS_KINDS, kind=self.kind)
        validation.require_range(0, MAX_GAMMA, gamma=self.gamma)
        validation.require_range(validation.MIN_FACTOR, validation.MAX_FACTOR, weight=self.weight)
        for place in self.coordinates:
            validation.require_range(-1, 1, valence=place[0], arousal=place[1])
        if self.coordinates and not self.uses_coordinates:
            raise SettingError(
                f"the loss {self.kind} has coordinates {self.coordinates}; leave them out, only "
                "ordinal and hierarchical read them"
            )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Loss":
        """From plain values, such as :meth:`to_dict` gives."""
        places = tuple((float(v), float(a)) for v, a in record.get("coordinates", ()))
        return cls(**dict(record) | {"coordinates": places})

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without coordinates where there are none, as before there were any.

        Example:
            >>> Loss(kind="brier").to_dict()
            {'kind': 'brier', 'gamma': 2.0, 'weight': 1.0}
        """
        record = asdict(self)
        if not self.coordinates:
            del record["coordinates"]
        return record

    @property
    def uses_coordinates(self) -> bool:
        """Whether the loss depends on where emotions lie by valence and arousal.

        Example:
            >>> [kind for kind in LOSS_KINDS if Loss(kind=kind).uses_coordinates]
            ['ordinal', 'hierarchical']
        """
        return self.kind in ("ordinal", "hierarchical")

    def assign_coordinates(self, labels: Sequence[str]) -> "Loss":
        """Fill in valence and arousal of a run's classes, where the loss needs coordinates.

        Args:
            labels: Emotions, in the order of the classes.

        Raises:
            SettingError: An emotion of which they are not known.

        Example:
            >>> Loss(kind="ordinal").assign_coordinates(["sad", "angry"]).coordinates
            ((-0.6, -0.3), (-0.5, 0.6))
            >>> Loss().assign_coordinates(["sad", "angry"]) == Loss()
            True
        """
        return replace(self, coordinates=locate_classes(labels)) if self.uses_coordinates else self

    def require_coordinates(self, classes: int) -> None:
        """Refuse a number of coordinates that is not that of the classes, where any are needed.

        Raises:
            SettingError: They are not.

        Example:
            >>> Loss(kind="ordinal").require_coordinates(2)
            Traceback (most recent call last):
            sottovoce.shared.errors.SettingError: the loss ordinal has 0 coordinates for 2 ...
        """
        if self.uses_coordinates and len(self.coordinates) != classes:
            raise SettingError(
                f"the loss {self.kind} has {len(self.coordinates)} coordinates for {classes} "
                "classes; a plan must place each: prepare it anew"
            )

    @property
    def couples_utterances(self) -> bool:
        """Whether an utterance's loss depends on the others of its batch.

        Example:
            >>> [kind for kind in LOSS_KINDS if Loss(kind=kind).couples_utterances]
            ['mmce']
        """
        return self.kind == "mmce"

    @property
    def supports_smoothing(self) -> bool:
        """Whether the loss has targets that may be smoothed.

        Example:
            >>> [kind for kind in LOSS_KINDS if Loss(kind=kind).supports_smoothing]
            ['cross-entropy', 'mmce', 'ordinal', 'hierarchical']
        """
        return self.kind in ("cross-entropy", "mmce", "ordinal", "hierarchical")

    @property
    def is_proper(self) -> bool:
        """Whether the loss is a proper scoring rule, so that there is nothing to invert.

        Example:
            >>> Loss(kind="focal", gamma=2.0).is_proper, Loss(kind="brier").is_proper
            (False, True)
        """
        return self.kind != "focal" or self.gamma == 0

    def require_uncoupled(self) -> None:
        """Refuse a loss for which per-utterance clipping does not bound an utterance's influence.

        Raises:
            SettingError: The loss couples utterances.

        Example:
            >>> Loss(kind="mmce").require_uncoupled()
            Traceback (most recent call last):
            sottovoce.shared.errors.SettingError: the loss mmce couples the utterances ...
        """
        if self.couples_utterances:
            raise SettingError(
                f"the loss {self.kind} couples the utterances of a batch: without one of them the "
                "gradients of all others move, and clipping each bounds nothing. Where one is "
                "promised anything, choose another loss; or hide users alone"
            )

    def check_smoothing(self, smoothing: float) -> None:
        """Refuse smoothed targets where the loss has none.

        Raises:
            SettingError: Smoothing above 0 with such a loss.

        Example:
            >>> CROSS_ENTROPY.check_smoothing(0.1)
            >>> Loss(kind="brier").check_smoothing(0.1)
            Traceback (most recent call last):
            sottovoce.shared.errors.SettingError: label_smoothing is 0.1 with the loss brier,...
        """
        if smoothing > 0 and not self.supports_smoothing:
            raise SettingError(
                f"label_smoothing is {smoothing:g} with the loss {self.kind}, which has no targets "
                "to smooth; set label_smoothing to 0"
            )


def utterance_losses(
    loss: Loss, logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Compute the loss of each utterance.

    Args:
        loss: Which one.
        logits: Shape (utterances, classes), float32.
        labels: Shape (utterances,), int64, each in [0, classes); or soft targets, shape
            (utterances, classes), float32, 0 or above, rows sum to 1.
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
    """Compute gradients of the summed losses of all utterances in their logits.

    Cross-entropy has a closed form, far cheaper than autograd; other losses use autograd.

    Args:
        loss: Which one.
        logits: Shape (utterances, classes), float32; may be marked as requiring gradients.
        labels: As in :func:`utterance_losses`.
        weights: Public weight of each class, shape (classes,), float32.
        smoothing: As in :func:`utterance_losses`.
        scale: Factor of the sum.

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
    if labels.dim() == 2:
        return _soft_gradients(logits, labels, weights, smoothing, scale)
    chosen = labels.unsqueeze(1)
    # d loss / d logits = (own weight + smoothed weights) * softmax - smoothed target; all in place,
    # because this runs at every training step.
    own = weights.index_select(0, labels).mul_(scale * (1 - smoothing)).unsqueeze_(1)
    probabilities = torch.softmax(logits, 1)
    if smoothing == 0:
        return probabilities.mul_(own).scatter_add_(1, chosen, -own)
    smoothed = weights * (scale * smoothing / len(weights))
    return probabilities.mul_(own + smoothed.sum()).sub_(smoothed).scatter_add_(1, chosen, -own)


def _soft_gradients(
    logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, scale: float
) -> Tensor:
    """Gradients of cross-entropy towards soft targets: the loss is linear in them."""
    # d loss / d logits = softmax * (sum of the weighted shares) - weighted shares.
    shares = targets * (1 - smoothing) + smoothing / targets.shape[1]
    weighted = shares.mul_(weights).mul_(scale)
    return torch.softmax(logits, 1).mul_(weighted.sum(1, keepdim=True)).sub_(weighted)


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Compute the class-weighted cross-entropy of each utterance.

    The loss of an utterance depends on that utterance alone: it is its class's weight times
    ``-log softmax(logits)[label]``, and is never divided by the weights of a batch.

    Args:
        logits: Shape (utterances, classes), float32.
        labels: As in :func:`utterance_losses`.
        weights: Public weight of each class, shape (classes,), float32.
        smoothing: Share of the target that is spread over all classes (Szegedy et al. 2016), in
            [0, 1); every class's share is multiplied by the weight of that class.

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
    """Recover the class posterior from the predictions of a model trained on a loss.

    Cross-entropy and Brier are proper, so predictions are returned unchanged. For focal loss the
    inverse is from Charoenphakdee et al., "On Focal Loss for Class-Posterior Probability
    Estimation" (CVPR 2021, theorem 11)::

        true ~ v / ((1 - v)^gamma - gamma (1 - v)^(gamma - 1) v log v)

    Args:
        loss: The loss that the model was trained with.
        probabilities: Shape (utterances, classes), float64, rows sum to 1.

    Returns:
        Same shape, rows sum to 1.

    Example:
        >>> predicted = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
        >>> recover_class_posterior(Loss(kind="focal", gamma=2.0), predicted).round(decimals=4)
        tensor([[0.7475, 0.2525]], dtype=torch.float64)
    """
    if loss.is_proper:
        return probabilities
    # At exactly 0 or 1 the formula is 0 / 0 or 0 times minus infinity.
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
    """Cross-entropy, multiplied by ``(1 - p[label])^gamma``."""
    soft = labels.dim() == 2
    surprise = -torch.log_softmax(logits, 1) if soft else _surprise(logits, labels)
    # Not 1 - p, which cancels near 0; the floor keeps the power's derivative finite there.
    miss = -torch.expm1(-surprise)
    each = miss.clamp(min=_FLOOR).pow(loss.gamma) * surprise
    return (weights * labels * each).sum(1) if soft else weights[labels] * each


def _surprise(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log p[label]``, shape (utterances,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def _label_weights(labels: Tensor, weights: Tensor) -> Tensor:
    """Weight of each utterance: of its class, or of its classes by their shares."""
    return labels @ weights if labels.dim() == 2 else weights[labels]


def _brier(
    loss: Loss,  # noqa: ARG001
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    smoothing: float,  # noqa: ARG001
) -> Tensor:
    """Squared distance to the target, at most 2 times the weight."""
    soft = labels.dim() == 2
    target = labels if soft else F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return _label_weights(labels, weights) * (torch.softmax(logits, 1) - target).square().sum(1)


def _mmce(loss: Loss, logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy, plus the batch's calibration error, the same for every utterance."""
    base = cross_entropy(logits, labels, weights, smoothing)
    return base + loss.weight * calibration_error(logits, labels, weights)


def _add_distance(distance: Callable[[Tensor, Tensor, Coordinates], Tensor]) -> _LossFunction:
    """Cross-entropy, and a distance to the target by valence and arousal."""

    def compute(
        loss: Loss, logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float
    ) -> Tensor:
        loss.require_coordinates(logits.shape[1])
        base = cross_entropy(logits, labels, weights, smoothing)
        apart = distance(logits, labels, loss.coordinates)
        return base + loss.weight * _label_weights(labels, weights) * apart

    return compute


def calibration_error(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Compute the maximum mean calibration error (MMCE) of a batch, a scalar, 0 or above.

    The largest mean of (correct - confidence) f(confidence) over all functions f of norm 1 in the
    reproducing kernel Hilbert space of exp(-|difference| / 0.4). Utterances have the weights of
    their classes.

    Args:
        logits: Shape (utterances, classes); rows with a NaN or an infinity are left out.
        labels: As in :func:`utterance_losses`; with soft targets a guess is right by the share of
            the votes that it has.
        weights: Public weight of each class, shape (classes,).

    Example:
        >>> logits = torch.tensor([[9.0, 0.0], [0.0, 9.0]])  # sure, and wrong
        >>> calibration_error(logits, torch.tensor([1, 0]), torch.ones(2)).round(decimals=2)
        tensor(1.)
    """
    sure, guess = torch.softmax(logits, 1).max(1)
    usable = logits.isfinite().all(1)
    if labels.dim() == 2:
        right = labels.gather(1, guess[:, None])[:, 0]
    else:
        right = (guess == labels).to(logits.dtype)
    each = _label_weights(labels, weights)
    gap = torch.where(usable, right - sure, 0.0) * each
    # Zero times NaN is NaN: a broken row must be replaced, not only weighted by 0.
    sure = torch.where(usable, sure, 0.0)
    kernel = torch.exp(-(sure[:, None] - sure[None, :]).abs() / _KERNEL_WIDTH)
    counted = (each * usable).sum().clamp(min=_FLOOR)
    # The floor keeps the derivative of the root finite where the error is 0.
    return (gap @ kernel @ gap / counted.square() + _FLOOR).sqrt()


_LOSS_FUNCTIONS: dict[str, _LossFunction] = {
    "cross-entropy": _cross_entropy,
    "focal": _focal,
    "brier": _brier,
    "mmce": _mmce,
    "ordinal": _add_distance(compute_axis_distance),
    "hierarchical": _add_distance(compute_group_surprise),
}
LOSS_KINDS: Final = tuple(_LOSS_FUNCTIONS)
CROSS_ENTROPY: Final = Loss()
