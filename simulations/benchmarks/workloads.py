"""The work on which engines are measured: models, users and rounds, and how they are set up.

A small head: 100 users, a Poisson cohort of 20 a round, three full-batch steps each, a norm bound
on every update and noise on their sum. A heavier client, for workers: cnn-attention on log-mel.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import identity_projection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy.release import NoiseSource, SumMechanism
from sottovoce.shared.privacy.user_level import UserLevelPrivacy
from sottovoce.shared.protocol.local_training import LocalTraining, NoPrivacy
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import default_statistics
from sottovoce.simulations.devices.backends import LOCAL_ENGINE, open_backend

CLASSES: Final = 8
_LABELS: Final = tuple("abcdefgh")
SEED: Final = 5
CLIP_NORM: Final = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A model, users and rounds on which an engine is measured.

    Attributes:
        name: Name in tables.
        spec: The model.
        users: Number of users.
        user_sampling_rate: Chance that a user joins a round.
        clips_per_user: Clips of each user.
        frames_per_clip: Frames of each clip; 1 where the model reads vectors.
        steps: Local steps per round.
        rounds: Rounds of one run; the first is not counted.
    """

    name: str
    spec: ModelSpec
    users: int
    user_sampling_rate: float
    clips_per_user: int
    frames_per_clip: int = 1
    steps: int = 3
    rounds: int = 20


SMALL: Final = Workload(
    name="small head, about 100k parameters",
    spec=ModelSpec(kind="mlp", inputs=768, classes=CLASSES, hidden=128),
    users=100,
    user_sampling_rate=0.2,
    clips_per_user=60,
)
HEAVY: Final = Workload(
    name="cnn-attention",
    spec=ModelSpec(kind="cnn-attention", inputs=64, classes=CLASSES),
    users=8,
    user_sampling_rate=1.0,
    clips_per_user=30,
    frames_per_clip=150,
    rounds=4,
)


def draw_clips(work: Workload, user: int) -> Examples:
    """Draw one user's clips, of noise.

    Args:
        work: The workload.
        user: Number of the user; it seeds the draw.
    """
    random = torch.Generator().manual_seed(user)
    frames = (work.frames_per_clip,) if work.frames_per_clip > 1 else ()
    shape = (work.clips_per_user, *frames, work.spec.inputs)
    return Examples(
        features=torch.randn(shape, generator=random),
        frames=torch.full((work.clips_per_user,), work.frames_per_clip),
        labels=torch.randint(CLASSES, (work.clips_per_user,), generator=random),
    )


def prepare_workload(folder: Path, work: Workload, engine: str = LOCAL_ENGINE) -> dict[str, str]:
    """Write job and devices to disk, in the layout of an engine."""

    def hidden(rate: float = 1.0) -> SumMechanism:
        return SumMechanism(
            noise_multiplier=1.0,
            clip_norm=CLIP_NORM,
            noised_by=NoiseSource.SERVER,
            sample_rate=rate,
        )

    projection = identity_projection(work.spec.inputs)
    plan = Plan(
        run="bench",
        labels=_LABELS,
        extractor="log-mel",
        projection_hash=projection.content_hash(),
        model=work.spec,
        rounds=work.rounds,
        training=LocalTraining(
            steps=work.steps, sample_rate=1.0, learning_rate=0.1, denominator=1.0
        ),
        mechanism=NoPrivacy(),
        centre=None,
        normaliser=None,
        count_noise=0.0,
        # User-level privacy, so that the server's clipping and noise are part of what is measured.
        user=UserLevelPrivacy(counts=hidden(), centre=None, update=hidden(work.user_sampling_rate)),
    )
    devices = open_backend(folder, engine)
    for user in range(work.users):
        devices.create_device(user, *_device(f"user{user:03d}", draw_clips(work, user)))
    devices.commit_changes()
    devices.close()
    Job(
        plan=plan,
        aggregation=AggregationSettings(),
        weights=flatten_parameters(build_network(work.spec, 0)),
        projection=projection,
        speaker_statistics=default_statistics(work.spec.inputs),
        devices=work.users,
        quorum=1.0,
        simulated_seed=SEED,
    ).save(folder / "server")
    return {"job": str(folder / "server"), **devices.engine_config}


def _device(user: str, examples: Examples) -> tuple[DeviceProfile, LabelledFeatures]:
    """One user's device."""
    everything = torch.ones(len(examples), dtype=torch.bool)
    features = LabelledFeatures(
        examples=examples, for_enrolment=everything, for_head=~everything, for_training=everything
    )
    # No budget: a benchmark repeats rounds at will.
    return DeviceProfile(user=user, budgets=(), labels=_LABELS, simulated_seed=1), features
