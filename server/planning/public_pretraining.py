"""Pretraining on public corpora, before any user is asked: projection, statistics and weights.

Nothing here ever sees a user's data; what comes out is a public constant of the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.errors import CorpusError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.speaker import normalisation
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

MAX_DIMS = 65_536
"""Most inputs of a model: more than any extractor has features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectionSettings:
    """Settings of how the public projection is fitted.

    Attributes:
        dims: How many inputs the model gets; 0 keeps all features, only standardised.
        whitening: Exponent from 0 (principal components as they are) to 1 (all of one variance).
        discriminant_weight: How much longer the directions are made that tell public emotions
            apart, 0 or above.
        row_norm: What rows are scaled to behind the normaliser; 0 for not at all.
    """

    dims: int = 128
    whitening: float = 0.0
    discriminant_weight: float = 0.0
    row_norm: float = 1.0

    def __post_init__(self) -> None:
        validation.require_count(0, MAX_DIMS, dims=self.dims)
        validation.require_range(0, 1, whitening=self.whitening)
        validation.require_range(
            0,
            validation.MAX_FACTOR,
            discriminant_weight=self.discriminant_weight,
            row_norm=self.row_norm,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PublicSpeech:
    """Labelled utterances of public corpora.

    Attributes:
        examples: Features and labels, in the order of the run's classes; -1 is another emotion.
        emotions: Every emotion that the corpora have, the run's or not, shape (utterances,),
            int64, from 0; the projection is fitted on all of them.
        speakers: Whose each is, shape (utterances,), int64, from 0.
    """

    examples: Examples
    emotions: Tensor
    speakers: Tensor


def fit_projection(
    rows: Tensor, speakers: Tensor, labels: Tensor, settings: ProjectionSettings
) -> PublicProjection:
    """Fit the projection: principal components of how one speaker's utterances differ.

    Each feature is scaled by its deviation within speakers; what tells speakers apart is left to
    the normaliser. The output is scaled so that utterances are 1 from their speaker's mean (root
    mean square), which gives clip norms a unit.

    Args:
        rows: One row an utterance, shape (utterances, features), float32.
        speakers: Shape (utterances,), int64, from 0.
        labels: Shape (utterances,), int64; -1 where unknown.
        settings: Inputs, whitening, discriminant weight, row norm.

    Raises:
        CorpusError: Fewer utterances than inputs asked for.
    """
    if len(rows) <= max(settings.dims, 1):
        raise CorpusError(
            f"the public corpora have {len(rows)} utterances, too few for a projection to "
            f"{settings.dims} inputs; add a public corpus, or set recipe.projection.dims below "
            f"{len(rows)} in a scenario file (0 keeps all features)"
        )
    wide = rows.double()
    mean = wide.mean(0)
    within = wide - group_means(wide, speakers)[speakers]
    scale = within.std(0, unbiased=False) + 1e-6
    scaled = within / scale
    if not settings.dims:
        size = scaled.square().sum(1).mean().sqrt()
        matrix = torch.diag(1 / scale) / size
        return PublicProjection(
            mean=mean.float(), matrix=matrix.float(), row_norm=settings.row_norm
        )
    values, vectors = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
    values = values.flip(0)[: settings.dims].clamp(min=1e-12)
    vectors = _fix_signs(vectors.flip(1)[:, : settings.dims])
    rotation = _whiten_and_emphasise(scaled @ vectors, labels, values, settings)
    size = (values[:, None] * rotation.square()).sum().sqrt()
    matrix = (vectors @ rotation) / scale[:, None] / size
    return PublicProjection(mean=mean.float(), matrix=matrix.float(), row_norm=settings.row_norm)


def _fix_signs(vectors: Tensor) -> Tensor:
    """Fix eigenvectors' signs so that their largest entries are above 0."""
    largest = vectors.abs().argmax(0, keepdim=True)
    signed: Tensor = vectors * vectors.gather(0, largest).sign()
    return signed


def _whiten_and_emphasise(
    scores: Tensor, labels: Tensor, values: Tensor, settings: ProjectionSettings
) -> Tensor:
    """Whiten and emphasise directions inside the principal space, shape (inputs, inputs)."""
    shrink = torch.diag(values ** (-settings.whitening / 2))
    known = labels >= 0
    if not settings.discriminant_weight or not bool(known.any()):
        return shrink
    white = scores[known] / values.sqrt()
    classes = torch.unique(labels[known], return_inverse=True)[1]
    means = group_means(white, classes)
    telling = torch.linalg.eigh(means.T @ means)[1].flip(1)[:, : len(means) - 1]
    eye = torch.eye(len(values), dtype=torch.float64)
    back = torch.diag(values ** ((1 - settings.whitening) / 2))
    boosted = eye + settings.discriminant_weight * telling @ telling.T
    turned: Tensor = torch.diag(values**-0.5) @ boosted @ back
    return turned


def group_means(rows: Tensor, groups: Tensor) -> Tensor:
    """Compute the mean of each group's rows, shape (groups, width); groups count from 0."""
    size = int(groups.max()) + 1
    counts = torch.bincount(groups, minlength=size).clamp(min=1)
    sums = torch.zeros(size, rows.shape[1], dtype=rows.dtype).index_add_(0, groups, rows)
    return sums / counts[:, None].to(rows.dtype)


def estimate_speaker_statistics(
    rows: Tensor, speakers: Tensor, is_neutral: Tensor
) -> SpeakerStatistics:
    """Estimate how public speakers differ, behind the projection.

    Args:
        rows: Shape (utterances, inputs).
        speakers: Shape (utterances,), int64, from 0.
        is_neutral: Which utterances are neutral, shape (utterances,), bool.
    """
    means = group_means(rows, speakers)
    residual = rows - means[speakers]
    between = means.var(0, unbiased=False).clamp(min=1e-8)
    within = residual.square().mean(0).clamp(min=1e-8)
    if int(is_neutral.sum()) < 2:
        return SpeakerStatistics(
            between=between,
            within=within,
            neutral_offset=torch.zeros_like(between),
            neutral_within=within,
            offset_variance=torch.zeros_like(between),
        )
    neutral = residual[is_neutral]
    offsets = group_means(neutral, speakers[is_neutral])
    spoken = torch.bincount(speakers[is_neutral], minlength=len(offsets))
    own = neutral - offsets[speakers[is_neutral]]
    neutral_within = own.square().mean(0).clamp(min=1e-8)
    speaker_offsets = offsets[spoken > 0]
    chance = neutral_within / spoken[spoken > 0].double().mean()
    return SpeakerStatistics(
        between=between,
        within=within,
        neutral_offset=speaker_offsets.mean(0),
        neutral_within=neutral_within,
        offset_variance=(speaker_offsets.var(0, unbiased=False) - chance).clamp(min=0).float(),
    )


def normalise_public_speech(
    projection: PublicProjection, speech: PublicSpeech, *, user_mean: bool
) -> Examples:
    """Project and normalise public utterances, less each speaker's mean (or that of all)."""
    projected = projection.project_features(speech.examples.features)
    rows = normalisation.average_frames(projected, speech.examples.frames)
    means = group_means(rows, speech.speakers)[speech.speakers] if user_mean else rows.mean(0)
    shaped = means[:, None] if user_mean and projected.dim() == 3 else means
    frames = speech.examples.frames
    inputs = projection.normalise_rows(projected, shaped, frames)
    return Examples(features=inputs, frames=frames, labels=speech.examples.labels)


def pretrain_weights(
    model: Network,
    examples: Examples,
    *,
    weight_decay: float,
    similar_classes: Mapping[int, Mapping[int, float]],
) -> Tensor:
    """Fit weights on public speech, for training to start from.

    Multinomial logistic regression over the classes that public speech has, each class weighing
    the same, by L-BFGS; for heads with a hidden layer the same loss, from their random start.
    A class without public speech gets a mixture of similar classes, or zeros.

    Args:
        model: The shared model, as built.
        examples: Public speech as the model reads it; labels of -1 are left out.
        weight_decay: L2 penalty on all weights.
        similar_classes: For classes without public speech, a mixture of others.

    Returns:
        Shape (params,), float32; the model's own start when no class has public speech.
    """
    present = sorted(set(examples.labels[examples.labels >= 0].tolist()))
    if len(present) < 2:
        return flatten_parameters(model)
    chosen = examples.select(examples.labels >= 0)
    counts = torch.bincount(chosen.labels, minlength=model.classes).double()
    # All utterances of a class together weigh 1 / classes, so that the penalty means one thing.
    weights = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0).float() / len(present)
    absent = torch.tensor([label not in present for label in range(model.classes)])
    _minimise_loss(model, chosen, weights, absent, weight_decay)
    _fill_absent_classes(model, present, similar_classes)
    return flatten_parameters(model)


def _minimise_loss(
    model: Network, examples: Examples, weights: Tensor, absent: Tensor, weight_decay: float
) -> None:
    """Minimise the balanced loss with L-BFGS; absent classes are masked."""
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=150, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = model(examples.features, examples.frames).masked_fill(absent, -1e4)
        each = torch.nn.functional.cross_entropy(logits, examples.labels, reduction="none")
        loss = (each * weights[examples.labels]).sum()
        for weight in model.parameters():
            loss = loss + 0.5 * weight_decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]


def _fill_absent_classes(
    model: Network, present: Sequence[int], similar_classes: Mapping[int, Mapping[int, float]]
) -> None:
    """Centre the last layer over the fitted classes; mix the others from similar ones."""
    with torch.no_grad():
        for parameter in model.head.parameters():
            fitted = parameter[list(present)]
            fitted = fitted - fitted.mean(0)
            filled = torch.zeros_like(parameter)
            filled[list(present)] = fitted
            for label, mixture in similar_classes.items():
                usable = {other: share for other, share in mixture.items() if other in present}
                if label not in present and usable:
                    filled[label] = sum(
                        share * filled[other] for other, share in usable.items()
                    ) / sum(usable.values())
            parameter.copy_(filled)
