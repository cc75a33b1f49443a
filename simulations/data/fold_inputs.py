"""What all folds of a run share: clips, features, and what pretraining gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor

from sottovoce.server.planning import public_pretraining
from sottovoce.server.planning.public_pretraining import PublicSpeech
from sottovoce.shared import seeding
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import CorpusError
from sottovoce.shared.identity import identity_key
from sottovoce.shared.models.examples import MAX_FRAMES, Examples, stack_utterances
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection, identity_projection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.speaker import normalisation
from sottovoce.shared.speaker.familiar_speech import FamiliarSpeech, fit_familiar_speech
from sottovoce.shared.speaker.normalisation import SpeakerStatistics

if TYPE_CHECKING:  # a cached result does not depend on how scenarios and corpora are read
    from sottovoce.server.planning.recipe import Recipe
    from sottovoce.simulations.corpora.corpus import Clip

_HELD_OUT_EVERY = 5
HELD_OUT_FILE = "held_out.safetensors"
"""File of the public speakers that the warm start has not seen."""

SIMILAR_EMOTIONS: Mapping[str, Mapping[str, float]] = {
    "calm": {"neutral": 0.7, "sad": 0.3},
    "surprised": {"happy": 0.5, "fearful": 0.5},
    "bored": {"neutral": 0.5, "sad": 0.5},
    "excited": {"happy": 1.0},
    "frustrated": {"angry": 0.7, "sad": 0.3},
    "contempt": {"disgust": 0.7, "angry": 0.3},
}
"""Where a class starts that no public corpus has: near what it sounds like (our choice)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FoldInputs:
    """Everything a fold is made of.

    Attributes:
        labels: Emotions in the order of the classes.
        features: Tensor of each usable clip, by name.
        clips: Usable clips of each speaker.
        projection: The public projection.
        speaker_statistics: How public speakers differ.
        familiar_speech: Where public speech lies; None without public corpora.
        model_spec: The shared model.
        initial_weights: Where training starts, shape (params,), float32.
        held_out_file: File of public speakers for the heads' prior; None without.
        reads_votes: Whether training looks at the votes of raters.
    """

    labels: tuple[str, ...]
    features: Mapping[str, Tensor]
    clips: Mapping[str, tuple[Clip, ...]]
    projection: PublicProjection
    speaker_statistics: SpeakerStatistics
    familiar_speech: FamiliarSpeech | None
    model_spec: ModelSpec
    initial_weights: Tensor
    held_out_file: Path | None
    reads_votes: bool = False

    def build_examples(self, clips: Sequence[Clip], *, labelled: bool = True) -> Examples:
        """Clips as examples; unlabelled ones carry -1."""
        index = {label: number for number, label in enumerate(self.labels)}
        labels = [index[clip.emotion] if labelled else -1 for clip in clips]
        examples = stack_utterances(
            [self.features[clip.clip_id] for clip in clips], labels, max_frames=MAX_FRAMES
        )
        if not self.reads_votes or not labelled:
            return examples
        return replace(examples, votes=torch.tensor([self._vote_shares(clip) for clip in clips]))

    def _vote_shares(self, clip: Clip) -> list[float]:
        """Shares of a clip's votes among the run's classes; its label's alone where there are none.

        Votes for classes that the run does not have are left out.
        """
        counts = dict(clip.votes)
        total = sum(counts.get(label, 0) for label in self.labels)
        if not total:
            return [float(label == clip.emotion) for label in self.labels]
        return [counts.get(label, 0) / total for label in self.labels]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UserSpeech:
    """Usable recordings of the users' corpus.

    Attributes:
        labels: The run's classes, in order.
        features: Tensor of each usable clip, by name.
        clips: Usable clips of each speaker.
    """

    labels: tuple[str, ...]
    features: Mapping[str, Tensor]
    clips: Mapping[str, tuple[Clip, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingSettings:
    """How a run learns from public speech.

    Attributes:
        spec: The shared model; its inputs are settled by the projection.
        recipe: How the projection and the warm start are made.
        user_mean: Whether speakers' means are subtracted.
        use_warm_start: Whether the public emotions are fit to start from.
        seed: The run's seed.
    """

    spec: ModelSpec
    recipe: Recipe
    user_mean: bool
    use_warm_start: bool
    seed: int


def pretrain(
    users: UserSpeech,
    public: tuple[PublicSpeech, Tensor] | None,
    settings: PretrainingSettings,
    folder: Path,
) -> FoldInputs:
    """Learn from public speech what the run starts from.

    Args:
        users: The users' recordings, of which nothing is learned but their width.
        public: Public speech, and which utterances are neutral, see
            :func:`merge_public_corpora`; None leaves features as they are, for end-to-end models.
        settings: How it is learned.
        folder: Where the held-out public speakers are written.

    Raises:
        CorpusError: Public and users' features are of different widths.
    """
    recipe = settings.recipe
    width = next(iter(users.features.values())).shape[-1]
    if public is None:
        projection = identity_projection(width)
        statistics, familiar = normalisation.default_statistics(width), None
    else:
        _check_same_width(width, public[0])
        projection, statistics, familiar = _fit_public_statistics(*public, recipe)
    spec = replace(settings.spec, inputs=projection.output_size)
    model = build_network(spec, seeding.derive_seed(settings.seed, "model"))
    weights, held_out = flatten_parameters(model), None
    if public is not None and settings.use_warm_start:
        speech, _ = public
        ready = public_pretraining.normalise_public_speech(
            projection, speech, user_mean=settings.user_mean
        )
        held_out_mask = speech.speakers % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
        if recipe.warm_start:
            weights = public_pretraining.pretrain_weights(
                model,
                ready.select(~held_out_mask),
                weight_decay=recipe.pretraining_weight_decay,
                similar_classes=_similar_classes(users.labels),
            )
        held_out = _save_held_out(ready, speech.speakers, held_out_mask, folder)
    return FoldInputs(
        labels=users.labels,
        features=users.features,
        clips=users.clips,
        projection=projection,
        speaker_statistics=statistics,
        familiar_speech=familiar,
        model_spec=spec,
        initial_weights=weights,
        held_out_file=held_out,
        reads_votes=recipe.reads_votes,
    )


def _fit_public_statistics(
    speech: PublicSpeech, neutral: Tensor, recipe: Recipe
) -> tuple[PublicProjection, SpeakerStatistics, FamiliarSpeech | None]:
    """Projection, speaker statistics and what is familiar, from public speech."""
    examples = speech.examples
    rows = normalisation.average_frames(examples.features, examples.frames)
    projection = public_pretraining.fit_projection(
        rows, speech.speakers, speech.emotions, recipe.projection
    )
    projected = normalisation.average_frames(
        projection.project_features(examples.features), examples.frames
    )
    statistics = public_pretraining.estimate_speaker_statistics(projected, speech.speakers, neutral)
    return projection, statistics, fit_familiar_speech(projected, speech.speakers)


def _save_held_out(
    ready: Examples, speakers: Tensor, held_out: Tensor, folder: Path
) -> Path | None:
    """Write the public speakers that the warm start has not seen, for the heads' prior."""
    chosen = held_out & (ready.labels >= 0)
    if not bool(chosen.any()):
        return None
    part = ready.select(chosen)
    tensors = {"features": part.features, "frames": part.frames, "labels": part.labels}
    tensors["speakers"] = speakers[chosen]
    path = folder / HELD_OUT_FILE
    replace_file(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    return path


def _similar_classes(labels: tuple[str, ...]) -> dict[int, dict[int, float]]:
    """``SIMILAR_EMOTIONS`` by indices of the run's classes."""
    index = {label: number for number, label in enumerate(labels)}
    return {
        index[label]: {index[other]: share for other, share in mixture.items() if other in index}
        for label, mixture in SIMILAR_EMOTIONS.items()
        if label in index
    }


def _check_same_width(width: int, speech: PublicSpeech) -> None:
    """Public and private features come from one extractor."""
    other = speech.examples.features.shape[-1]
    if other != width:
        raise CorpusError(f"public features are {other} wide, the users' {width}; use one encoder")


def merge_public_corpora(
    labels: tuple[str, ...], corpora: Sequence[tuple[Sequence[Clip], Mapping[str, Tensor]]]
) -> tuple[PublicSpeech, Tensor]:
    """Put public corpora together.

    Args:
        labels: The run's classes; other emotions get -1.
        corpora: For each corpus its clips and their features.

    Returns:
        The speech, and which utterances are neutral, shape (utterances,), bool.
    """
    index = {identity_key(label): number for number, label in enumerate(labels)}
    tensors: list[Tensor] = []
    classes: list[int] = []
    emotions: dict[str, int] = {}
    spoken_emotions: list[int] = []
    speakers: list[int] = []
    neutral: list[bool] = []
    known: dict[tuple[int, str], int] = {}
    for number, (clips, features) in enumerate(corpora):
        for clip in clips:
            if clip.clip_id in features:
                tensors.append(features[clip.clip_id])
                spoken_emotions.append(emotions.setdefault(clip.emotion, len(emotions)))
                classes.append(index.get(identity_key(_nearest_emotion(clip.emotion, labels)), -1))
                speakers.append(known.setdefault((number, clip.speaker), len(known)))
                neutral.append(clip.emotion == "neutral")
    if not tensors:
        raise CorpusError("the public corpora have no usable clip; name another one")
    speech = PublicSpeech(
        examples=stack_utterances(tensors, classes, max_frames=MAX_FRAMES),
        emotions=torch.tensor(spoken_emotions, dtype=torch.int64),
        speakers=torch.tensor(speakers, dtype=torch.int64),
    )
    return speech, torch.tensor(neutral)


def _nearest_emotion(emotion: str, labels: tuple[str, ...]) -> str:
    """Calm speech stands for neutral where the run does not tell them apart."""
    return "neutral" if emotion == "calm" and "calm" not in labels else emotion
