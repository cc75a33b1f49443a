"""A model from public speech alone: nobody's device is asked, and no privacy is spent.

It is what a federation starts from (projection, warm start, statistics, prior of heads), made into
a model of its own, with one thing that only strangers ask for: how much less sure it is of a voice
behind an unknown microphone, measured on speakers that it was not trained on, behind simulated
channels.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sottovoce.server.personalisation.prior_estimation import fit_head_prior
from sottovoce.server.planning import public_pretraining
from sottovoce.server.planning.recipe import Recipe
from sottovoce.shared.calibration import HeadPrior, adapter_basis, calibrate_logits
from sottovoce.shared.errors import CorpusError
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.speaker import neutral_direction, unlabelled_adaptation
from sottovoce.shared.speaker.normalisation import SpeakerStatistics
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.data.fold_inputs import (
    FoldInputs,
    PretrainingSettings,
    UserSpeech,
    merge_public_corpora,
    pretrain,
)

_TEMPERATURES = tuple(1 + step / 10 for step in range(51))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelledSpeech:
    """Clips and their features.

    Attributes:
        clips: Every clip with its emotion and speaker.
        features: Vector of each usable clip, by name.
    """

    clips: Sequence[Clip]
    features: Mapping[str, Tensor]


def held_out_speakers(clips: Sequence[Clip]) -> tuple[str, ...]:
    """List the speakers that a model's prior and doubts are measured on: every fifth.

    Args:
        clips: Of the corpus, in its order.

    Example:
        >>> held_out_speakers([])
        ()
    """
    return tuple(dict.fromkeys(clip.speaker for clip in clips))[4::5]


def train_public_model(
    speech: LabelledSpeech,
    channels: Mapping[str, Tensor],
    *,
    labels: tuple[str, ...],
    extractor: str,
    recipe: Recipe,
) -> ModelPackage:
    """Train a linear model on a public corpus.

    Four fifths of the speakers train the weights; the others give the prior of users' heads, the
    scores of prediction sets, and the doubt about unknown voices.

    Args:
        speech: The corpus.
        channels: Features of the clips of :func:`held_out_speakers`, each behind a channel that
            the model does not know, by name.
        labels: The model's emotions, in order.
        extractor: Which gave the features.
        recipe: Projection and weight decay.

    Returns:
        The model, with its ``unknown_voice_temperature``.

    Raises:
        CorpusError: Fewer than five speakers, or no clip behind a channel.
    """
    # Linear: on the few thousand clips of one corpus more layers learn the corpus.
    settings = PretrainingSettings(
        spec=ModelSpec(kind="linear", inputs=recipe.projection.dims, classes=len(labels)),
        recipe=recipe,
        user_mean=True,
        use_warm_start=True,
        seed=0,
    )
    public = merge_public_corpora(labels, [(speech.clips, speech.features)])
    users = UserSpeech(labels=labels, features=speech.features, clips={})
    with tempfile.TemporaryDirectory() as folder:
        inputs = pretrain(users, public, settings, Path(folder))
        if inputs.held_out_file is None or not channels:
            raise CorpusError(
                f"{len({clip.speaker for clip in speech.clips})} speakers: too few to hold out "
                "any; a model of its own needs five speakers with usable clips"
            )
        held_out = load_file(inputs.held_out_file)
    network = build_network(inputs.model_spec, seed=0).eval()
    load_parameters(network, inputs.initial_weights)
    prior, direction = _estimate_prior(network, held_out, labels)
    # Where a stranger begins: the middle of all that the corpus holds.
    rows = inputs.projection.project_features(public[0].examples.features)
    package = ModelPackage(
        labels=labels,
        extractor=extractor,
        spec=inputs.model_spec,
        weights=inputs.initial_weights,
        projection=inputs.projection,
        centre=rows.mean(0),
        speaker_statistics=inputs.speaker_statistics,
        prior=prior,
        subtracts_user_mean=True,
        model_hash=_hash_model(inputs),
        neutral_direction=direction,
        familiar_speech=inputs.familiar_speech,
    )
    strange = [clip for clip in speech.clips if clip.clip_id in channels]
    features = torch.stack([channels[clip.clip_id] for clip in strange])
    temperature = fit_unknown_voice_temperature(
        package, features, torch.tensor([labels.index(clip.emotion) for clip in strange])
    )
    return replace(
        package,
        unknown_voice_temperature=temperature,
        speaker_statistics=_with_strangers(package, features, [clip.speaker for clip in strange]),
    )


def fit_unknown_voice_temperature(
    package: ModelPackage, features: Tensor, classes: Tensor
) -> float:
    """Fit by how much less sure a model is of a voice of which nothing is known.

    Args:
        package: The model.
        features: Of voices and channels that it was not trained on, shape (utterances, features).
        classes: The emotions, shape (utterances,), int64.

    Returns:
        The temperature from 1 to 6, in tenths, of the least negative log-likelihood.
    """
    single = torch.ones(len(features), dtype=torch.int64)
    with torch.no_grad():
        logits, coordinates = package.logits_and_coordinates(features, single, package.centre)
    calm = calibrate_logits(package.prior.mean, logits, coordinates).double()

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(calm / temperature, classes))

    return min(_TEMPERATURES, key=loss)


def _with_strangers(
    package: ModelPackage, features: Tensor, speakers: Sequence[str]
) -> SpeakerStatistics:
    """Widen how voices differ to what channels make of it, so that a strange one is soon heard."""
    rows = package.projection.project_features(features) - package.centre
    # By speaker: a channel moves all that is said through it by the same vector.
    names = sorted(set(speakers))
    groups = torch.tensor([names.index(speaker) for speaker in speakers])
    means = public_pretraining.group_means(rows, groups)
    statistics = package.speaker_statistics
    apart = means.square().mean(0) / unlabelled_adaptation.BETWEEN_VARIANCE_FACTOR
    return replace(statistics, between=torch.maximum(statistics.between, apart))


def _estimate_prior(
    network: Network, held_out: Mapping[str, Tensor], labels: tuple[str, ...]
) -> tuple[HeadPrior, Tensor | None]:
    """Prior of heads and direction of neutral speech, from speakers that nothing was trained on."""
    with torch.no_grad():
        vectors = network.compute_embeddings(held_out["features"], held_out["frames"])
        logits = network.head(vectors)
    each = [held_out["speakers"] == name for name in torch.unique(held_out["speakers"]).tolist()]
    prior = fit_head_prior(
        [(logits[own], held_out["labels"][own]) for own in each], classes=len(labels)
    )
    direction = neutral_direction.estimate_direction(
        [(held_out["features"][own], logits[own]) for own in each], labels
    )
    return replace(prior, basis=adapter_basis.fit_basis(vectors, len(labels))), direction


def _hash_model(inputs: FoldInputs) -> str:
    """Hash of what decides the logits."""
    found = hashlib.sha256(inputs.projection.content_hash().encode())
    found.update(inputs.initial_weights.numpy().tobytes())
    return found.hexdigest()
