"""A job: all that the operator decided before the first device is asked.

It is a folder, so that a server that was killed finds everything again: ``job.json`` with the plan
and the settings, ``public.safetensors`` with the initial weights, the front and what else was
learned from public corpora.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sottovoce.server.checkpoint import replace_file
from sottovoce.server.cohorts import Cohorts
from sottovoce.server.prior import population_prior
from sottovoce.server.round import Aggregation, class_weights
from sottovoce.shared import check, neutral
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.front import Front
from sottovoce.shared.heads import HeadPrior, basis
from sottovoce.shared.models.flat import load_flat
from sottovoce.shared.models.spec import build
from sottovoce.shared.normaliser import Population
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.ledger import Budget

SCHEMA = 3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """One training run, as the operator wants it.

    Attributes:
        plan: The public facts that devices agree to.
        aggregation: How updates become a model.
        weights: Where training starts, shape (params,), float32.
        front: The public front.
        population: How speakers differ, from public corpora.
        devices: How many devices to wait for, at least 1.
        quorum: Share of all devices that must enrol, and of the contributing ones whose updates
            make a round valid, in (0, 1].
        timeout_s: How long to wait for replies, in seconds.
        class_exponent: 1 weighs classes by the inverse of their noised frequency, 0 not at all.
        budgets: What the sums that the server lets out may cost one user; none lets all pass.
        simulated_seed: Seed of a simulated server, whose noise can be repeated and protects
            nobody; None on a real one.
        held_out: File of public speakers that the warm start has not seen, behind front and
            normaliser (``features``, ``frames``, ``labels``, ``speakers``); the prior of the heads
            comes from them. None where there is no public corpus.
        heads: The store of users' sealed heads, for all of an operator's runs; None keeps those of
            this run beside it.
        groups: In how many groups users are judged by models that were trained without them, each
            as long as the final one; 0 judges by the final one. Only where nothing is promised.
        crowd: How rounds are drawn where there are too many devices to ask all of them to enrol;
            None asks them all.
    """

    plan: Plan
    aggregation: Aggregation
    weights: Tensor
    front: Front
    population: Population
    devices: int
    quorum: float = 0.5
    timeout_s: float = 3600.0
    class_exponent: float = 1.0
    budgets: tuple[Budget, ...] = ()
    simulated_seed: int | None = None
    held_out: Path | None = None
    heads: Path | None = None
    groups: int = 0
    crowd: Cohorts | None = None

    def __post_init__(self) -> None:
        check.not_negative(groups=self.groups)
        if self.groups and (self.plan.private or self.plan.user):
            raise SettingError(
                f"groups is {self.groups}; devices would train as many models more, which the "
                "plan's privacy does not pay for: leave groups to plans without any"
            )

    def save(self, folder: Path) -> None:
        """Keep the job in a folder."""
        facts: dict[str, Any] = {
            "schema": SCHEMA,
            "plan": self.plan.to_json(),
            "aggregation": asdict(self.aggregation),
            "length": self.front.length,
            "devices": self.devices,
            "quorum": self.quorum,
            "timeout_s": self.timeout_s,
            "class_exponent": self.class_exponent,
            "budgets": [asdict(budget) for budget in self.budgets],
            "simulated_seed": self.simulated_seed,
            "held_out": str(self.held_out) if self.held_out else None,
            "groups": self.groups,
        }
        if self.crowd:
            facts["crowd"] = asdict(self.crowd)
        if self.heads:
            facts["heads"] = str(self.heads)
        tensors = {name: getattr(self.population, name) for name in _population_fields()}
        tensors |= {"weights": self.weights, "mean": self.front.mean, "matrix": self.front.matrix}
        # Copies: safetensors refuses tensors that share memory, as an unknown population's do.
        kept = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        replace_file(folder / "public.safetensors", save(kept))
        replace_file(folder / "job.json", json.dumps(facts, sort_keys=True, indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> "Job":
        """Read a job.

        Raises:
            ModelError: The folder holds none, or a damaged one.
        """
        try:
            facts: dict[str, Any] = json.loads((folder / "job.json").read_text())
            tensors = load_file(folder / "public.safetensors")
            return cls(**_settings(facts, tensors))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(f"{folder} holds no usable job ({error}); prepare it again") from error

    def prior_of(self, weights: Tensor) -> HeadPrior:
        """Where every user's head starts from, under the model of these weights."""
        training, classes = self.plan.training, len(self.plan.labels)
        public, vectors = self._public(weights)
        speakers = [(logits, labels) for _, logits, labels in public]
        prior = population_prior(
            speakers, classes=classes, smoothing=training.label_smoothing, loss=training.loss
        )
        return replace(prior, basis=basis.learn(vectors, classes))

    def public_speakers(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Logits and labels of each held-out public speaker under the model of these weights."""
        return [(logits, labels) for _, logits, labels in self._public(weights)[0]]

    def _public(self, weights: Tensor) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
        """What the model reads of each, logits and labels; what its last layer reads of all."""
        model = build(self.plan.model, seed=0).eval()
        load_flat(model, weights)
        if self.held_out is None:
            return [], torch.zeros(0, model.head.in_features)
        public = _held_out(self.held_out)
        with torch.no_grad():
            vectors = model.vectors(public["features"], public["frames"])
            logits = model.head(vectors)
        inputs, labels = public["features"], public["labels"]
        names = sorted(set(public["speakers"].tolist()))
        each = [public["speakers"] == name for name in names]
        return [(inputs[own], logits[own], labels[own]) for own in each], vectors

    def neutral_of(self, weights: Tensor) -> Tensor | None:
        """Where the model of these weights hears neutral speech; see ``neutral.direction``."""
        heard = [(inputs, logits) for inputs, logits, _ in self._public(weights)[0]]
        return neutral.direction(heard, self.plan.labels)

    def weigh(self, counts: Tensor) -> Tensor:
        """Class weights from all devices' noised label counts; see ``round.class_weights``."""
        return class_weights(counts, self.class_exponent)


def _held_out(path: Path) -> dict[str, Tensor]:
    """Public speakers that the warm start has not seen."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be used ({error}); prepare the job again") from error


def _population_fields() -> tuple[str, ...]:
    """Names of the population's statistics."""
    return tuple(Population.__dataclass_fields__)


def _settings(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Rebuild the nested settings."""
    front = Front(mean=tensors["mean"], matrix=tensors["matrix"], length=float(facts["length"]))
    return {
        "plan": Plan.from_json(facts["plan"]),
        "aggregation": Aggregation(**facts["aggregation"]),
        "weights": tensors["weights"],
        "front": front,
        "population": Population(**{name: tensors[name] for name in _population_fields()}),
        "devices": int(facts["devices"]),
        "quorum": float(facts["quorum"]),
        "timeout_s": float(facts["timeout_s"]),
        "class_exponent": float(facts["class_exponent"]),
        "budgets": tuple(Budget.from_dict(budget) for budget in facts["budgets"]),
        "simulated_seed": facts["simulated_seed"],
        "held_out": Path(facts["held_out"]) if facts["held_out"] else None,
        "heads": Path(facts["heads"]) if facts.get("heads") else None,
        "groups": int(facts["groups"]),
        "crowd": Cohorts(**facts["crowd"]) if "crowd" in facts else None,
    }
