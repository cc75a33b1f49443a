"""What a fold's server asked of every device, rebuilt from the models that it stored."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sottovoce.server.aggregation.server_optimizer import compute_class_weights
from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.training_job import Job
from sottovoce.server.personalisation import prior_calibration
from sottovoce.server.planning.recipe import CLASS_EXPONENTS, Recipe
from sottovoce.shared.errors import ModelError
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.audit.device_under_test import StatisticsRequest, Transcript
from sottovoce.simulations.data.fold_inputs import FoldInputs


def rebuild_transcript(
    recipe: Recipe,
    plan: Plan,
    fold_inputs: FoldInputs,
    labels_by_user: Sequence[Tensor],
    server: Path,
) -> Transcript:
    """Rebuild what the server asked, from its stored models.

    Args:
        recipe: How the model was trained.
        plan: The run's.
        fold_inputs: What all folds share.
        labels_by_user: Labels of each training user's utterances.
        server: Where the fold's server stored its models.

    Raises:
        ModelError: Models are missing, or belong to another run.
    """
    sent = [weights for _, weights in checkpoint.iter_round_weights(server)]
    # Another shape is a model of another recipe: config.toml was changed after the run.
    if len(sent) < plan.rounds or sent[0].shape != fold_inputs.initial_weights.shape:
        raise ModelError(
            f"{server} holds {len(sent)} of the {plan.rounds} models of this run; the audit needs "
            "them all: simulate config.toml again into a new folder"
        )
    tensors, _ = checkpoint.load_released_model(server)
    labels = torch.cat(list(labels_by_user))
    counts = torch.bincount(labels, minlength=len(plan.labels)).double()
    return Transcript(
        plan=plan,
        projection=fold_inputs.projection,
        speaker_statistics=fold_inputs.speaker_statistics,
        centre=tensors["centre"],
        class_weights=compute_class_weights(counts, CLASS_EXPONENTS[recipe.class_weights]),
        # The model sent in a round is the one before it: the last one was never sent to train.
        weights=[fold_inputs.initial_weights, *sent[: plan.rounds - 1]],
        # As the server counts it: mean clips of a user times the sampling rate.
        denominator=max(len(labels) / len(labels_by_user) * plan.training.sample_rate, 1.0),
        devices=len(labels_by_user),
        statistics_request=_statistics_request(recipe, plan, fold_inputs, tensors["weights"]),
    )


def _statistics_request(
    recipe: Recipe, plan: Plan, fold_inputs: FoldInputs, weights: Tensor
) -> StatisticsRequest | None:
    """What the server asked after the last round, as it asks it; None where it asked nothing."""
    if plan.calibration is None:
        return None
    job = Job(
        plan=plan,
        aggregation=recipe.aggregation,
        weights=fold_inputs.initial_weights,
        projection=fold_inputs.projection,
        speaker_statistics=fold_inputs.speaker_statistics,
        devices=1,
        held_out_path=fold_inputs.held_out_file,
    )
    speakers = job.public_speaker_logits(weights)
    query = prior_calibration.build_query(
        job.estimate_head_prior(weights),
        speakers,
        subtract_public_shares=plan.scheme.has_private_sums,
    )
    return StatisticsRequest(weights=weights, query=query)
