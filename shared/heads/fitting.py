"""How a user's few labels become a head: a family of fits, weighed by evidence.

A user gives five labels, where maximum likelihood would want hundreds. So each fit is by maximum a
posteriori under a Gaussian prior: with no labels it *is* the prior's mean, a few labels move it a
little, many labels make the prior forgotten. One class only, or labels that are all wrong, cannot
push it to infinity.

The family: temperature and biases alone, and the same with an adapter of the last layer, whose
weights the prior holds near 0 by one of ``WIDTHS``. Which of them a user needs, the labels say
themselves: every fit is asked what it would have said of each clip without that clip's label
(approximate leave-one-out, Rad & Maleki, JRSS B 2020), and the log-likelihood of the answers weighs
the fits, beside what was believed of them before (pseudo-Bayesian model averaging, Yao et al.,
Bayesian Analysis 2018). All fits are linear in the logits, so their average is one head again.

Scaling each class by a factor of its own (vector scaling) is no member: it helped nobody. How the
family and what is believed of it were chosen: ``docs/recipes.md``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared.errors import ModelError
from sottovoce.shared.heads.head import MOST_LOGIT, Adapter, Head, apply, fits
from sottovoce.shared.heads.prior import HeadPrior
from sottovoce.shared.heads.problem import Problem, bends, lowest

WIDTHS: Final = (0.15, 0.4)
"""Standard deviations of an adapter's weights, in logits for one public standard deviation."""

_BELIEFS: Final = (-2.0, 0.0, -2.0)
"""Logs of what is believed of the fits before any label, up to a constant: without an adapter,
then by width."""

_TRUST: Final = 0.5
"""What the log-likelihoods count: one user's clips, and so the answers, hang together."""

_FEW: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fit:
    """A head, and how sure it is.

    Attributes:
        head: The head.
        blind: What heads fitted without each clip would say of it, shape (utterances, classes),
            float64: scores of a user's own clips need it, because the head has seen their labels.
            Of one clip alone it is what the prior's mean says.
        variance: Posterior variances by Laplace's approximation, shape (1 + classes,), float64:
            log temperature first, then biases.
    """

    head: Head
    blind: Tensor
    variance: Tensor


def fit(
    logits: Tensor, labels: Tensor, prior: HeadPrior, coordinates: Tensor | None = None
) -> Head:
    """The head alone; see :func:`fitted`.

    Example:
        >>> from sottovoce.shared.heads.head import identity
        >>> sure = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 4.0]])
        >>> head = fit(sure, torch.tensor([0, 1, 1, 0]), HeadPrior(mean=identity(2)))
        >>> head.log_temperature > 0  # right half of the time: it should be less sure
        True
    """
    return fitted(logits, labels, prior, coordinates).head


def fitted(
    logits: Tensor, labels: Tensor, prior: HeadPrior, coordinates: Tensor | None = None
) -> Fit:
    """The head that one user's labelled utterances and the prior make.

    Each member of the family minimises cross-entropy plus half the prior's quadratic by damped
    Newton steps in float64, from the prior's mean. Cross-entropy is convex in the inverse
    temperature, not in its log: the minimum found is the one downhill from the prior's mean.

    Args:
        logits: The shared model's, shape (utterances, classes), finite.
        labels: True classes, shape (utterances,), integer.
        prior: What is believed before the labels.
        coordinates: Where the utterances lie in the prior's basis, shape (utterances, rank); None
            where the prior has none.

    Returns:
        The fit: with no utterances its head is exactly ``prior.mean``, otherwise the average of
        members none of which is less probable than the prior's mean.

    Raises:
        ModelError: Logits that are not finite or beyond 1e6, coordinates that are not finite,
            labels that are not classes, shapes that do not fit each other or the prior, or numbers
            between which no minimum is found.
    """
    try:
        return _fitted(logits, labels, prior, coordinates)
    except RuntimeError as error:  # linear algebra's, whose own name torch does not export
        raise ModelError(
            f"the head is not fitted: {error}; the prior's widths and the logits lie too far apart"
        ) from error


def _fitted(logits: Tensor, labels: Tensor, prior: HeadPrior, coordinates: Tensor | None) -> Fit:
    """See :func:`fitted`."""
    logits, labels = _usable(logits, labels, prior)
    columns = _columns(coordinates, len(labels), prior)
    if len(labels) == 0:
        return Fit(head=prior.mean, blind=logits, variance=1 / prior.precision)
    members = [_member(logits, labels, columns[:, :1], prior, None, None)]
    for width in WIDTHS if prior.basis else ():
        members.append(_member(logits, labels, columns, prior, width, members[-1]))
    blind = [member.blind for member in members]
    shares = _shares(blind, labels)
    return Fit(
        head=_average(members, shares, prior),
        blind=torch.softmax(_blind(blind, shares, logits, prior, coordinates), 1),
        variance=torch.diagonal(torch.cholesky_inverse(members[0].factor)),
    )


def usable(
    logits: Tensor, labels: Tensor, coordinates: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Those of the utterances that a head can be fitted on; arguments as for :func:`fitted`."""
    good = (logits.abs() <= MOST_LOGIT).all(1)  # NaN is not
    if coordinates is None:
        return logits[good], labels[good], None
    good &= coordinates.isfinite().all(1)
    return logits[good], labels[good], coordinates[good]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Member:
    """One fit of the family, done.

    Attributes:
        problem: What was minimised.
        point: Where: log temperature, then for every class its bias and, with an adapter, its
            weights; shape (1 + classes * columns,).
    """

    problem: "Problem"
    point: Tensor

    @property
    def rows(self) -> Tensor:
        """Biases and weights by class, shape (classes, columns)."""
        return self.problem.rows(self.point)

    @property
    def factor(self) -> Tensor:
        """Of the cost's curvature at the point."""
        return self.problem.slopes(self.point)[1]

    def near(self, columns: int) -> Tensor:
        """The point among those with this many columns, the new ones at 0."""
        rows = self.rows
        more = rows.new_zeros(len(rows), columns - rows.shape[1])
        return torch.cat([self.point[:1], torch.cat([rows, more], 1).flatten()])

    @cached_property
    def blind(self) -> Tensor:
        """Logits of each clip from the fit without it, shape (utterances, classes).

        One Newton step from the fit, on the cost less the clip's own: its gradient e and curvature
        L in its logits o move them by M (I - L M)^-1 e, M what the rest's curvature leaves o free.
        """
        problem, point = self.problem, self.point
        scaled, chances = problem.outputs(point)
        clips, classes = chances.shape
        errors = chances - problem.hits
        curvature = problem.convex(scaled, chances)
        moves = problem.moves(scaled).reshape(clips * classes, -1)
        half = torch.linalg.solve_triangular(
            torch.linalg.cholesky(curvature), moves.mT, upper=False
        )
        half = half.reshape(-1, clips, classes).permute(1, 2, 0)
        free = half @ half.mT
        left = torch.eye(classes, dtype=chances.dtype) - bends(chances) @ free
        steps: Tensor = free @ torch.linalg.solve(left, errors[:, :, None])
        return problem.scores(point) + steps[:, :, 0]


def _member(
    logits: Tensor,
    labels: Tensor,
    columns: Tensor,
    prior: HeadPrior,
    width: float | None,
    last: _Member | None,
) -> _Member:
    """One fit, with an adapter of a width or without; it starts where the last one ended."""
    classes, adapters = logits.shape[1], columns.shape[1] - 1
    bent = prior.mean.adapter
    weights = logits.new_zeros(classes, adapters)
    if bent and width:
        weights = bent.weights.to(logits)
    widths = torch.full((classes, 1 + adapters), width or 1.0, dtype=logits.dtype)
    widths[:, 0] = prior.bias_sd
    temperature = logits.new_tensor([prior.mean.log_temperature])
    problem = Problem(
        logits=logits,
        labels=labels,
        columns=columns,
        centre=torch.cat(
            [temperature, torch.cat([prior.mean.bias[:, None], weights], 1).flatten()]
        ),
        precision=torch.cat([logits.new_tensor([prior.log_temperature_sd]), widths.flatten()]).pow(
            -2
        ),
    )
    start = None if last is None else last.near(columns.shape[1])
    return _Member(problem=problem, point=lowest(problem, start))


def _shares(blind: Sequence[Tensor], labels: Tensor) -> Tensor:
    """What each member counts for, shape (members,), together 1."""
    if len(blind) == 1:
        return torch.ones(1, dtype=torch.float64)
    losses = [
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum") for logits in blind
    ]
    believed = torch.tensor(_BELIEFS, dtype=torch.float64)
    return torch.softmax(believed - _TRUST * torch.stack(losses), 0)


def _average(members: Sequence[_Member], shares: Tensor, prior: HeadPrior) -> Head:
    """One head whose logits are the members' average."""
    inverse = sum(
        float(share) * math.exp(-float(member.point[0]))
        for share, member in zip(shares, members, strict=True)
    )
    plain = members[0]
    if prior.basis is None:
        return Head(log_temperature=float(plain.point[0]), bias=plain.rows[:, 0])
    bias = shares[0] * plain.rows[:, 0]
    weights = torch.zeros_like(members[1].rows[:, 1:])
    for share, member in zip(shares[1:], members[1:], strict=True):
        bias = bias + share * member.rows[:, 0]
        weights = weights + share * member.rows[:, 1:]
    return Head(
        log_temperature=-math.log(inverse),
        bias=bias,
        adapter=Adapter(weights=weights, basis=prior.basis.tag),
    )


def _blind(
    blind: Sequence[Tensor],
    shares: Tensor,
    logits: Tensor,
    prior: HeadPrior,
    coordinates: Tensor | None,
) -> Tensor:
    """The members' average of what they say unseen; of a lone clip, what the prior's mean says."""
    if len(logits) < _FEW:
        return apply(prior.mean, logits, coordinates)
    averaged: Tensor = torch.tensordot(shares, torch.stack(tuple(blind)), 1)
    return averaged


def _usable(logits: Tensor, labels: Tensor, prior: HeadPrior) -> tuple[Tensor, Tensor]:
    """Logits as float64 and labels as int64, once they fit each other and the prior."""
    logits = logits.detach().to("cpu", torch.float64)
    labels = labels.detach().to("cpu")
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ModelError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit; they must"
            " be (utterances, classes) and (utterances,)"
        )
    fits(prior.mean.classes, logits)
    if not bool((logits.abs() <= MOST_LOGIT).all()):
        raise ModelError(
            f"logits hold NaN, infinity or values beyond {MOST_LOGIT:g}; the head is not fitted:"
            " check the recordings and the model"
        )
    return logits, _classes_only(labels, prior.mean.classes)


def _columns(coordinates: Tensor | None, clips: int, prior: HeadPrior) -> Tensor:
    """Ones, then the coordinates, shape (utterances, 1 + rank), float64."""
    ones = torch.ones(clips, 1, dtype=torch.float64)
    if prior.basis is None:
        return ones
    wanted = (clips, prior.basis.rank)
    given = None if coordinates is None else tuple(coordinates.shape)
    if coordinates is None or given != wanted or not bool(coordinates.isfinite().all()):
        raise ModelError(
            f"coordinates of shape {given} cannot be used; they must be finite and {wanted}: "
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
