"""Made-up features of a few users, so that the two apps run before any job is prepared.

``flwr run .`` in a checkout has neither a job nor devices. Server and clients then agree on this
data: no speech, four clusters of numbers, shifted for each user. It shows that the apps work, and
nothing about emotions.
"""

import os
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared import seeding
from sottovoce.shared.models.projection import PublicProjection

LABELS: Final = ("neutral", "angry", "happy", "sad")
FEATURES: Final = 8
CLIPS: Final = 48
SEED: Final = 14

_SEPARATION, _USER_STD, _CLIP_STD = 3.0, 0.5, 0.7


def demo_folder(run_id: int) -> Path:
    """Name the folder of a demo run, in Flower's home, which is this user's own.

    Args:
        run_id: Flower's.

    >>> demo_folder(7).parts[-2:]
    ('sottovoce-demo', '7')
    """
    home = os.environ.get("FLWR_HOME")
    return (Path(home) if home else Path.home() / ".flwr") / "sottovoce-demo" / str(run_id)


def draw_features(user: int) -> tuple[Tensor, Tensor]:
    """Draw the features and labels of one user's utterances.

    Args:
        user: From 0; each has a shift of their own.

    Returns:
        Features, shape (CLIPS, FEATURES), float32, and labels, shape (CLIPS,), int64.

    >>> features, labels = draw_features(0)
    >>> tuple(features.shape), labels[:4].tolist()
    ((48, 8), [0, 1, 2, 3])
    """
    generator = seeding.torch_rng(SEED, "demo features", user)
    labels = torch.arange(CLIPS) % len(LABELS)
    centres = _SEPARATION * torch.eye(len(LABELS), FEATURES)[labels]
    shift = _USER_STD * torch.randn(FEATURES, generator=generator)
    spread = _CLIP_STD * torch.randn(CLIPS, FEATURES, generator=generator)
    return centres + shift + spread, labels


def demo_projection() -> PublicProjection:
    """Give the projection of the demo: features as they are, each row scaled to norm 1.

    >>> demo_projection().output_size
    8
    """
    return PublicProjection(mean=torch.zeros(FEATURES), matrix=torch.eye(FEATURES), row_norm=1.0)
