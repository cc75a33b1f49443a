"""Prior distribution of a user's calibration head, before the first label."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.calibration import conformal
from sottovoce.shared.calibration.adapter_basis import AdapterBasis, max_rank_for
from sottovoce.shared.calibration.conformal import NonconformityScores
from sottovoce.shared.calibration.head import CalibrationHead
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.models.network import Network

MIN_PRIOR_SD, MAX_PRIOR_SD = 1e-3, 10.0
MAX_PRIOR_LOG_TEMPERATURE, MAX_PRIOR_BIAS = 10.0, 50.0
"""Bounds on what a server may send. Beyond them a fit could fail depending on the clips, and the
failure would tell the server something about them."""

_BASIS_FIELDS: Final = ("centre", "matrix")
_FILE_PREFIX: Final = "basis."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadPrior:
    """Prior of a user's calibration head: independent Gaussians.

    Attributes:
        mean: The head of a user without labels.
        log_temperature_sd: Standard deviation of users' log temperatures, above 0.
        bias_sd: Standard deviation of each class's bias, in logits, above 0.
        scores: Population's nonconformity scores under the mean head; None if unknown: then there
            are no prediction sets.
        basis: Directions in which heads may change the last layer; None if heads leave it as it
            is.

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
        """Compute coordinates of utterances in the basis; None without one.

        Args:
            vectors: Input of the last layer, shape (utterances, width).

        Returns:
            Shape (utterances, rank), float64.
        """
        return None if self.basis is None else self.basis.project_vectors(vectors)

    def logits_and_coordinates(
        self, network: Network, inputs: Tensor, frames: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Run a model once for its logits and for the coordinates of its last layer's input.

        Args:
            network: The shared model.
            inputs: As :meth:`Network.forward` takes them.
            frames: Real frames of each utterance, shape (utterances,), int64.

        Returns:
            Logits, shape (utterances, classes), and coordinates, shape (utterances, rank); None
            instead of coordinates without a basis.
        """
        with torch.no_grad():
            vectors = network.compute_embeddings(inputs, frames)
            logits: Tensor = network.head(vectors)
        return logits, self.project_vectors(vectors)

    def is_compatible(self, head: CalibrationHead) -> bool:
        """Whether a head's adapter, if it has one, was fitted in this basis.

        Example:
            >>> from sottovoce.shared.calibration import identity_head
            >>> HeadPrior(mean=identity_head(2)).is_compatible(identity_head(2))
            True
        """
        if head.adapter is None:
            return True
        return self.basis is not None and (self.basis.tag, self.basis.rank) == (
            head.adapter.basis_tag,
            head.adapter.weights.shape[1],
        )

    def as_dict(self) -> dict[str, float | list[float]]:
        """Convert mean, widths and scores to plain numbers, for a message or a JSON file.

        The mean is a population's and has no adapter. The basis is large and is sent as tensors,
        see :meth:`basis_tensors`.

        Example:
            >>> from sottovoce.shared.calibration import identity_head
            >>> numbers = HeadPrior(mean=identity_head(2)).as_dict()
            >>> numbers["bias"], numbers["bias_sd"]
            ([0.0, 0.0], 0.3)
            >>> prior_from_dict(numbers).mean.classes
            2
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
        """Tensors of the basis by name; empty without a basis.

        Example:
            >>> from sottovoce.shared.calibration import identity_head
            >>> HeadPrior(mean=identity_head(2)).basis_tensors()
            {}
        """
        return {name: getattr(self.basis, name) for name in _BASIS_FIELDS} if self.basis else {}

    def prefixed_basis_tensors(self) -> dict[str, Tensor]:
        """Tensors of the basis under names that no other tensor of a model file has."""
        return {_FILE_PREFIX + name: tensor for name, tensor in self.basis_tensors().items()}


def prior_from_dict(
    numbers: dict[str, float | list[float]], tensors: Mapping[str, Tensor] | None = None
) -> HeadPrior:
    """Rebuild a prior from its numbers and tensors; a server may have sent anything.

    Args:
        numbers: As :meth:`HeadPrior.as_dict` returns them.
        tensors: As :meth:`HeadPrior.basis_tensors` returns them.

    Raises:
        ModelError: A missing, unknown or unusable entry, numbers that no prior of ours holds, or a
            basis of a higher rank than a sealed head has room for.

    Guarantees:
        - Refusal depends on the prior alone, never on a user's clips.
    """
    try:
        bias = torch.tensor(numbers["bias"], dtype=torch.float64)
        mean = CalibrationHead(
            log_temperature=conformal.parse_number(numbers["log_temperature"]), bias=bias
        )
        widths = [
            conformal.parse_number(numbers[name]) for name in ("log_temperature_sd", "bias_sd")
        ]
        prior = HeadPrior(
            mean=mean,
            log_temperature_sd=widths[0],
            bias_sd=widths[1],
            scores=conformal.parse_scores(numbers) if "scores" in numbers else None,
            basis=AdapterBasis(**tensors) if tensors else None,
        )
    # RuntimeError is what torch raises for tensors it cannot convert.
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
    """Rebuild a prior from a model file, given its numbers and all of its tensors.

    Errors are those of :func:`prior_from_dict`.
    """
    basis = {
        name.removeprefix(_FILE_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(_FILE_PREFIX)
    }
    return prior_from_dict(numbers, basis)
