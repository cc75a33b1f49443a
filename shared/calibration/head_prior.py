"""Prior distribution of a user's calibration head, before the first label."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.calibration.adapter_basis import AdapterBasis, max_rank_for
from sottovoce.shared.calibration.conformal import NonconformityScores
from sottovoce.shared.calibration.head import CalibrationHead
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.models.network import Network

MIN_PRIOR_SD, MAX_PRIOR_SD = 1e-3, 10.0
MAX_PRIOR_LOG_TEMPERATURE, MAX_PRIOR_BIAS = 10.0, 50.0
"""Bounds on what a server may send: beyond them a fit can fail, or not, by what the clips are."""

_BASIS_FIELDS: Final = ("centre", "matrix")
_FILE_PREFIX: Final = "basis."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadPrior:
    """Prior of a user's calibration head: independent Gaussians.

    Attributes:
        mean: The head of a user without labels.
        log_temperature_sd: How far users' log temperatures lie from the mean, above 0.
        bias_sd: The same for each class's bias, in logits, above 0.
        scores: What prediction sets start from, behind the mean head; None where nobody's are
            known: then there are no sets.
        basis: In which directions heads may change the last layer; None where there is none: then
            they leave it as it is.

    Raises:
        SettingError: A width that is not finite and above 0.
        ModelError: A mean whose adapter is for another basis.
    """

    mean: CalibrationHead
    log_temperature_sd: float = 0.3
    bias_sd: float = 0.3
    scores: NonconformityScores | None = None
    basis: AdapterBasis | None = None

    def __post_init__(self) -> None:
        validation.require_positive(
            log_temperature_sd=self.log_temperature_sd, bias_sd=self.bias_sd
        )
        if not self.is_compatible(self.mean):
            raise ModelError("the mean head changes the last layer in another basis; get a new one")

    @property
    def precision(self) -> Tensor:
        """Inverse variances, shape (1 + classes,), float64: log temperature first, then biases."""
        widths = [self.log_temperature_sd] + [self.bias_sd] * self.mean.classes
        return torch.tensor(widths, dtype=torch.float64).pow(-2)

    def project_vectors(self, vectors: Tensor) -> Tensor | None:
        """Coordinates of utterances in the basis; None without one.

        Args:
            vectors: What the last layer reads, shape (utterances, width).
        """
        return None if self.basis is None else self.basis.project_vectors(vectors)

    def logits_and_coordinates(
        self, network: Network, inputs: Tensor, frames: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """A model's logits, and coordinates of what its last layer read; arguments as it takes."""
        with torch.no_grad():
            vectors = network.compute_embeddings(inputs, frames)
            logits: Tensor = network.head(vectors)
        return logits, self.project_vectors(vectors)

    def is_compatible(self, head: CalibrationHead) -> bool:
        """Whether a head's adapter, if it has one, is for this basis."""
        if head.adapter is None:
            return True
        return self.basis is not None and (self.basis.tag, self.basis.rank) == (
            head.adapter.basis_tag,
            head.adapter.weights.shape[1],
        )

    def as_dict(self) -> dict[str, float | list[float]]:
        """Mean, widths and scores as plain numbers, for a message or a JSON file.

        The mean is a population's and has no adapter; the basis is large and goes its own way,
        see :meth:`basis_tensors`.
        """
        numbers: dict[str, float | list[float]] = {
            "log_temperature": self.mean.log_temperature,
            "bias": self.mean.bias.tolist(),
            "log_temperature_sd": self.log_temperature_sd,
            "bias_sd": self.bias_sd,
        }
        if self.scores:
            numbers["scores"] = list(self.scores.atoms)
            numbers["scores_beyond"] = self.scores.tail_mass
            numbers["scores_concentration"] = self.scores.concentration
        return numbers

    def basis_tensors(self) -> dict[str, Tensor]:
        """The basis, by name; empty without one."""
        return {name: getattr(self.basis, name) for name in _BASIS_FIELDS} if self.basis else {}

    def prefixed_basis_tensors(self) -> dict[str, Tensor]:
        """The same under names that other tensors of a file do not have."""
        return {_FILE_PREFIX + name: tensor for name, tensor in self.basis_tensors().items()}


def prior_from_dict(
    numbers: dict[str, float | list[float]], tensors: Mapping[str, Tensor] | None = None
) -> HeadPrior:
    """The prior that :class:`HeadPrior` wrote; what a server sent may be anything.

    Args:
        numbers: What :meth:`HeadPrior.as_dict` gave.
        tensors: What :meth:`HeadPrior.basis_tensors` gave.

    Raises:
        ModelError: A missing, unknown or unusable entry, numbers that no prior of ours holds, or a
            basis of a higher rank than a sealed head has room for.

    Guarantees:
        - What is refused depends on the prior alone, never on a user's clips.
    """
    try:
        bias = torch.tensor(numbers["bias"], dtype=torch.float64)
        mean = CalibrationHead(log_temperature=_number(numbers["log_temperature"]), bias=bias)
        widths = [_number(numbers[name]) for name in ("log_temperature_sd", "bias_sd")]
        prior = HeadPrior(
            mean=mean,
            log_temperature_sd=widths[0],
            bias_sd=widths[1],
            scores=_scores(numbers) if "scores" in numbers else None,
            basis=AdapterBasis(**tensors) if tensors else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, SettingError) as error:
        raise ModelError(f"the head prior cannot be used: {error!r}; get a new one") from error
    _check_bounds(prior)
    return prior


def _check_bounds(prior: HeadPrior) -> None:
    """Refuse what no server of ours sends."""
    mean, widths = prior.mean, (prior.log_temperature_sd, prior.bias_sd)
    if not all(MIN_PRIOR_SD <= width <= MAX_PRIOR_SD for width in widths):
        raise ModelError(
            f"the head prior has widths {widths}; they must be in "
            f"[{MIN_PRIOR_SD:g}, {MAX_PRIOR_SD:g}]"
        )
    strongest = float(mean.bias.abs().max()) if mean.classes else 0.0
    if not (abs(mean.log_temperature) <= MAX_PRIOR_LOG_TEMPERATURE and strongest <= MAX_PRIOR_BIAS):
        raise ModelError(
            f"the mean head has log temperature {mean.log_temperature:g} and a bias of "
            f"{strongest:g}; at most {MAX_PRIOR_LOG_TEMPERATURE:g} and {MAX_PRIOR_BIAS:g} are taken"
        )
    if prior.basis and prior.basis.rank > (room := max_rank_for(mean.classes)):
        raise ModelError(
            f"the basis of the heads has rank {prior.basis.rank}; for {mean.classes} classes a "
            f"sealed head has room for {room}"
        )


def prior_from_file(
    numbers: dict[str, float | list[float]], tensors: Mapping[str, Tensor]
) -> HeadPrior:
    """The prior out of a file, from its numbers and all of its tensors; errors as above."""
    basis = {
        name.removeprefix(_FILE_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(_FILE_PREFIX)
    }
    return prior_from_dict(numbers, basis)


def _number(value: float | list[float]) -> float:
    """A plain number out of a message."""
    if isinstance(value, list | bool):
        raise ModelError(f"a head prior holds {value!r} where one number belongs")
    return float(value)


def _scores(numbers: dict[str, float | list[float]]) -> NonconformityScores:
    """What prediction sets start from, out of a message."""
    atoms = numbers["scores"]
    if not isinstance(atoms, list):
        raise ModelError(f"a head prior holds {atoms!r} where scores belong")
    return NonconformityScores(
        atoms=tuple(_number(atom) for atom in atoms),
        tail_mass=_number(numbers["scores_beyond"]),
        concentration=_number(numbers["scores_concentration"]),
    )
