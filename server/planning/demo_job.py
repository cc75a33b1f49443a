"""A small job of made-up data, for a server whose run names none."""

from pathlib import Path
from typing import Final

from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.federation.training_job import Job
from sottovoce.shared import demo_data
from sottovoce.shared.calibration.head_statistics import CalibrationRelease
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.shared.speaker.normalisation import (
    CentreRelease,
    NormaliserRelease,
    default_statistics,
)

ROUNDS: Final = 3
DEVICES: Final = 2
"""As many as a local Flower simulation has when nothing is configured."""


def prepare_demo_job(run_id: int) -> Path:
    """Prepare the job of a demo run, once.

    Args:
        run_id: Flower's, part of the run's name.

    Returns:
        The job's folder, in :func:`demo_data.demo_folder`.
    """
    folder = demo_data.demo_folder(run_id) / "job"
    if not (folder / "job.json").is_file():  # it is there if the ServerApp was started again
        folder.mkdir(parents=True, exist_ok=True)
        build_demo_job(f"demo-{run_id}").save(folder)
    return folder


def build_demo_job(run: str) -> Job:
    """Build a job on made-up features that hides single utterances.

    Its noise has a fixed size; that of a real job is planned from an epsilon.

    Args:
        run: Name of the run, part of every release's name.

    >>> build_demo_job("demo").plan.scheme.unit
    'utterance'
    """
    plan = _plan(run)
    return Job(
        plan=plan,
        aggregation=AggregationSettings(),
        weights=flatten_parameters(build_network(plan.model, seed=demo_data.SEED)),
        projection=demo_data.demo_projection(),
        speaker_statistics=default_statistics(demo_data.FEATURES),
        devices=DEVICES,
    )


def _plan(run: str) -> Plan:
    return Plan(
        run=run,
        labels=demo_data.LABELS,
        extractor="made-up",
        projection_hash=demo_data.demo_projection().content_hash(),
        model=ModelSpec(kind="linear", inputs=demo_data.FEATURES, classes=len(demo_data.LABELS)),
        rounds=ROUNDS,
        training=LocalTraining(
            steps=1, sample_rate=1.0, learning_rate=2.0, denominator=demo_data.CLIPS / 2
        ),
        mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=2.0),
        centre=CentreRelease(clip_norm=1.5, noise_multiplier=4.0),
        normaliser=NormaliserRelease(clip_norm=0.8, count_weight=0.24, noise_multiplier=4.0),
        count_noise=4.0,
        calibration=CalibrationRelease(noise_multiplier=4.0, subtracted_share=0.4),
    )
