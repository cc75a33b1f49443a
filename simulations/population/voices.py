"""Users' voices in feature space: drawn from what a few made-up speakers sounded like.

Speaking and hearing a clip costs tens of milliseconds; a round over a crowd has thousands. So no
sound is made here. The embedded synthetic voices are heard once, by the run's own extractor, and
taken apart into additive parts (a mixed model, as for repeated measures): what all share, what an
emotion adds, who speaks, how this speaker shows this emotion, and what is left from clip to clip.
A user is a fresh draw of each part with the covariances found.

It is a model of made-up voices, not of people. Runs over it show that the machinery bears the
scale, and say nothing about accuracy on real voices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sottovoce.server.checkpoint import replace_file
from sottovoce.shared import seeds
from sottovoce.shared.errors import FeatureError, ModelError
from sottovoce.simulations.corpora.clips import Clip

_DIRECTIONS = 64
"""Principal directions of the heard features in which voices vary."""

_EVENNESS = 4.0
"""How evenly users' clips spread over emotions: concentration of a Dirichlet draw."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Voices:
    """The parts that voices are drawn from, float32; *directions* are principal ones.

    Attributes:
        mean: What all share, shape (features,).
        basis: Shape (directions, features).
        emotions: What an emotion adds, shape (classes, directions).
        speakers: A factor of the speakers' covariance, shape (heard speakers, directions).
        manners: A factor of how speakers' emotions vary, jointly over emotions, shape
            (heard speakers, classes, directions).
        rest: A factor of what is left, shape (directions, directions).
    """

    mean: Tensor
    basis: Tensor
    emotions: Tensor
    speakers: Tensor
    manners: Tensor
    rest: Tensor

    def user(self, seed: int, place: int, clips: int) -> tuple[Tensor, Tensor]:
        """A user's clips, always the same.

        Args:
            seed: The run's.
            place: Which user, from 0.
            clips: How many clips a user has on average.

        Returns:
            Features, shape (utterances, features), float32, and classes, shape (utterances,),
            int64.
        """
        rng = seeds.numpy_rng(seed, "voice", place)
        count = int(rng.integers(clips - clips // 2, clips + clips // 2 + 1))
        shares = rng.dirichlet(np.full(len(self.emotions), _EVENNESS))
        labels = torch.from_numpy(rng.choice(len(shares), count, p=shares))
        who = _normal(rng, len(self.speakers)) @ self.speakers
        how = torch.einsum("k,ked->ed", _normal(rng, len(self.manners)), self.manners)
        rest = _normal(rng, count, len(self.rest)) @ self.rest
        drawn = who + (self.emotions + how)[labels] + rest
        return self.mean + drawn @ self.basis, labels

    def save(self, path: Path) -> None:
        """Keep them."""
        names = self.__dataclass_fields__
        replace_file(path, save({name: getattr(self, name).contiguous() for name in names}))

    @classmethod
    def load(cls, path: Path) -> "Voices":
        """Read them.

        Raises:
            ModelError: The file is missing or damaged.
        """
        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise ModelError(f"{path} holds no voices ({error}); remove its folder") from error


def fit(
    labels: tuple[str, ...], clips: Mapping[str, Sequence[Clip]], features: Mapping[str, Tensor]
) -> Voices:
    """Take heard voices apart.

    Args:
        labels: The classes.
        clips: Each heard speaker's clips.
        features: One vector a clip, by its name, shape (features,).

    Raises:
        FeatureError: Frames instead of vectors, or too few speakers to tell how they differ.
    """
    heard = [(speaker, clip) for speaker in sorted(clips) for clip in clips[speaker]]
    rows = torch.stack([features[clip.clip_id] for _, clip in heard]).double()
    if rows.dim() != 2 or len(clips) < 3:
        raise FeatureError(
            f"voices are drawn from one vector a clip of at least 3 heard speakers; these are "
            f"{rows.dim() - 1} axes of {len(clips)} speakers"
        )
    order = {speaker: place for place, speaker in enumerate(sorted(clips))}
    who = torch.tensor([order[speaker] for speaker, _ in heard])
    what = torch.tensor([labels.index(clip.emotion) for _, clip in heard])
    mean = rows.mean(0)
    basis = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:_DIRECTIONS]
    left = (rows - mean) @ basis.T
    emotions = _means(left, what, len(labels))
    left = left - emotions[what]
    speakers = _means(left, who, len(order))
    left = left - speakers[who]
    cell = who * len(labels) + what
    manners = _means(left, cell, len(order) * len(labels))
    left = left - manners[cell]
    cells = len(set(cell.tolist()))
    rest = left.T @ left / max(len(left) - cells, 1)
    parts = {
        "mean": mean,
        "basis": basis,
        "emotions": emotions,
        "speakers": speakers / (len(order) - 1) ** 0.5,
        "manners": manners.reshape(len(order), len(labels), -1) / (len(order) - 1) ** 0.5,
        "rest": _root(rest),
    }
    # Contiguous, as a file gives them back: another layout sums in another order.
    return Voices(**{name: part.float().contiguous() for name, part in parts.items()})


def _means(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """Mean of each group's rows, zeros where there are none, shape (groups, directions)."""
    total = torch.zeros(groups, rows.shape[1], dtype=rows.dtype).index_add_(0, group, rows)
    return total / torch.bincount(group, minlength=groups).clamp(min=1)[:, None]


def _root(covariance: Tensor) -> Tensor:
    """A symmetric square root."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    """Standard normal draws, float32."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
