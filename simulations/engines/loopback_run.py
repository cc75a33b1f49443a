"""Preparing a run on this machine's loopback: a job, and one real device for each user."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.server.federation.training_job import Job
from sottovoce.server.planning import noise_calibration
from sottovoce.server.planning.recipe import CLASS_EXPONENTS
from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.data.few_speakers import load_few_speakers
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.data.pretraining import build_plan
from sottovoce.simulations.runs.fold_devices import pin_rosters
from sottovoce.simulations.scenario.scenario import Scenario

LABELLED_CLIPS = 6
MAX_SPEAKERS = 64
"""Each is a process of its own."""
MAX_TIMEOUT_S = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A job and its devices, ready to run.

    Attributes:
        job: The job's folder.
        devices: The devices' folders.
        plan: The plan.
    """

    job: Path
    devices: list[Path]
    plan: Plan


def prepare_run(
    scenario: Scenario,
    out: Path,
    *,
    speakers: int,
    timeout_s: float,
    on_message: Callable[[str], None],
) -> PreparedRun:
    """Make the job and the devices.

    Args:
        scenario: The settled scenario.
        out: Folder for job, devices and logs; empty, or made.
        speakers: Number of users, each with a device of their own.
        timeout_s: Longest that the run may take, in seconds.
        on_message: Gets lines of progress.

    Raises:
        SettingError: An option makes no sense, or the folder is not empty.
        SottovoceError: A corpus cannot be read, or there are too few speakers.
    """
    if out.exists() and any(out.iterdir()):
        raise SettingError(f"{out} is not empty; give another --out")
    validation.require_count(1, MAX_SPEAKERS, speakers=speakers)
    validation.require_range(1, MAX_TIMEOUT_S, timeout=timeout_s)
    fold_inputs = load_few_speakers(
        scenario.data,
        scenario.plan_settings,
        out,
        on_message,
        speakers=speakers,
        seed=scenario.run.seed,
    )
    plan = _plan(scenario, fold_inputs)
    folder = (out / "job").resolve()
    Job(
        plan=plan,
        aggregation=scenario.recipe.aggregation,
        weights=fold_inputs.initial_weights,
        projection=fold_inputs.projection,
        speaker_statistics=fold_inputs.speaker_statistics,
        devices=len(fold_inputs.clips),
        budgets=noise_calibration.server_budgets(scenario.privacy),
        timeout_s=timeout_s,
        class_exponent=CLASS_EXPONENTS[scenario.recipe.class_weights],
        held_out_path=fold_inputs.held_out_file,
    ).save(folder)
    devices = []
    for number, user in enumerate(fold_inputs.clips, 1):
        devices.append((out / "devices" / f"{number:06d}").resolve())
        _device(
            devices[-1], user, noise_calibration.device_budgets(scenario.privacy, plan), fold_inputs
        )
    pin_rosters([Device.open(folder) for folder in devices])
    return PreparedRun(job=folder, devices=devices, plan=plan)


def _plan(scenario: Scenario, fold_inputs: FoldInputs) -> Plan:
    """A private plan; its name is new, since its noise can never be repeated."""
    plan = build_plan(
        scenario.plan_settings, scenario.privacy, fold_inputs, f"loopback-{os.urandom(4).hex()}"
    )
    return noise_calibration.add_secure_aggregation(
        plan, scenario.privacy, scenario.recipe.bounds, devices=len(fold_inputs.clips)
    )


def _device(
    folder: Path, user: str, budgets: tuple[PrivacyBudget, ...], fold_inputs: FoldInputs
) -> None:
    """A user's real device: no seed, so its noise comes from the operating system."""
    clips = list(fold_inputs.clips[user])
    number = torch.arange(len(clips))
    # A head learns from clips that training has not seen, spread over the user's emotions.
    for_head = number % max(len(clips) // LABELLED_CLIPS, 2) == 0
    features = LabelledFeatures(
        examples=fold_inputs.build_examples(clips),
        for_enrolment=torch.ones(len(clips), dtype=torch.bool),
        for_head=for_head,
        for_training=~for_head,
    )
    profile = DeviceProfile(
        user=user,
        budgets=budgets,
        labels=fold_inputs.labels,
        # A handful of users on one machine, whose owner is one person.
        min_cohort=3,
        min_dishonest_share=0.0,
    )
    Device.create(folder, profile, features)
