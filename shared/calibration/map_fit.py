"""Maximum a posteriori fit of a user's head: several models, averaged by their evidence.

A user provides about five labels; maximum likelihood would need hundreds. So each model is fitted
by maximum a posteriori under a Gaussian prior. Without labels the fit is the prior's mean, a few
labels move it a little, and with many labels the prior no longer matters. Labels of a single class,
or labels that are all wrong, cannot push it to infinity.

The models are temperature and biases alone, and the same with an adapter of the last layer, whose
weights have one of ``ADAPTER_SDS`` as prior standard deviation. The labels decide between them:
every model predicts each clip without that clip's label (approximate leave-one-out, Rad & Maleki,
JRSS B 2020), and the log-likelihoods of these predictions, with the prior probabilities, give the
weights (pseudo-Bayesian model averaging, Yao et al., Bayesian Analysis 2018). All models are
linear in the logits, so their average is one head again.

Vector scaling (a factor for each class) is not among the models: it improved nothing. How models
and prior probabilities were chosen: ``docs/research/heads.md``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared.calibration.head import (
    MAX_LOGIT,
    CalibrationHead,
    HeadAdapter,
    calibrate_logits,
    require_class_count,
)
from sottovoce.shared.calibration.head_prior import HeadPrior
from sottovoce.shared.calibration.objective import HeadObjective, find_minimum, logit_curvature
from sottovoce.shared.errors import ModelError

ADAPTER_SDS: Final = (0.15, 0.4)
"""Standard deviations of an adapter's weights, in logits for one public standard deviation."""

_LOG_MODEL_PRIORS: Final = (-2.0, 0.0, -2.0)
"""Log prior probabilities of the models, up to a constant: without adapter, then by its sd."""

_EVIDENCE_WEIGHT: Final = 0.5
"""Weight of the log-likelihoods: one user's clips, and so their losses, are correlated."""

_MIN_UTTERANCES: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadFit:
    """A fitted head with its uncertainty.

    Attributes:
        head: The most probable head.
        held_out_probabilities: Leave-one-out probabilities of each clip, shape
            (utterances, classes), float64. Nonconformity scores of a user's own clips need them,
            because the head was fitted on their labels. For a single clip, from the prior's mean.
        variance: Posterior variances by Laplace's approximation, shape (1 + classes,), float64:
            log temperature first, then biases.
    """

    head: CalibrationHead
    held_out_probabilities: Tensor
    variance: Tensor


def fit_head_only(
    logits: Tensor, labels: Tensor, prior: HeadPrior, coordinates: Tensor | None = None
) -> CalibrationHead:
    """Fit a user's head without its uncertainty; see :func:`fit_head`.

    Example:
        >>> from sottovoce.shared.calibration import identity_head
        >>> sure = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 4.0]])
        >>> prior = HeadPrior(mean=identity_head(2))
        >>> head = fit_head_only(sure, torch.tensor([0, 1, 1, 0]), prior)
        >>> head.log_temperature > 0  # right half of the time: it should be less sure
        True
    """
    return fit_head(logits, labels, prior, coordinates).head


def fit_head(
    logits: Tensor, labels: Tensor, prior: HeadPrior, coordinates: Tensor | None = None
) -> HeadFit:
    """Fit a user's head on labelled utterances, starting from the prior.

    Each model minimises cross-entropy plus the negative log prior by damped Newton steps in
    float64, from the prior's mean. Cross-entropy is convex in the inverse temperature, not in its
    log: the minimum found is the one downhill from the prior's mean.

    Args:
        logits: Logits of the shared model, shape (utterances, classes), finite.
        labels: True classes, shape (utterances,), integer.
        prior: Prior of the head.
        coordinates: Coordinates in the prior's basis, shape (utterances, rank); None if the prior
            has no basis.

    Returns:
        The fit. Without utterances its head is exactly ``prior.mean``, otherwise the average of
        models none of which is less probable than the prior's mean.

    Raises:
        ModelError: Logits that are not finite or beyond 1e6, coordinates that are not finite,
            labels that are not classes, shapes that do not fit each other or the prior, or numbers
            between which no minimum is found.

    Example:
        >>> from sottovoce.shared.calibration import identity_head
        >>> logits, labels = torch.tensor([[4.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 1])
        >>> fit = fit_head(logits, labels, HeadPrior(mean=identity_head(2)))
        >>> fit.held_out_probabilities.shape, fit.variance.shape
        (torch.Size([2, 2]), torch.Size([3]))
    """
    try:
        return _fit_head(logits, labels, prior, coordinates)
    except RuntimeError as error:  # linear algebra's, whose own name torch does not export
        raise ModelError(
            f"the head is not fitted: {error}; the prior's widths and the logits lie too far apart"
        ) from error


def _fit_head(
    logits: Tensor, labels: Tensor, prior: HeadPrior, coordinates: Tensor | None
) -> HeadFit:
    """See :func:`fit_head`."""
    logits, labels = _validated(logits, labels, prior)
    columns = _design_matrix(coordinates, len(labels), prior)
    if len(labels) == 0:
        return HeadFit(head=prior.mean, held_out_probabilities=logits, variance=1 / prior.precision)
    members = [_fit_candidate(logits, labels, columns[:, :1], prior, None, None)]
    for width in ADAPTER_SDS if prior.basis else ():
        members.append(_fit_candidate(logits, labels, columns, prior, width, members[-1]))
    held_out = [member.held_out_logits for member in members]
    shares = _model_weights(held_out, labels)
    return HeadFit(
        head=_average(members, shares, prior),
        held_out_probabilities=torch.softmax(
            _held_out_logits(held_out, shares, logits, prior, coordinates), 1
        ),
        variance=torch.diagonal(torch.cholesky_inverse(members[0].curvature_factor)),
    )


def select_usable(
    logits: Tensor, labels: Tensor, coordinates: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Select the utterances that a head can be fitted on; arguments as for :func:`fit_head`.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])
        >>> select_usable(logits, torch.tensor([0, 1]), None)[1]
        tensor([0])
    """
    good = (logits.abs() <= MAX_LOGIT).all(1)  # NaN is not
    if coordinates is None:
        return logits[good], labels[good], None
    good &= coordinates.isfinite().all(1)
    return logits[good], labels[good], coordinates[good]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Candidate:
    """A fitted model before averaging.

    Attributes:
        objective: The function that was minimised.
        point: The minimum: log temperature, then for every class its bias and, with an adapter,
            its weights; shape (1 + classes * columns,).
    """

    objective: "HeadObjective"
    point: Tensor

    @property
    def class_parameters(self) -> Tensor:
        """Biases and weights by class, shape (classes, columns)."""
        return self.objective.class_parameters(self.point)

    @property
    def curvature_factor(self) -> Tensor:
        """Cholesky factor of the objective's curvature at the point."""
        return self.objective.newton_terms(self.point)[1]

    def extended_point(self, columns: int) -> Tensor:
        """The point with more columns, the new ones at 0."""
        rows = self.class_parameters
        more = rows.new_zeros(len(rows), columns - rows.shape[1])
        return torch.cat([self.point[:1], torch.cat([rows, more], 1).flatten()])

    @cached_property
    def held_out_logits(self) -> Tensor:
        """Approximate leave-one-out logits of each clip, shape (utterances, classes)."""
        # One Newton step from the fit on the objective without the clip (Rad & Maleki 2020). With J
        # the Jacobian of the clip's logits, H the curvature, M = J H^-1 J', e and L gradient and
        # curvature of the clip's loss in its logits, these move by M (I - L M)^-1 e.
        objective, point = self.objective, self.point
        scaled, probabilities = objective.logits_and_probabilities(point)
        clips, classes = probabilities.shape
        errors = probabilities - objective.one_hot_labels
        curvature = objective.gauss_newton_curvature(scaled, probabilities)
        jacobian = objective.logit_jacobian(scaled).reshape(clips * classes, -1)
        # With H = F F', M is the product of F^-1 J' with its own transpose: no inverse is formed.
        half = torch.linalg.solve_triangular(
            torch.linalg.cholesky(curvature), jacobian.mT, upper=False
        )
        half = half.reshape(-1, clips, classes).permute(1, 2, 0)
        free = half @ half.mT
        identity = torch.eye(classes, dtype=probabilities.dtype)
        left = identity - logit_curvature(probabilities) @ free
        steps: Tensor = free @ torch.linalg.solve(left, errors[:, :, None])
        return objective.calibrated_logits(point) + steps[:, :, 0]


def _fit_candidate(
    logits: Tensor,
    labels: Tensor,
    columns: Tensor,
    prior: HeadPrior,
    width: float | None,
    last: _Candidate | None,
) -> _Candidate:
    """Fit one model, with an adapter of a standard deviation or without, from the last model."""
    classes, adapters = logits.shape[1], columns.shape[1] - 1
    adapter = prior.mean.adapter
    weights = logits.new_zeros(classes, adapters)
    if adapter and width:
        weights = adapter.weights.to(logits)
    widths = torch.full((classes, 1 + adapters), width or 1.0, dtype=logits.dtype)
    widths[:, 0] = prior.bias_sd
    temperature = logits.new_tensor([prior.mean.log_temperature])
    objective = HeadObjective(
        logits=logits,
        labels=labels,
        design=columns,
        prior_mean=torch.cat(
            [temperature, torch.cat([prior.mean.bias[:, None], weights], 1).flatten()]
        ),
        prior_precision=torch.cat(
            [logits.new_tensor([prior.log_temperature_sd]), widths.flatten()]
        ).pow(-2),
    )
    # The models are nested, so the last minimum is a start that is never worse than the prior's.
    start = None if last is None else last.extended_point(columns.shape[1])
    return _Candidate(objective=objective, point=find_minimum(objective, start))


def _model_weights(held_out: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Weight of each member, shape (members,), together 1."""
    if len(held_out) == 1:
        return torch.ones(1, dtype=torch.float64)
    losses = [
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum") for logits in held_out
    ]
    # Equals pseudo-BMA with a power of the likelihood; softmax in logs does not underflow.
    log_priors = torch.tensor(_LOG_MODEL_PRIORS, dtype=torch.float64)
    return torch.softmax(log_priors - _EVIDENCE_WEIGHT * torch.stack(losses), 0)


def _average(members: Sequence[_Candidate], shares: Tensor, prior: HeadPrior) -> CalibrationHead:
    """One head whose logits are the members' average."""
    # Calibrated logits are linear in the inverse temperature, not in the temperature or its log.
    inverse = sum(
        float(share) * math.exp(-float(member.point[0]))
        for share, member in zip(shares, members, strict=True)
    )
    plain = members[0]
    if prior.basis is None:
        return CalibrationHead(
            log_temperature=float(plain.point[0]), bias=plain.class_parameters[:, 0]
        )
    bias = shares[0] * plain.class_parameters[:, 0]
    weights = torch.zeros_like(members[1].class_parameters[:, 1:])
    for share, member in zip(shares[1:], members[1:], strict=True):
        bias = bias + share * member.class_parameters[:, 0]
        weights = weights + share * member.class_parameters[:, 1:]
    return CalibrationHead(
        log_temperature=-math.log(inverse),
        bias=bias,
        adapter=HeadAdapter(weights=weights, basis_tag=prior.basis.tag),
    )


def _held_out_logits(
    held_out: Sequence[Tensor],
    shares: Tensor,
    logits: Tensor,
    prior: HeadPrior,
    coordinates: Tensor | None,
) -> Tensor:
    """The members' average of held-out logits; of a single clip, those of the prior's mean."""
    # Without its only clip a fit is the prior, exactly: the Newton step would only approximate it.
    if len(logits) < _MIN_UTTERANCES:
        return calibrate_logits(prior.mean, logits, coordinates)
    averaged: Tensor = torch.tensordot(shares, torch.stack(tuple(held_out)), 1)
    return averaged


def _validated(logits: Tensor, labels: Tensor, prior: HeadPrior) -> tuple[Tensor, Tensor]:
    """Logits as float64 and labels as int64, once they fit each other and the prior."""
    logits = logits.detach().to("cpu", torch.float64)
    labels = labels.detach().to("cpu")
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ModelError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit; they must"
            " be (utterances, classes) and (utterances,)"
        )
    require_class_count(prior.mean.classes, logits)
    if not bool((logits.abs() <= MAX_LOGIT).all()):
        raise ModelError(
            f"logits hold NaN, infinity or values beyond {MAX_LOGIT:g}; the head is not fitted:"
            " check the recordings and the model"
        )
    return logits, _classes_only(labels, prior.mean.classes)


def _design_matrix(coordinates: Tensor | None, clips: int, prior: HeadPrior) -> Tensor:
    """Ones, then the coordinates, shape (utterances, 1 + rank), float64."""
    ones = torch.ones(clips, 1, dtype=torch.float64)
    if prior.basis is None:
        return ones
    wanted = (clips, prior.basis.rank)
    shape = None if coordinates is None else tuple(coordinates.shape)
    if coordinates is None or shape != wanted or not bool(coordinates.isfinite().all()):
        raise ModelError(
            f"coordinates of shape {shape} cannot be used; they must be finite and {wanted}: "
            "compute them in the basis of the prior"
        )
    return torch.cat([ones, coordinates.detach().to("cpu", torch.float64)], 1)


def _classes_only(labels: Tensor, classes: int) -> Tensor:
    """Labels as int64, once each names a class."""
    wrong_kind = labels.is_floating_point() or labels.is_complex()
    if wrong_kind or not bool(((labels >= 0) & (labels < classes)).all()):
        raise ModelError(
            f"labels are {sorted(set(labels.tolist()))}; each must be 0 to {classes - 1}"
        )
    return labels.to(torch.int64)
