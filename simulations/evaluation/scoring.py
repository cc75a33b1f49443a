"""Scores of a fold's test users: the shared model alone, and after each user's head."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sottovoce.client.device.vault import Vault
from sottovoce.client.personalisation.head_calibrator import HeadCalibrator
from sottovoce.shared import calibration
from sottovoce.shared.calibration import conformal
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.evaluation.fold_result import COORDINATES_COLUMN


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TestUser:
    """Clips of a test user, and what their device learned from enrolment.

    Attributes:
        clip_ids: Names of the clips.
        labelled: Whether the user labelled each clip, so that the head was fitted on it.
        examples: The clips as raw features, with their true labels.
        mean: The user's mean, shape (inputs,).
        calibrator: The user's calibration head.
    """

    __test__ = False  # pytest collects classes by this prefix

    clip_ids: Sequence[str]
    labelled: Sequence[bool]
    examples: Examples
    mean: Tensor
    calibrator: HeadCalibrator

    @classmethod
    def from_vault(
        cls,
        vault: Vault,
        package: ModelPackage,
        *,
        examples: Examples,
        clip_ids: Sequence[str],
        labelled: Sequence[bool],
    ) -> Self:
        """Read the mean and the head from the vault of a device that received the model.

        Args:
            vault: Vault of the device.
            package: The model that it received.
            examples: As the attribute.
            clip_ids: As the attribute.
            labelled: As the attribute.
        """
        return cls(
            clip_ids=clip_ids,
            labelled=labelled,
            examples=examples,
            mean=vault.get_tensors("normaliser")["mean"],
            calibrator=HeadCalibrator(vault, model_hash=package.model_hash, prior=package.prior),
        )


def score_users(package: ModelPackage, users: Sequence[TestUser]) -> dict[str, Tensor]:
    """Score all clips of test users, in the order of users and clips.

    Args:
        package: The fold's model.
        users: The fold's test users, at least one.

    Returns:
        Columns of ``fold_result``: ``before`` and ``after`` heads, shape (clips, classes),
        float64; ``labels`` and ``labelled``, shape (clips,); ``coordinates`` where the head prior
        has a basis; ``covered`` and ``sizes`` where the model has prediction sets.
    """
    before, after, sets = [], [], []
    coordinates: list[Tensor] = []
    for user in users:
        logits, own_coordinates = package.logits_and_coordinates(
            user.examples.features, user.examples.frames, user.mean
        )
        head = user.calibrator.current_head()
        before.append(logits)
        after.append(calibration.calibrate_logits(head, logits, own_coordinates))
        coordinates += [] if own_coordinates is None else [own_coordinates]
        sets.append(_prediction_sets(package, user.calibrator, after[-1]))
    scores = {
        # In double precision: a float32 softmax sums to 1 only up to rounding.
        "before": torch.softmax(torch.cat(before).double(), 1),
        "after": torch.softmax(torch.cat(after).double(), 1),
        "labels": torch.cat([user.examples.labels for user in users]),
        "labelled": torch.tensor([one for user in users for one in user.labelled]),
    }
    if coordinates:
        scores[COORDINATES_COLUMN] = torch.cat(coordinates).float()
    found = [one for one in sets if one is not None]
    if found:
        inside = torch.cat(found)
        truth = scores["labels"][:, None]
        scores |= {"covered": inside.gather(1, truth)[:, 0], "sizes": inside.sum(1)}
    return scores


def measure_learning_curve(
    package: ModelPackage, users: Sequence[TestUser], rounds: Iterable[tuple[int, Tensor]]
) -> list[tuple[int, float]]:
    """Measure UAR on the test users after each round, for display only.

    Nothing is selected by it: a model chosen on its test users would look better than it is.

    Args:
        package: The fold's final model, for its projection and network.
        users: The fold's test users.
        rounds: Number and weights of each round, shape (params,).
    """
    # Inputs do not depend on the round: prepared once for all of them.
    ready = [
        (
            package.projection.prepare_inputs(
                user.examples.features, user.mean, user.examples.frames
            ),
            user.examples.frames,
        )
        for user in users
    ]
    labels = torch.cat([user.examples.labels for user in users]).numpy()
    network, points = package.build_network(), []
    for number, weights in rounds:
        load_parameters(network, weights)
        with torch.no_grad():
            guesses = torch.cat([network(*batch).argmax(1) for batch in ready])
        matrix = metrics.confusion_matrix(labels, guesses.numpy(), len(package.labels))
        points.append((number, float(metrics.uar(matrix))))
    return points


def _prediction_sets(
    package: ModelPackage, calibrator: HeadCalibrator, calibrated: Tensor
) -> Tensor | None:
    """A user's prediction sets, (utterances, classes), bool; None where the model has none."""
    if package.prior.scores is None:
        return None
    limit = conformal.find_threshold(
        package.prior.scores, calibrator.nonconformity_scores(), coverage=conformal.DEFAULT_COVERAGE
    )
    return conformal.prediction_set_mask(torch.softmax(calibrated.double(), 1), limit)
