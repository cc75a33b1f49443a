"""Participants of a run, and the sums that enrolment released of them together."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.checksums import encode_tensors, read_tensors
from sottovoce.shared.errors import EngineError, ModelError


@dataclass(frozen=True, kw_only=True, slots=True)
class Participant:
    """A device of this run, by the user's pseudonym and Flower's node."""

    user: str
    node: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EnrolmentSummary:
    """Summary of enrolment; every figure is a sum of booked releases.

    Attributes:
        contributors: Devices that train.
        receivers: Devices that only take the model.
        label_counts: Noised label counts of all contributing devices, shape (classes,), float64.
        feature_sum: Noised sum of their projected rows, shape (inputs,), float64.
        devices_aggregated: Number of devices aggregated in ``label_counts`` and ``feature_sum``,
            above 0; in a run that goes on, as many as there were when it began.
        rows_per_device: How many rows one device put into it; 0 for all of its utterances.
    """

    contributors: list[Participant]
    receivers: list[Participant]
    label_counts: Tensor
    feature_sum: Tensor
    devices_aggregated: int
    rows_per_device: int = 0

    def exclude_users(self, users: Collection[str]) -> "EnrolmentSummary":
        """Leave out the users who have withdrawn; the sums that enrolment released stay.

        Their part in these sums was released before, and cannot be taken out of them.

        Raises:
            EngineError: Nobody contributes any more.
        """
        if not users:
            return self
        contributors = [one for one in self.contributors if one.user not in users]
        if not contributors:
            raise EngineError(
                "every user who contributes to this run has withdrawn consent: there is nobody "
                "to train with. What was trained before stays in the run's folder"
            )
        receivers = [one for one in self.receivers if one.user not in users]
        return replace(self, contributors=contributors, receivers=receivers)

    def exclude_participants(self, participants: Sequence[Participant]) -> "EnrolmentSummary":
        """Leave out some contributing devices, whose part of the sums is taken to be the mean."""
        left = [one for one in self.contributors if one not in participants]
        share = len(left) / len(self.contributors)
        return replace(
            self,
            contributors=left,
            label_counts=self.label_counts * share,
            feature_sum=self.feature_sum * share,
            devices_aggregated=len(left),
        )

    @property
    def utterances_per_device(self) -> float:
        """Mean number of utterances on a device, at least 1."""
        # Noise can bring the sum to 0 or below, and later sums are divided by this.
        return max(float(self.label_counts.sum()) / self.devices_aggregated, 1.0)

    @property
    def centre(self) -> Tensor:
        """Mean of these voices' projected rows, shape (inputs,), float32."""
        return (
            self.feature_sum
            / ((self.rows_per_device or self.utterances_per_device) * self.devices_aggregated)
        ).float()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InitialCohortSummary:
    """Summary of the initial cohort; every figure is a sum of booked releases.

    Attributes:
        label_counts: Noised label counts, shape (classes,), float64.
        centre: Mean of these voices' projected rows, shape (inputs,), float32.
        utterances_per_device: Mean number of utterances on a device, at least 1.
    """

    label_counts: Tensor
    centre: Tensor
    utterances_per_device: float

    def save(self, path: Path, plan_hash: str) -> None:
        """Write the summary to a file.

        Args:
            path: The file.
            plan_hash: SHA-256 of the plan that it belongs to.
        """
        words = {"plan": plan_hash, "usual": json.dumps(self.utterances_per_device)}
        tensors = {"counts": self.label_counts, "centre": self.centre}
        replace_file(path, encode_tensors(tensors, words))

    @classmethod
    def load(cls, path: Path, plan_hash: str) -> "InitialCohortSummary":
        """Load the summary of a plan; arguments as for :meth:`save`.

        Raises:
            ModelError: It is damaged, or another plan's.
        """
        way_out = f"remove {path.parent} to begin this run anew"
        try:
            tensors, words = read_tensors(path)
            summary = cls(
                label_counts=tensors["counts"],
                centre=tensors["centre"],
                utterances_per_device=float(words["usual"]),
            )
        except (ModelError, KeyError, ValueError) as error:
            raise ModelError(f"{path} is damaged ({error}); {way_out}") from error
        if words.get("plan") != plan_hash:
            raise ModelError(f"{path} belongs to another plan; {way_out}")
        return summary
