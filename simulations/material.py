"""What all folds of a run share: clips, features, and what public corpora teach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from sottovoce.server import public
from sottovoce.server.checkpoint import replace_file
from sottovoce.server.public import PublicSpeech
from sottovoce.shared import front as fronts
from sottovoce.shared import normaliser, seeds
from sottovoce.shared.errors import CorpusError
from sottovoce.shared.examples import LONGEST_FRAMES, Examples, stack
from sottovoce.shared.front import Front
from sottovoce.shared.models.flat import flatten
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.shared.normaliser import Population
from sottovoce.simulations.corpora.clips import Clip
from sottovoce.simulations.scenario import Recipe

_HELD_OUT = 5
HELD_OUT = "held_out.safetensors"
"""Where the public speakers that the warm start has not seen are kept."""

ALIKE: Mapping[str, Mapping[str, float]] = {
    "calm": {"neutral": 0.7, "sad": 0.3},
    "surprised": {"happy": 0.5, "fearful": 0.5},
    "bored": {"neutral": 0.5, "sad": 0.5},
    "excited": {"happy": 1.0},
    "frustrated": {"angry": 0.7, "sad": 0.3},
    "contempt": {"disgust": 0.7, "angry": 0.3},
}
"""Where a class starts that no public corpus has: near what it sounds like (our choice)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Material:
    """Everything a fold is made of.

    Attributes:
        labels: Emotions in the order of the classes.
        features: Tensor of each usable clip, by name.
        clips: Usable clips of each speaker.
        front: The public front.
        population: How public speakers differ.
        spec: The shared model.
        start: Where training starts, shape (params,), float32.
        held_out: File of public speakers for the heads' prior; None without.
    """

    labels: tuple[str, ...]
    features: Mapping[str, Tensor]
    clips: Mapping[str, tuple[Clip, ...]]
    front: Front
    population: Population
    spec: ModelSpec
    start: Tensor
    held_out: Path | None

    def examples(self, clips: Sequence[Clip], *, labelled: bool = True) -> Examples:
        """Clips as examples; unlabelled ones carry -1."""
        index = {label: place for place, label in enumerate(self.labels)}
        labels = [index[clip.emotion] if labelled else -1 for clip in clips]
        return stack(
            [self.features[clip.clip_id] for clip in clips], labels, longest=LONGEST_FRAMES
        )


def prepare(
    *,
    labels: tuple[str, ...],
    features: Mapping[str, Tensor],
    clips: Mapping[str, tuple[Clip, ...]],
    spoken: PublicSpeech | None,
    neutral: Tensor,
    spec: ModelSpec,
    recipe: Recipe,
    user_mean: bool,
    warm: bool,
    seed: int,
    folder: Path,
) -> Material:
    """Learn from public speech what the run starts from.

    Args:
        labels: The run's classes.
        features: Tensor of each usable clip.
        clips: Usable clips of each speaker.
        spoken: Public speech; None leaves features as they are, for end-to-end models.
        neutral: Which public utterances are neutral, shape (utterances,), bool.
        spec: The shared model; its inputs are settled here.
        recipe: How the front and the warm start are made.
        user_mean: Whether speakers' means are taken off.
        warm: Whether the public emotions are fit to start from.
        seed: The run's seed.
        folder: Where the held-out public speakers are kept.
    """
    width = next(iter(features.values())).shape[-1]
    if spoken is None:
        front, people = fronts.identity(width), normaliser.unknown(width)
    else:
        _same_width(width, spoken)
        front, people = _learn(spoken, neutral, recipe)
    spec = replace(spec, inputs=front.inputs)
    model = build(spec, seeds.derive(seed, "model"))
    start, held_out = flatten(model), None
    if spoken is not None and warm:
        ready = public.normalised(front, spoken, user_mean=user_mean)
        aside = spoken.speakers % _HELD_OUT == _HELD_OUT - 1
        if recipe.warm_start:
            start = public.warm_start(
                model, ready.take(~aside), decay=recipe.warm_decay, alike=_alike(labels)
            )
        held_out = _keep_aside(ready, spoken.speakers, aside, folder)
    return Material(
        labels=labels,
        features=features,
        clips=clips,
        front=front,
        population=people,
        spec=spec,
        start=start,
        held_out=held_out,
    )


def _learn(spoken: PublicSpeech, neutral: Tensor, recipe: Recipe) -> tuple[Front, Population]:
    """Front and population from public speech."""
    given = spoken.examples
    rows = normaliser.summarise(given.features, given.frames)
    front = public.fit_front(rows, spoken.speakers, spoken.emotions, recipe.front)
    projected = normaliser.summarise(front.project(given.features), given.frames)
    return front, public.population(projected, spoken.speakers, neutral)


def _keep_aside(ready: Examples, speakers: Tensor, aside: Tensor, folder: Path) -> Path | None:
    """Keep the public speakers that the warm start has not seen, for the heads' prior."""
    chosen = aside & (ready.labels >= 0)
    if not bool(chosen.any()):
        return None
    part = ready.take(chosen)
    tensors = {"features": part.features, "frames": part.frames, "labels": part.labels}
    tensors["speakers"] = speakers[chosen]
    path = folder / HELD_OUT
    replace_file(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    return path


def _alike(labels: tuple[str, ...]) -> dict[int, dict[int, float]]:
    """``ALIKE`` by places among the run's classes."""
    place = {label: index for index, label in enumerate(labels)}
    return {
        place[label]: {place[other]: share for other, share in mixture.items() if other in place}
        for label, mixture in ALIKE.items()
        if label in place
    }


def _same_width(width: int, spoken: PublicSpeech) -> None:
    """Public and private features come from one extractor."""
    other = spoken.examples.features.shape[-1]
    if other != width:
        raise CorpusError(f"public features are {other} wide, the users' {width}; use one encoder")


def public_speech(
    labels: tuple[str, ...], corpora: Sequence[tuple[Sequence[Clip], Mapping[str, Tensor]]]
) -> tuple[PublicSpeech, Tensor]:
    """Put public corpora together.

    Args:
        labels: The run's classes; other emotions get -1.
        corpora: For each corpus its clips and their features.

    Returns:
        The speech, and which utterances are neutral, shape (utterances,), bool.
    """
    index = {label: place for place, label in enumerate(labels)}
    tensors: list[Tensor] = []
    classes: list[int] = []
    emotions: dict[str, int] = {}
    spoken: list[int] = []
    speakers: list[int] = []
    neutral: list[bool] = []
    known: dict[tuple[int, str], int] = {}
    for number, (clips, features) in enumerate(corpora):
        for clip in clips:
            if clip.clip_id in features:
                tensors.append(features[clip.clip_id])
                spoken.append(emotions.setdefault(clip.emotion, len(emotions)))
                classes.append(index.get(_nearest(clip.emotion, labels), -1))
                speakers.append(known.setdefault((number, clip.speaker), len(known)))
                neutral.append(clip.emotion == "neutral")
    if not tensors:
        raise CorpusError("the public corpora have no usable clip; name another one")
    speech = PublicSpeech(
        examples=stack(tensors, classes, longest=LONGEST_FRAMES),
        emotions=torch.tensor(spoken, dtype=torch.int64),
        speakers=torch.tensor(speakers, dtype=torch.int64),
    )
    return speech, torch.tensor(neutral)


def _nearest(emotion: str, labels: tuple[str, ...]) -> str:
    """Calm speech stands for neutral where the run does not tell them apart."""
    return "neutral" if emotion == "calm" and "calm" not in labels else emotion
