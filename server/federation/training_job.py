"""A job: all that the operator decided before the first device is asked.

It is a folder, so that a server that was killed finds everything again: ``job.json`` with the plan
and the settings, ``public.safetensors`` with the initial weights, the projection and what else was
learned from public corpora.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sottovoce.server.aggregation.server_optimizer import AggregationSettings, compute_class_weights
from sottovoce.server.federation.cohort_sampling import CohortSampler
from sottovoce.server.personalisation.prior_estimation import fit_head_prior
from sottovoce.server.planning.job_record import (
    JobRecord,
    OtherSchemaError,
    read_job_record,
    write_job,
)
from sottovoce.shared import validation
from sottovoce.shared.calibration import HeadPrior, adapter_basis
from sottovoce.shared.errors import ModelError, SettingError, SottovoceError
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker import neutral_direction
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

MAX_DEVICES: Final = 1_100_000_000
"""A billion users, and those who are held out."""
MAX_TIMEOUT_S: Final = 1e8
"""Three years."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """Settings of one training run, as chosen by the operator.

    Attributes:
        plan: The public facts that devices agree to.
        aggregation: How updates become a model.
        weights: Where training starts, shape (params,), float32.
        projection: The public projection.
        speaker_statistics: How speakers differ, from public corpora.
        devices: How many devices to wait for, at least 1.
        quorum: Share of all devices that must enrol, and of the contributing ones whose updates
            make a round valid, in [0, 1]; 0 lets an empty cohort release noise alone.
        timeout_s: How long to wait for replies, in seconds.
        class_exponent: 1 weighs classes by the inverse of their noised frequency, 0 not at all.
        budgets: What the sums that the server releases may cost one user; none lets all pass.
        simulated_seed: Seed of a simulated server, whose noise can be repeated and protects
            nobody; None on a real one.
        held_out_path: File of public speakers that pretraining has not seen, projected and
            normalised (``features``, ``frames``, ``labels``, ``speakers``); the prior of the heads
            comes from them. None where there is no public corpus.
        head_store_path: The store of users' sealed heads, for all of an operator's runs; None
            stores those of this run beside it.
        calibration_groups: Number of groups for cross-fitting: users are evaluated by models that
            were trained without their group, each as long as the final one; 0 evaluates by the
            final one. Only where nothing is promised.
        cohort_sampler: How rounds are drawn where there are too many devices to ask all of them to
            enrol; None asks them all.
    """

    plan: Plan
    aggregation: AggregationSettings
    weights: Tensor
    projection: PublicProjection
    speaker_statistics: SpeakerStatistics
    devices: int
    quorum: float = 0.5
    timeout_s: float = 3600.0
    class_exponent: float = 1.0
    budgets: tuple[PrivacyBudget, ...] = ()
    simulated_seed: int | None = None
    held_out_path: Path | None = None
    head_store_path: Path | None = None
    calibration_groups: int = 0
    cohort_sampler: CohortSampler | None = None

    def __post_init__(self) -> None:
        validation.require_count(1, MAX_DEVICES, devices=self.devices)
        validation.require_count(0, MAX_DEVICES, calibration_groups=self.calibration_groups)
        validation.require_range(0, 1, quorum=self.quorum)
        validation.require_range(0, MAX_TIMEOUT_S, timeout_s=self.timeout_s)
        validation.require_range(0, 1, class_exponent=self.class_exponent)
        if self.calibration_groups and self.plan.scheme.promised:
            raise SettingError(
                f"calibration_groups is {self.calibration_groups}; devices would train as many "
                "models more, which the plan's privacy does not pay for: leave it to plans without "
                "any"
            )

    def save(self, folder: Path) -> None:
        """Save the job in a folder."""
        record = JobRecord(
            plan=self.plan.to_json(),
            aggregation=self.aggregation,
            length=self.projection.row_norm,
            devices=self.devices,
            quorum=self.quorum,
            timeout_s=self.timeout_s,
            class_exponent=self.class_exponent,
            budgets=self.budgets,
            simulated_seed=self.simulated_seed,
            held_out=str(self.held_out_path) if self.held_out_path else None,
            groups=self.calibration_groups,
            cohort_sampler=self.cohort_sampler,
            heads=str(self.head_store_path) if self.head_store_path else None,
        )
        tensors = self.speaker_statistics.to_tensors() | {
            "weights": self.weights,
            "mean": self.projection.mean,
            "matrix": self.projection.matrix,
        }
        write_job(folder, record, tensors)

    @classmethod
    def load(cls, folder: Path) -> "Job":
        """Load the job of a folder.

        Raises:
            ModelError: The folder holds none, a damaged one, or one of another schema.
        """
        try:
            record = read_job_record(folder / "job.json")
            return _build_job(record, load_file(folder / "public.safetensors"))
        except OtherSchemaError as error:
            raise ModelError(f"{folder} holds a job of {error}") from error
        except (OSError, ValueError, KeyError, SafetensorError, SottovoceError) as error:
            raise ModelError(f"{folder} holds no usable job ({error}); prepare it again") from error

    def estimate_head_prior(self, weights: Tensor) -> HeadPrior:
        """Estimate the prior of users' heads, under the model of these weights."""
        training, classes = self.plan.training, len(self.plan.labels)
        public, vectors = self._evaluate_held_out(weights)
        speakers = [(logits, labels) for _, logits, labels in public]
        prior = fit_head_prior(
            speakers, classes=classes, smoothing=training.label_smoothing, loss=training.loss
        )
        return replace(prior, basis=adapter_basis.fit_basis(vectors, classes))

    def public_speaker_logits(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Compute logits and labels of each held-out public speaker, under these weights."""
        return [(logits, labels) for _, logits, labels in self._evaluate_held_out(weights)[0]]

    def _evaluate_held_out(
        self, weights: Tensor
    ) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
        """Evaluate each held-out speaker: inputs, logits and labels; and all embeddings."""
        model = build_network(self.plan.model, seed=0).eval()
        load_parameters(model, weights)
        if self.held_out_path is None:
            return [], torch.zeros(0, model.head.in_features)
        public = _load_held_out(self.held_out_path)
        with torch.no_grad():
            vectors = model.compute_embeddings(public["features"], public["frames"])
            logits = model.head(vectors)
        inputs, labels = public["features"], public["labels"]
        names = sorted(set(public["speakers"].tolist()))
        each = [public["speakers"] == name for name in names]
        return [(inputs[own], logits[own], labels[own]) for own in each], vectors

    def find_neutral_direction(self, weights: Tensor) -> Tensor | None:
        """Find the direction of neutral speech for these weights.

        See ``neutral_direction.estimate_direction``.
        """
        inputs_and_logits = [
            (inputs, logits) for inputs, logits, _ in self._evaluate_held_out(weights)[0]
        ]
        return neutral_direction.estimate_direction(inputs_and_logits, self.plan.labels)

    def compute_class_weights(self, counts: Tensor) -> Tensor:
        """Compute class weights from all devices' noised label counts.

        See ``server_optimizer.compute_class_weights``.
        """
        return compute_class_weights(counts, self.class_exponent)


def _load_held_out(path: Path) -> dict[str, Tensor]:
    """Load public speakers that pretraining has not seen."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be used ({error}); prepare the job again") from error


def _build_job(record: JobRecord, tensors: Mapping[str, Tensor]) -> Job:
    """The job of a folder's two files."""
    projection = PublicProjection(
        mean=tensors["mean"], matrix=tensors["matrix"], row_norm=record.length
    )
    return Job(
        plan=Plan.from_json(record.plan),
        aggregation=record.aggregation,
        weights=tensors["weights"],
        projection=projection,
        speaker_statistics=SpeakerStatistics.from_tensors(tensors),
        devices=record.devices,
        quorum=record.quorum,
        timeout_s=record.timeout_s,
        class_exponent=record.class_exponent,
        budgets=record.budgets,
        simulated_seed=record.simulated_seed,
        held_out_path=Path(record.held_out) if record.held_out else None,
        head_store_path=Path(record.heads) if record.heads else None,
        calibration_groups=record.groups,
        cohort_sampler=record.cohort_sampler,
    )
