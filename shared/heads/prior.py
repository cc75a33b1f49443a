"""What is believed of a user's head before the first label."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared import check
from sottovoce.shared.conformal import Scores
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.heads.basis import Basis, room_for
from sottovoce.shared.heads.head import Head
from sottovoce.shared.models.network import Network

LEAST_WIDTH, MOST_WIDTH = 1e-3, 10.0
MOST_LOG_TEMPERATURE, MOST_BIAS = 10.0, 50.0
"""Bounds on what a server may send: beyond them a fit can fail, or not, by what the clips are."""

_BASIS: Final = ("centre", "matrix")
_FILED: Final = "basis."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadPrior:
    """What is believed of a user's head before the first label: independent Gaussians.

    Attributes:
        mean: The head of a user without labels.
        log_temperature_sd: How far users' log temperatures lie from the mean, above 0.
        bias_sd: The same for each class's bias, in logits, above 0.
        scores: What prediction sets start from, behind the mean head; None where nobody's are
            known: then there are no sets.
        basis: In which directions heads may bend the last layer; None where there is none: then
            they leave it straight.

    Raises:
        SettingError: A width that is not finite and above 0.
        ModelError: A mean whose adapter is for another basis.
    """

    mean: Head
    log_temperature_sd: float = 0.3
    bias_sd: float = 0.3
    scores: Scores | None = None
    basis: Basis | None = None

    def __post_init__(self) -> None:
        check.positive(log_temperature_sd=self.log_temperature_sd, bias_sd=self.bias_sd)
        if not self.knows(self.mean):
            raise ModelError("the usual head bends the last layer in another basis; get a new one")

    @property
    def precision(self) -> Tensor:
        """Inverse variances, shape (1 + classes,), float64: log temperature first, then biases."""
        widths = [self.log_temperature_sd] + [self.bias_sd] * self.mean.classes
        return torch.tensor(widths, dtype=torch.float64).pow(-2)

    def coordinates(self, vectors: Tensor) -> Tensor | None:
        """Where utterances lie in the basis; None without one.

        Args:
            vectors: What the last layer reads, shape (utterances, width).
        """
        return None if self.basis is None else self.basis.coordinates(vectors)

    def heard(
        self, network: Network, inputs: Tensor, frames: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """A model's logits, and coordinates of what its last layer read; arguments as it takes."""
        with torch.no_grad():
            vectors = network.vectors(inputs, frames)
            logits: Tensor = network.head(vectors)
        return logits, self.coordinates(vectors)

    def knows(self, head: Head) -> bool:
        """Whether a head's adapter, if it has one, is for this basis."""
        if head.adapter is None:
            return True
        return self.basis is not None and (self.basis.tag, self.basis.rank) == (
            head.adapter.basis,
            head.adapter.weights.shape[1],
        )

    def as_dict(self) -> dict[str, float | list[float]]:
        """Mean, widths and scores as plain numbers, for a message or a JSON file.

        The mean is a population's and has no adapter; the basis is large and goes its own way,
        see :meth:`tensors`.
        """
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

    def tensors(self) -> dict[str, Tensor]:
        """The basis, by name; empty without one."""
        return {name: getattr(self.basis, name) for name in _BASIS} if self.basis else {}

    def filed(self) -> dict[str, Tensor]:
        """The same under names that other tensors of a file do not have."""
        return {_FILED + name: tensor for name, tensor in self.tensors().items()}


def prior_from_dict(
    numbers: dict[str, float | list[float]], tensors: Mapping[str, Tensor] | None = None
) -> HeadPrior:
    """The prior that :class:`HeadPrior` wrote; what a server sent may be anything.

    Args:
        numbers: What :meth:`HeadPrior.as_dict` gave.
        tensors: What :meth:`HeadPrior.tensors` gave.

    Raises:
        ModelError: A missing, unknown or unusable entry, numbers that no prior of ours holds, or a
            basis of a higher rank than a sealed head has room for.

    Guarantees:
        - What is refused hangs on the prior alone, never on a user's clips.
    """
    try:
        bias = torch.tensor(numbers["bias"], dtype=torch.float64)
        mean = Head(log_temperature=_number(numbers["log_temperature"]), bias=bias)
        widths = [_number(numbers[name]) for name in ("log_temperature_sd", "bias_sd")]
        prior = HeadPrior(
            mean=mean,
            log_temperature_sd=widths[0],
            bias_sd=widths[1],
            scores=_scores(numbers) if "scores" in numbers else None,
            basis=Basis(**tensors) if tensors else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, SettingError) as error:
        raise ModelError(f"the head prior cannot be used: {error!r}; get a new one") from error
    _check_sane(prior)
    return prior


def _check_sane(prior: HeadPrior) -> None:
    """Refuse what no server of ours sends."""
    mean, widths = prior.mean, (prior.log_temperature_sd, prior.bias_sd)
    if not all(LEAST_WIDTH <= width <= MOST_WIDTH for width in widths):
        raise ModelError(
            f"the head prior has widths {widths}; they must be in [{LEAST_WIDTH:g}, {MOST_WIDTH:g}]"
        )
    strongest = float(mean.bias.abs().max()) if mean.classes else 0.0
    if not (abs(mean.log_temperature) <= MOST_LOG_TEMPERATURE and strongest <= MOST_BIAS):
        raise ModelError(
            f"the usual head has log temperature {mean.log_temperature:g} and a bias of "
            f"{strongest:g}; at most {MOST_LOG_TEMPERATURE:g} and {MOST_BIAS:g} are taken"
        )
    if prior.basis and prior.basis.rank > (room := room_for(mean.classes)):
        raise ModelError(
            f"the basis of the heads has rank {prior.basis.rank}; for {mean.classes} classes a "
            f"sealed head has room for {room}"
        )


def prior_from_file(
    numbers: dict[str, float | list[float]], tensors: Mapping[str, Tensor]
) -> HeadPrior:
    """The prior out of a file, from its numbers and all of its tensors; errors as above."""
    filed = {name: tensor for name, tensor in tensors.items() if name.startswith(_FILED)}
    basis = {name.removeprefix(_FILED): tensor for name, tensor in filed.items()}
    return prior_from_dict(numbers, basis)


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
