"""Users' voices in feature space: drawn from the features of a few synthetic speakers.

Synthesis and extraction of a clip cost tens of milliseconds; a round over a population has
thousands. So no sound is made here. Features of the embedded synthetic voices are extracted once,
by the run's own extractor, and decomposed into additive parts (a mixed model, as for repeated
measures): what all share, what an emotion adds, who speaks, how this speaker shows this emotion,
and what is left from clip to clip.
A user is a fresh draw of each part with the covariances found.

It is a model of synthetic voices, not of people. Runs over it show that the machinery bears the
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

from sottovoce.shared import seeding
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import FeatureError, ModelError
from sottovoce.simulations.corpora.corpus import Clip

_MAX_DIRECTIONS = 64
"""Principal directions of the features in which voices vary."""

_EMOTION_CONCENTRATION = 4.0
"""How evenly users' clips spread over emotions: concentration of a Dirichlet draw."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VoiceModel:
    """The parts that voices are drawn from, float32; *directions* are principal ones.

    Attributes:
        mean: What all share, shape (features,).
        basis: Shape (directions, features).
        emotions: What an emotion adds, shape (classes, directions).
        speakers: A factor of the speakers' covariance, shape (speakers, directions).
        interactions: A factor of how speakers' emotions vary, jointly over emotions, shape
            (speakers, classes, directions).
        residual: A factor of what is left, shape (directions, directions).
    """

    mean: Tensor
    basis: Tensor
    emotions: Tensor
    speakers: Tensor
    interactions: Tensor
    residual: Tensor

    def draw_user(self, seed: int, index: int, clips: int) -> tuple[Tensor, Tensor]:
        """A user's clips, always the same.

        Args:
            seed: The run's.
            index: Which user, from 0.
            clips: How many clips a user has on average.

        Returns:
            Features, shape (utterances, features), float32, and classes, shape (utterances,),
            int64.
        """
        rng = seeding.numpy_rng(seed, "voice", index)
        count = int(rng.integers(clips - clips // 2, clips + clips // 2 + 1))
        shares = rng.dirichlet(np.full(len(self.emotions), _EMOTION_CONCENTRATION))
        labels = torch.from_numpy(rng.choice(len(shares), count, p=shares))
        who = _standard_normal(rng, len(self.speakers)) @ self.speakers
        how = torch.einsum(
            "k,ked->ed", _standard_normal(rng, len(self.interactions)), self.interactions
        )
        residual = _standard_normal(rng, count, len(self.residual)) @ self.residual
        drawn = who + (self.emotions + how)[labels] + residual
        return self.mean + drawn @ self.basis, labels

    def save(self, path: Path) -> None:
        """Write the voices to a file."""
        names = self.__dataclass_fields__
        replace_file(path, save({name: getattr(self, name).contiguous() for name in names}))

    @classmethod
    def load(cls, path: Path) -> "VoiceModel":
        """Read the voices from a file.

        Raises:
            ModelError: The file is missing or damaged.
        """
        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise ModelError(f"{path} holds no voices ({error}); remove its folder") from error


def fit_voice_model(
    labels: tuple[str, ...], clips: Mapping[str, Sequence[Clip]], features: Mapping[str, Tensor]
) -> VoiceModel:
    """Decompose the variance of voices.

    Args:
        labels: The classes.
        clips: Each speaker's clips.
        features: One vector a clip, by its name, shape (features,).

    Raises:
        FeatureError: Frames instead of vectors, or too few speakers to tell how they differ.
    """
    pairs = [(speaker, clip) for speaker in sorted(clips) for clip in clips[speaker]]
    rows = torch.stack([features[clip.clip_id] for _, clip in pairs]).double()
    if rows.dim() != 2 or len(clips) < 3:
        raise FeatureError(
            f"voices are drawn from one vector a clip of at least 3 speakers; these are "
            f"{rows.dim() - 1} axes of {len(clips)} speakers"
        )
    order = {speaker: number for number, speaker in enumerate(sorted(clips))}
    who = torch.tensor([order[speaker] for speaker, _ in pairs])
    what = torch.tensor([labels.index(clip.emotion) for _, clip in pairs])
    mean = rows.mean(0)
    basis = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:_MAX_DIRECTIONS]
    left = (rows - mean) @ basis.T
    emotions = _group_means(left, what, len(labels))
    left = left - emotions[what]
    speakers = _group_means(left, who, len(order))
    left = left - speakers[who]
    cell = who * len(labels) + what
    interactions = _group_means(left, cell, len(order) * len(labels))
    left = left - interactions[cell]
    cells = len(set(cell.tolist()))
    covariance = left.T @ left / max(len(left) - cells, 1)
    parts = {
        "mean": mean,
        "basis": basis,
        "emotions": emotions,
        # Unbiased: a factor F with F'F the sample covariance, so that z @ F has it as its own.
        "speakers": speakers / (len(order) - 1) ** 0.5,
        "interactions": interactions.reshape(len(order), len(labels), -1) / (len(order) - 1) ** 0.5,
        "residual": _symmetric_root(covariance),
    }
    # Contiguous, as a file gives them back: another layout sums in another order.
    return VoiceModel(**{name: part.float().contiguous() for name, part in parts.items()})


def _group_means(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """Mean of each group's rows, zeros where there are none, shape (groups, directions)."""
    total = torch.zeros(groups, rows.shape[1], dtype=rows.dtype).index_add_(0, group, rows)
    return total / torch.bincount(group, minlength=groups).clamp(min=1)[:, None]


def _symmetric_root(covariance: Tensor) -> Tensor:
    """A symmetric square root."""
    values, vectors = torch.linalg.eigh(covariance)
    # Rounding can leave an eigenvalue just below 0.
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _standard_normal(rng: np.random.Generator, *shape: int) -> Tensor:
    """Standard normal draws, float32."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
