"""Calibration heads: one user's small correction of the shared model's logits.

A head divides the logits by a temperature and adds a bias to every class::

    calibrated = logits * exp(-log_temperature) + bias

Temperature scaling is Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; with the
bias it is the many-class form of Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
Both fit by maximum likelihood on many labels. A user gives five. So the head is fitted by
maximum a posteriori under a Gaussian prior: with no labels it *is* the prior's mean, a few labels
move it a little, many labels make the prior forgotten. One class only, or labels that are all
wrong, cannot push it to infinity.
"""

import math
import struct
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared import check
from sottovoce.shared.conformal import Scores
from sottovoce.shared.errors import ModelError, SettingError

MOST_BYTES: Final = 4096
"""No head on the wire, sealed or not, is longer."""

_MAGIC: Final = b"SVHD"
_SCHEMA: Final = 1
_HEADER: Final = struct.Struct("<4sB32sHd")
_MOST_CLASSES: Final = 256
_MOST_LOG_TEMPERATURE: Final = 50.0
MOST_LOGIT: Final = 1e6
"""A logit beyond this is refused: it says that a recording or the model is broken."""

_FEW: Final = 2
_MOST_STEPS: Final = 100
_MOST_HALVINGS: Final = 40
_CONVERGED: Final = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Head:
    """One calibration head.

    Attributes:
        log_temperature: Natural log of the temperature; 0 changes nothing, above 0 makes the
            model less sure.
        bias: Added to each class's logit, shape (classes,); kept as float64 on the CPU.

    Raises:
        ModelError: A value that is not finite, or a bias that is not a vector of 2 to 256 classes.
    """

    log_temperature: float
    bias: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "bias", self.bias.detach().to("cpu", torch.float64, copy=True))
        if not abs(self.log_temperature) <= _MOST_LOG_TEMPERATURE:
            raise ModelError(
                f"log_temperature is {self.log_temperature}; it must lie within"
                f" ±{_MOST_LOG_TEMPERATURE}; fit the head again"
            )
        if self.bias.dim() != 1 or not 2 <= len(self.bias) <= _MOST_CLASSES:
            raise ModelError(
                f"bias has shape {tuple(self.bias.shape)}; it must be one number for each of 2 to"
                f" {_MOST_CLASSES} classes"
            )
        if not bool(self.bias.isfinite().all()):
            raise ModelError(f"bias is {self.bias.tolist()}; it must be finite; fit the head again")

    @property
    def classes(self) -> int:
        """How many classes the head is for."""
        return len(self.bias)


def identity(classes: int) -> Head:
    """The head that changes nothing."""
    return Head(log_temperature=0.0, bias=torch.zeros(classes, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadPrior:
    """What is believed of a user's head before the first label: independent Gaussians.

    Attributes:
        mean: The head of a user without labels.
        log_temperature_sd: How far users' log temperatures lie from the mean, above 0.
        bias_sd: The same for each class's bias, in logits, above 0.
        scores: What prediction sets start from, behind the mean head; None where nobody's are
            known: then there are no sets.

    Raises:
        SettingError: A width that is not finite and above 0.
    """

    mean: Head
    log_temperature_sd: float = 0.3
    bias_sd: float = 0.3
    scores: Scores | None = None

    def __post_init__(self) -> None:
        check.positive(log_temperature_sd=self.log_temperature_sd, bias_sd=self.bias_sd)

    @property
    def precision(self) -> Tensor:
        """Inverse variances, shape (1 + classes,), float64: log temperature first, then biases."""
        widths = [self.log_temperature_sd] + [self.bias_sd] * self.mean.classes
        return torch.tensor(widths, dtype=torch.float64).pow(-2)

    def as_dict(self) -> dict[str, float | list[float]]:
        """The prior as plain numbers, for a message or a JSON file."""
        numbers: dict[str, float | list[float]] = {
            "log_temperature": self.mean.log_temperature,
            "bias": self.mean.bias.tolist(),
            "log_temperature_sd": self.log_temperature_sd,
            "bias_sd": self.bias_sd,
        }
        if self.scores:
            numbers["scores"] = list(self.scores.atoms)
            numbers["scores_beyond"] = self.scores.beyond
            numbers["scores_concentration"] = self.scores.concentration
        return numbers


def prior_from_dict(numbers: dict[str, float | list[float]]) -> HeadPrior:
    """The prior that :meth:`HeadPrior.as_dict` wrote; what a server sent may be anything.

    Raises:
        ModelError: A missing, unknown or unusable entry.
    """
    try:
        bias = torch.tensor(numbers["bias"], dtype=torch.float64)
        mean = Head(log_temperature=_number(numbers["log_temperature"]), bias=bias)
        widths = [_number(numbers[name]) for name in ("log_temperature_sd", "bias_sd")]
        return HeadPrior(
            mean=mean,
            log_temperature_sd=widths[0],
            bias_sd=widths[1],
            scores=_scores(numbers) if "scores" in numbers else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, SettingError) as error:
        raise ModelError(f"the head prior cannot be used: {error!r}; get a new one") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedHead:
    """A head as the server keeps it: ciphertext, and what it is bound to.

    Attributes:
        model_hash: SHA-256 of the model it was fitted for, 64 hexadecimal digits.
        version: Counts a user's heads, from 1 up.
        blob: The ciphertext, at most 4 KiB.

    Raises:
        ModelError: A value out of these bounds.
    """

    model_hash: str
    version: int
    blob: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _digest(self.model_hash)
        if not 1 <= self.version < 1 << 63:
            raise ModelError(f"a head's version is {self.version}; it must be from 1 to 2^63 - 1")
        if len(self.blob) > MOST_BYTES:
            raise ModelError(f"a sealed head has {len(self.blob)} bytes; at most {MOST_BYTES}")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptHead:
    """What a server says is a user's head. Nothing in it is checked but its types.

    Attributes:
        model_hash: Of the model it is said to be for.
        version: Which one it is said to be.
        blob: What is said to be the ciphertext.
    """

    model_hash: str
    version: int
    blob: bytes = field(repr=False)

    def sealed(self) -> SealedHead:
        """What it would be, if it is true; ``ModelError`` where it cannot be."""
        return SealedHead(model_hash=self.model_hash, version=self.version, blob=self.blob)


def apply(head: Head, logits: Tensor) -> Tensor:
    """Calibrate logits.

    Args:
        head: The user's head.
        logits: Shape (..., classes), floating point; NaN stays NaN.

    Returns:
        Calibrated logits, same shape, dtype and device.

    Raises:
        ModelError: Another number of classes.
    """
    _fits(head.classes, logits)
    bias = head.bias.to(logits)
    return logits * math.exp(-head.log_temperature) + bias


def fit(logits: Tensor, labels: Tensor, prior: HeadPrior) -> Head:
    """The most probable head, given one user's labelled utterances and the prior.

    Minimises cross-entropy plus half the prior's quadratic by damped Newton steps in float64,
    from the prior's mean. Cross-entropy is convex in the inverse temperature, not in its log: the
    minimum found is the one downhill from the prior's mean.

    Args:
        logits: The shared model's, shape (utterances, classes), finite.
        labels: True classes, shape (utterances,), integer.
        prior: What is believed before the labels.

    Returns:
        The head: with no utterances exactly ``prior.mean``, otherwise never less probable than it.

    Raises:
        ModelError: Logits that are not finite or beyond 1e6, labels that are not classes, or
            shapes that do not fit each other or the prior.

    Example:
        >>> sure = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 4.0]])
        >>> head = fit(sure, torch.tensor([0, 1, 1, 0]), HeadPrior(mean=identity(2)))
        >>> head.log_temperature > 0  # right half of the time: it should be less sure
        True
    """
    evidence = _evidence(logits, labels, prior)
    if len(evidence.labels) == 0:
        return prior.mean
    point = evidence.centre
    cost = evidence.cost(point)
    for _ in range(_MOST_STEPS):
        gradient, curvature = evidence.slopes(point)
        step = -torch.linalg.solve(curvature, gradient)
        slope = float(gradient @ step)
        if not -slope > _CONVERGED * (1 + abs(cost)):
            break
        point, lower = _descend(evidence, point, step, slope, cost)
        if not lower < cost:
            break
        cost = lower
    return Head(log_temperature=float(point[0]), bias=point[1:])


def spread(head: Head, logits: Tensor, labels: Tensor, prior: HeadPrior) -> Tensor:
    """How uncertain a fitted head is: posterior variances by Laplace's approximation.

    Args:
        head: What :func:`fit` found for the same arguments.
        logits: Shape (utterances, classes).
        labels: Shape (utterances,).
        prior: The prior of the fit.

    Returns:
        Variances, shape (1 + classes,), float64: log temperature first, then biases.

    Raises:
        ModelError: As in :func:`fit`.
    """
    evidence = _evidence(logits, labels, prior)
    _fits(head.classes, logits)
    _, curvature = evidence.slopes(_vector(head))
    return torch.diagonal(torch.linalg.inv(curvature))


def left_out(head: Head, logits: Tensor, labels: Tensor, prior: HeadPrior) -> Tensor:
    """What heads fitted without each utterance would say of it, by one Newton step from the fit.

    Approximate leave-one-out (Rad & Maleki, JRSS B 2020); scores of a user's own clips need it,
    because the head has seen their labels.

    Args:
        head: What :func:`fit` found for the same arguments.
        logits: Shape (utterances, classes).
        labels: Shape (utterances,).
        prior: The prior of the fit.

    Returns:
        Probabilities, shape (utterances, classes), float64; those of the prior's mean for one
        utterance alone.

    Raises:
        ModelError: As in :func:`fit`.
    """
    evidence = _evidence(logits, labels, prior)
    if len(evidence.labels) < _FEW:
        return torch.softmax(apply(prior.mean, evidence.logits), 1)
    point = _vector(head)
    _, curvature = evidence.slopes(point)
    scaled = evidence.logits * torch.exp(-point[0])
    errors = torch.softmax(scaled + point[1:], 1)
    errors = errors - torch.nn.functional.one_hot(evidence.labels, len(point) - 1)
    pulls = torch.cat([-(errors * scaled).sum(1, keepdim=True), errors], 1)
    points = point + torch.linalg.solve(curvature, pulls.T).T
    return torch.softmax(evidence.logits * torch.exp(-points[:, :1]) + points[:, 1:], 1)


def to_bytes(head: Head, model_hash: str) -> bytes:
    """A head as bytes, bound to its model: at most 2,095 for 256 classes, 111 for 8.

    Args:
        head: The head.
        model_hash: SHA-256 of the model it was fitted for, 64 hexadecimal digits.

    Raises:
        ModelError: A hash that is none.
    """
    digest = _digest(model_hash)
    header = _HEADER.pack(_MAGIC, _SCHEMA, digest, head.classes, head.log_temperature)
    return header + head.bias.numpy().astype("<f8").tobytes()


def from_bytes(data: bytes, model_hash: str) -> Head:
    """The head that :func:`to_bytes` wrote for the same model.

    Raises:
        ModelError: Damaged bytes, a newer schema, or a head of another model: it must be fitted
            again, never applied.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ModelError(f"{len(data)} bytes are not a calibration head; fit the head again")
    _, schema, digest, classes, log_temperature = _HEADER.unpack_from(data)
    if schema != _SCHEMA:
        raise ModelError(f"head schema {schema} is not {_SCHEMA}; update, or fit the head again")
    if digest != _digest(model_hash):
        raise ModelError(
            f"the head belongs to model {digest.hex()[:12]}, not to {model_hash[:12]};"
            " fit it again for this model"
        )
    if len(data) != _HEADER.size + 8 * classes:
        raise ModelError(f"a head of {classes} classes has {len(data)} bytes; fit the head again")
    bias = torch.from_numpy(np.frombuffer(data, dtype="<f8", offset=_HEADER.size).copy())
    return Head(log_temperature=log_temperature, bias=bias)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Evidence:
    """What a head is fitted to, checked: float64 logits, int64 labels, and the prior's numbers."""

    logits: Tensor
    labels: Tensor
    centre: Tensor
    precision: Tensor

    def cost(self, point: Tensor) -> float:
        """Cross-entropy plus half the prior's quadratic; infinite where no head can be."""
        if not abs(float(point[0])) <= _MOST_LOG_TEMPERATURE:
            return math.inf
        scores = self.logits * torch.exp(-point[0]) + point[1:]
        loss = torch.nn.functional.cross_entropy(scores, self.labels, reduction="sum")
        return float(loss + 0.5 * (self.precision * (point - self.centre).square()).sum())

    def slopes(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and a positive definite curvature of the cost at a point."""
        scaled = self.logits * torch.exp(-point[0])
        chances = torch.softmax(scaled + point[1:], dim=1)
        errors = chances - torch.nn.functional.one_hot(self.labels, len(point) - 1)
        pull = (errors * scaled).sum()
        gradient = torch.cat([-pull.reshape(1), errors.sum(0)])
        curvature = _gauss_newton(scaled, chances) + torch.diag(self.precision)
        exact = curvature.clone()
        exact[0, 0] += pull
        # The exact curvature is indefinite where the cost bends down along the log temperature.
        definite = int(torch.linalg.cholesky_ex(exact).info) == 0
        return gradient + self.precision * (point - self.centre), exact if definite else curvature


def _evidence(logits: Tensor, labels: Tensor, prior: HeadPrior) -> _Evidence:
    """Logits, labels and prior once they are usable and fit each other."""
    logits = logits.detach().to("cpu", torch.float64)
    labels = labels.detach().to("cpu")
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ModelError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit; they must"
            " be (utterances, classes) and (utterances,)"
        )
    _fits(prior.mean.classes, logits)
    if not bool((logits.abs() <= MOST_LOGIT).all()):
        raise ModelError(
            f"logits hold NaN, infinity or values beyond {MOST_LOGIT:g}; the head is not fitted:"
            " check the recordings and the model"
        )
    return _Evidence(
        logits=logits,
        labels=_classes_only(labels, prior.mean.classes),
        centre=_vector(prior.mean),
        precision=prior.precision,
    )


def _descend(
    evidence: _Evidence, point: Tensor, step: Tensor, slope: float, cost: float
) -> tuple[Tensor, float]:
    """The first point along the step that is clearly lower (Armijo); the old one if none is."""
    length = 1.0
    for _ in range(_MOST_HALVINGS):
        trial = point + length * step
        trial_cost = evidence.cost(trial)
        if trial_cost <= cost + 1e-4 * length * slope:
            return trial, trial_cost
        length /= 2
    return point, cost


def _gauss_newton(scaled: Tensor, chances: Tensor) -> Tensor:
    """Curvature of the cross-entropy without the bend of the log, shape (1 + classes,) squared."""
    pushed = -chances * (scaled - (chances * scaled).sum(1, keepdim=True))
    corner = -(scaled * pushed).sum().reshape(1, 1)
    side = pushed.sum(0).reshape(1, -1)
    block = torch.diag(chances.sum(0)) - chances.T @ chances
    return torch.cat([torch.cat([corner, side], 1), torch.cat([side.T, block], 1)])


def _vector(head: Head) -> Tensor:
    """Log temperature, then biases, shape (1 + classes,), float64."""
    return torch.cat([head.bias.new_tensor([head.log_temperature]), head.bias])


def _classes_only(labels: Tensor, classes: int) -> Tensor:
    """Labels as int64, once each names a class."""
    wrong_kind = labels.is_floating_point() or labels.is_complex()
    if wrong_kind or not bool(((labels >= 0) & (labels < classes)).all()):
        raise ModelError(
            f"labels are {sorted(set(labels.tolist()))}; each must be 0 to {classes - 1}"
        )
    return labels.to(torch.int64)


def _fits(classes: int, logits: Tensor) -> None:
    """Raise unless the logits have this many classes."""
    if logits.dim() == 0 or logits.shape[-1] != classes:
        raise ModelError(
            f"logits have shape {tuple(logits.shape)}; the head is for {classes} classes"
        )


def _digest(model_hash: str) -> bytes:
    """The 32 bytes of a SHA-256 in hexadecimal digits."""
    try:
        digest = bytes.fromhex(model_hash)
    except ValueError:
        digest = b""
    if len(digest) != 32 or len(model_hash) != 64:
        raise ModelError(f"model_hash is {model_hash!r}; it must be a SHA-256 in 64 hex digits")
    return digest


def _number(value: float | list[float]) -> float:
    """A plain number out of a message."""
    if isinstance(value, list | bool):
        raise ModelError(f"a head prior holds {value!r} where one number belongs")
    return float(value)


def _scores(numbers: dict[str, float | list[float]]) -> Scores:
    """What prediction sets start from, out of a message."""
    atoms = numbers["scores"]
    if not isinstance(atoms, list):
        raise ModelError(f"a head prior holds {atoms!r} where scores belong")
    return Scores(
        atoms=tuple(_number(atom) for atom in atoms),
        beyond=_number(numbers["scores_beyond"]),
        concentration=_number(numbers["scores_concentration"]),
    )
