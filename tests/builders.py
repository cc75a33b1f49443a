"""Plans, jobs and devices for tests: small, whole, and changed by keyword."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.federation.training_job import Job
from sottovoce.shared.calibration import HeadPrior, identity_head
from sottovoce.shared.calibration.adapter_basis import fit_basis
from sottovoce.shared.calibration.conformal import NonconformityScores
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.projection import PublicProjection, identity_projection
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy.release import (
    Mechanism,
    NoiseSource,
    Release,
    ReleaseKind,
    SumMechanism,
)
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining, NoPrivacy
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import (
    EXACT_CENTRE,
    CentreRelease,
    NormaliserRelease,
    default_statistics,
)


def make_release(noise: float, *, rate: float = 1.0, steps: int = 1, number: int = 1) -> Release:
    """Describe a round's noised gradients, which hide an utterance.

    Args:
        noise: Noise multiplier.
        rate: Sampling rate of an utterance.
        steps: How many steps it covers.
        number: Of the round.
    """
    return Release(
        kind=ReleaseKind.GRADIENT,
        mechanism=Mechanism.GAUSSIAN,
        run="r",
        round=number,
        noise_multiplier=noise,
        sample_rate=rate,
        steps=steps,
        sensitivity=1.0,
    )


def make_sum_release(
    noise: float, *, rate: float = 1.0, discrete: bool = False, near_gaussian: bool = False
) -> Release:
    """Describe a round's sum that hides its users, and an utterance only with its user.

    Args:
        noise: Noise multiplier of the sum.
        rate: Sampling rate of a user.
        discrete: Whether devices add discrete noise themselves.
        near_gaussian: Whether that lies on a fine lattice.
    """
    user = SumMechanism(
        noise_multiplier=noise,
        clip_norm=1.0,
        noised_by=NoiseSource.DISTRIBUTED if discrete else NoiseSource.SERVER,
        sample_rate=rate,
        discrete=discrete,
        near_gaussian=near_gaussian,
    )
    return replace(make_release(1.0), noise_multiplier=0.0, sensitivity=0.0, user=user)


def make_plan(**changes: Any) -> Plan:
    """Make a plan without privacy: a linear model of two inputs for two classes, three rounds.

    Args:
        changes: Fields of ``Plan``; ``labels`` and ``model`` change together.
    """
    plan = Plan(
        run="r",
        labels=("a", "b"),
        extractor="x",
        projection_hash="",
        model=ModelSpec(kind="linear", inputs=2, classes=2),
        rounds=3,
        training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=0.5, denominator=1.0),
        mechanism=NoPrivacy(),
        centre=EXACT_CENTRE,
        normaliser=None,
        count_noise=0.0,
    )
    return replace(plan, **changes)


def make_noised_plan(**changes: Any) -> Plan:
    """Make a plan that hides each utterance; as :func:`make_plan` otherwise."""
    noised = {
        "mechanism": ExampleLevelMechanism(clip_norm=1.0, noise_multiplier=1.0),
        "centre": CentreRelease(clip_norm=1.5, noise_multiplier=4.0),
        "normaliser": NormaliserRelease(clip_norm=0.8, count_weight=0.24, noise_multiplier=4.0),
        "count_noise": 4.0,
    }
    return make_plan(**noised | changes)


def make_job(plan: Plan | None = None, **changes: Any) -> Job:
    """Make a job of five devices that start from a fresh model.

    Args:
        plan: By default :func:`make_plan`'s.
        changes: Fields of ``Job``.
    """
    plan = plan or make_plan()
    job = Job(
        plan=plan,
        aggregation=AggregationSettings(),
        weights=flatten_parameters(build_network(plan.model, 0)),
        projection=identity_projection(plan.model.inputs),
        speaker_statistics=default_statistics(plan.model.inputs),
        devices=5,
        timeout_s=30.0,
    )
    return replace(job, **changes)


def make_examples(features: Tensor, *, classes: int) -> Examples:
    """Make examples of one vector each, whose labels count through the classes.

    Args:
        features: Shape (utterances, features), float32.
        classes: How many classes there are.
    """
    count = len(features)
    return Examples(
        features=features,
        frames=torch.ones(count, dtype=torch.int64),
        labels=torch.arange(count) % classes,
    )


def make_clips(
    examples: Examples, *, for_head: Tensor | None = None, trains: bool = True
) -> LabelledFeatures:
    """Make a user's recordings, of which those for the head serve nothing else.

    Args:
        examples: Features, frames and labels.
        for_head: Shape (utterances,), bool; none by default, so all enrol the user.
        trains: Whether those that enrol the user train, too.
    """
    if for_head is None:
        for_head = torch.zeros(len(examples), dtype=torch.bool)
    return LabelledFeatures(
        examples=examples,
        for_enrolment=~for_head,
        for_head=for_head,
        for_training=~for_head & torch.tensor(trains),
    )


def make_device(
    folder: Path, clips: LabelledFeatures, *, key: bytes | None = None, **changes: Any
) -> Device:
    """Make a device on disk, of a simulated user without a budget.

    Args:
        folder: The device's, made if missing.
        clips: The user's recordings.
        key: The user's, of another device of theirs; None draws one.
        changes: Fields of ``DeviceProfile``.
    """
    profile = DeviceProfile(
        user="ada",
        budgets=(),
        labels=("a", "b"),
        simulated_seed=7,
        # Tests make secure sums of a handful of devices.
        min_cohort=3,
        min_dishonest_share=0.0,
    )
    return Device.create(folder, replace(profile, **changes), clips, key=key)


def build_model_package(**changes: Any) -> ModelPackage:
    """Make a linear model of three inputs for two emotions.

    Args:
        changes: Fields of ``ModelPackage``.
    """
    spec = ModelSpec(kind="linear", inputs=3, classes=2)
    fields: dict[str, Any] = {
        "labels": ("angry", "sad"),
        "extractor": "descriptors",
        "spec": spec,
        "weights": flatten_parameters(build_network(spec, 0)),
        "projection": PublicProjection(mean=torch.zeros(4), matrix=torch.eye(4)[:, :3]),
        "centre": torch.zeros(3),
        "speaker_statistics": default_statistics(3),
        "prior": HeadPrior(mean=identity_head(2)),
        "subtracts_user_mean": True,
        "model_hash": "ab" * 32,
    }
    return ModelPackage(**fields | changes)


def build_whisper_package(kind: str = "linear", **changes: Any) -> ModelPackage:
    """Make a model on Whisper's statistics, of 16 inputs for three emotions, with a heads' basis.

    Args:
        kind: ``linear`` or ``mlp``.
        changes: Fields of ``ModelPackage``.
    """
    generator = torch.Generator().manual_seed(3)
    spec = ModelSpec(kind=kind, inputs=16, classes=3, hidden=8, bias_feature=0.5)
    network = build_network(spec, seed=1)
    weights = flatten_parameters(network)
    width = network.head.in_features
    mean = torch.randn(2304, generator=generator) / 10
    fields: dict[str, Any] = {
        "labels": ("angry", "neutral", "sad"),
        "extractor": "whisper-tiny-en",
        "spec": spec,
        "weights": weights + torch.randn(len(weights), generator=generator) / 2,
        "projection": PublicProjection(
            mean=mean, matrix=torch.randn(2304, 16, generator=generator) / 48, row_norm=4.0
        ),
        "centre": torch.randn(16, generator=generator) / 10,
        "speaker_statistics": default_statistics(16),
        "prior": HeadPrior(
            mean=identity_head(3),
            scores=NonconformityScores(atoms=(0.3, 0.6), tail_mass=0.1, concentration=9.0),
            basis=fit_basis(torch.randn(40, width, generator=generator), classes=3),
        ),
        "subtracts_user_mean": True,
        "model_hash": "cd" * 32,
    }
    return ModelPackage(**fields | changes)


def is_unlocked(path: Path) -> bool:
    """Tell whether another writer could lock a file now; under POSIX alone."""
    import fcntl

    with path.open("rb") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
