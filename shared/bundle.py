"""A model as it is handed out: everything that turns features into probabilities, and nothing else.

Two files: ``model.safetensors`` with the numbers, ``model.json`` with labels, settings and the
SHA-256 of the numbers. A bundle whose files do not belong together is refused.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sottovoce.shared import neutral
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.front import Front, finish
from sottovoce.shared.heads import HeadPrior, prior_from_file
from sottovoce.shared.models.flat import load_flat
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.shared.normaliser import Population

SCHEMA = 1
_NUMBERS, _WORDS = "model.safetensors", "model.json"
_NEUTRAL = "neutral"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bundle:
    """A trained model with its public surroundings.

    Attributes:
        labels: Emotions in the order of the classes.
        extractor: Name of the feature extractor.
        spec: The shared model.
        weights: Shape (params,), float32.
        front: The public front.
        centre: Where the training population's voices lie, shape (inputs,), float32.
        population: How public speakers differ.
        prior: Where users' heads start from.
        user_mean: Whether the model expects the user's mean to be taken off.
        model_hash: What heads are bound to.
        neutral: Where the model hears neutral speech, a unit vector, shape (inputs,); None where it
            cannot say.

    Raises:
        ModelError: Parts that do not fit each other.
    """

    labels: tuple[str, ...]
    extractor: str
    spec: ModelSpec
    weights: Tensor
    front: Front
    centre: Tensor
    population: Population
    prior: HeadPrior
    user_mean: bool
    model_hash: str
    neutral: Tensor | None = None

    def __post_init__(self) -> None:
        inputs, classes = self.front.inputs, len(self.labels)
        fits = {
            "labels": classes == self.spec.classes == len(set(self.labels)),
            "front": inputs == self.spec.inputs,
            "centre": self.centre.shape == (inputs,) and bool(self.centre.isfinite().all()),
            "population": self.population.between.shape == (inputs,),
            "prior": self.prior.mean.classes == classes,
            "basis": self.prior.basis is None or self.prior.basis.width == self._width,
            "weights": self.weights.dtype == torch.float32,
            "model_hash": re.fullmatch("[0-9a-f]{64}", self.model_hash) is not None,
        }
        unfit = [name for name, good in fits.items() if not good]
        if unfit:
            raise ModelError(
                f"{', '.join(unfit)} of the model do not fit a {self.spec.kind} of "
                f"{self.spec.inputs} inputs and {self.spec.classes} classes"
            )
        neutral.check(self.neutral, inputs)

    @property
    def _width(self) -> int:
        """How many numbers the last layer reads."""
        return int(build(self.spec, seed=0).head.in_features)

    def network(self) -> Network:
        """The model, ready to predict."""
        network = build(self.spec, seed=0)
        load_flat(network, self.weights)
        return network.eval()

    def logits(
        self, features: Tensor, frames: Tensor, mean: Tensor, *, network: Network | None = None
    ) -> Tensor:
        """The shared model's logits, shape (utterances, classes), before any head.

        Args:
            features: Shape (utterances, features) or (utterances, frames, features).
            frames: Real frames of each utterance, shape (utterances,), int64.
            mean: The user's, shape (inputs,); ``centre`` for an unknown user.
            network: What :meth:`network` built, for a caller that asks often.
        """
        return self.heard(features, frames, mean, network=network)[0]

    def heard(
        self, features: Tensor, frames: Tensor, mean: Tensor, *, network: Network | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The logits, and what heads need beside them: coordinates in the prior's basis.

        Args:
            features: As in :meth:`logits`.
            frames: Likewise.
            mean: Likewise.
            network: Likewise.

        Returns:
            Logits, shape (utterances, classes), and coordinates, shape (utterances, rank); None
            where the prior has no basis.
        """
        projected = self.front.project(features)
        inputs = finish(projected, mean, frames, length=self.front.length)
        return self.prior.heard(network or self.network(), inputs, frames)

    def save(self, folder: Path) -> None:
        """Write both files; the words last, so that a cut-off bundle is none."""
        folder.mkdir(parents=True, exist_ok=True)
        population = {name: getattr(self.population, name) for name in _population_fields()}
        tensors = {
            "weights": self.weights,
            "front.mean": self.front.mean,
            "front.matrix": self.front.matrix,
            "centre": self.centre,
        } | {f"population.{name}": tensor for name, tensor in population.items()}
        tensors |= self.prior.filed()
        if self.neutral is not None:
            tensors[_NEUTRAL] = self.neutral
        # Copies: safetensors refuses tensors that share memory, as an unknown population's do.
        data = save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
        words = {
            "schema": SCHEMA,
            "labels": list(self.labels),
            "extractor": self.extractor,
            "model": self.spec.to_dict(),
            "length": self.front.length,
            "user_mean": self.user_mean,
            "prior": self.prior.as_dict(),
            "model_hash": self.model_hash,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        (folder / _NUMBERS).write_bytes(data)
        (folder / _WORDS).write_text(json.dumps(words, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Read a bundle.

        Raises:
            ModelError: None there, damaged, or of another release.
        """
        way_out = "copy the model folder again, or train it anew"
        try:
            words: dict[str, Any] = json.loads((folder / _WORDS).read_text())
            data = (folder / _NUMBERS).read_bytes()
            if words["schema"] != SCHEMA:
                raise ModelError(f"its schema is {words['schema']}, this release reads {SCHEMA}")
            if hashlib.sha256(data).hexdigest() != words["sha256"]:
                raise ModelError(f"{_NUMBERS} is not the one that {_WORDS} names")
            bundle = cls(**_fields(words, load(data)))
            bundle.network()  # weights of another length, or that are no numbers, do not load
        except FileNotFoundError as error:
            raise ModelError(f"{folder} holds no model: no {error.filename}; {way_out}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ModelError(f"{folder} holds no usable model ({error}); {way_out}") from error
        except (ModelError, SettingError) as error:
            raise ModelError(f"{folder} holds no usable model: {error}; {way_out}") from error
        return bundle


def _fields(words: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The bundle's fields from its files."""
    front = Front(
        mean=tensors["front.mean"],
        matrix=tensors["front.matrix"],
        length=float(words["length"]),
    )
    population = {name: tensors[f"population.{name}"] for name in _population_fields()}
    return {
        "labels": tuple(words["labels"]),
        "extractor": str(words["extractor"]),
        "spec": ModelSpec.from_dict(words["model"]),
        "weights": tensors["weights"],
        "front": front,
        "centre": tensors["centre"],
        "population": Population(**population),
        "prior": prior_from_file(words["prior"], tensors),
        "user_mean": bool(words["user_mean"]),
        "model_hash": str(words["model_hash"]),
        "neutral": tensors.get(_NEUTRAL),
    }


def _population_fields() -> tuple[str, ...]:
    """Names of the population's statistics."""
    return tuple(Population.__dataclass_fields__)
