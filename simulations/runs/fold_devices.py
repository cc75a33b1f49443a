"""The devices of a fold over a corpus's speakers: every user has one, all of them take part."""

import shutil
from collections.abc import Sequence
from functools import cached_property

import torch

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.server.planning import noise_calibration
from sottovoce.shared import crypto
from sottovoce.shared.errors import EngineError
from sottovoce.shared.models.examples import Examples, concatenate_examples
from sottovoce.shared.protocol.events import EventListener
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.devices.backends import DeviceBackend, open_backend
from sottovoce.simulations.engines import load_engine
from sottovoce.simulations.runs.fold_spec import FoldSpec
from sottovoce.simulations.runs.ledger_archive import LedgerArchive


class SpeakerDevices:
    """Devices of all speakers of a fold (see ``fold.FoldDevices``).

    Args:
        spec: The fold.
        address: Of the Ray cluster to run on; None runs on this machine.
    """

    def __init__(self, spec: FoldSpec, *, address: str | None = None) -> None:
        self._spec, self._address = spec, address

    def prepare(self) -> None:
        """See ``FoldDevices``."""
        spec, devices = self._spec, self._backend
        if spec.server_folder.exists() and not all(
            map(devices.has_device, range(len(spec.speakers)))
        ):
            # Rounds whose ledgers are gone must not count: the fold begins anew, devices and all.
            devices.close()
            shutil.rmtree(spec.folder)
        for index, user in enumerate(spec.speakers):
            if not devices.has_device(index):
                devices.create_device(index, *self._device_contents(user))
        devices.commit_changes()
        spec.plan.scheme.match_sums(
            spec.plan, plain=lambda: None, secure=lambda _: self._pin_rosters()
        )
        devices.commit_changes()
        devices.close()
        # A run that left somebody out could not be repeated.
        spec.make_job(devices=len(spec.speakers), quorum=1.0).save(spec.server_folder)

    def _pin_rosters(self) -> None:
        """Give the training users' devices each other's public keys."""
        pin_rosters([self.open_device(user) for user in self._spec.fold.train])

    def train(self, listener: EventListener | None) -> None:
        """See ``FoldDevices``."""
        spec = self._spec
        config = {"job": str(spec.server_folder.resolve()), **self._backend.engine_config}
        load_engine(spec.settings.engine, address=self._address)(
            devices=len(spec.speakers),
            config=config,
            workers=spec.settings.workers,
            listener=listener,
        )
        if not (spec.server_folder / "released.safetensors").is_file():
            raise EngineError(
                f"{spec.fold.name}: the {spec.settings.engine} engine ended without a model; "
                "run again with --resume"
            )

    def open_device(self, user: str) -> Device:
        """See ``FoldDevices``."""
        return self._backend.open_device(self._spec.speakers.index(user))

    def archive_ledgers(self, archive: LedgerArchive) -> dict[str, str]:
        """See ``FoldDevices``."""
        return {
            user: archive.archive_user_ledger(user, self.open_device(user).ledger)
            for user in self._spec.fold.train
        }

    def close(self) -> None:
        """See ``FoldDevices``; the fold has ended, and its devices are deleted."""
        self._backend.delete_devices()

    @cached_property
    def _backend(self) -> DeviceBackend:
        return open_backend(self._spec.folder, self._spec.settings.engine)

    def _device_contents(self, user: str) -> tuple[DeviceProfile, LabelledFeatures]:
        """What a user's device holds: all clips of a training user, enrolment of a new one."""
        spec = self._spec
        contributes = user in spec.fold.train
        profile = DeviceProfile(
            user=user,
            budgets=noise_calibration.device_budgets(spec.target, spec.plan),
            contributes=contributes,
            neutral_enrolment=not contributes and spec.enrolment.neutral_clips is not None,
            labels=spec.plan.labels,
            simulated_seed=spec.seed,
            # The simulated users accept what the scenario says, however few they are.
            min_cohort=3,
            min_dishonest_share=0.0,
        )
        features = self._training_features(user) if contributes else self._enrolment_features(user)
        return profile, features

    def _training_features(self, user: str) -> LabelledFeatures:
        """What a training user has on the device: all of their clips enrol and train."""
        clips = list(self._spec.inputs.clips[user])
        everything = torch.ones(len(clips), dtype=torch.bool)
        return LabelledFeatures(
            examples=self._spec.inputs.build_examples(clips),
            for_enrolment=everything,
            for_head=~everything,
            for_training=everything,
        )

    def _enrolment_features(self, user: str) -> LabelledFeatures:
        """What a new user has on the device: unlabelled clips, and those that the user labelled."""
        enrolment, inputs, split = (
            self._spec.enrolment,
            self._spec.inputs,
            self._spec.split_clips(user),
        )
        unlabelled = split.neutral if enrolment.neutral_clips else inputs.clips[user]
        if enrolment.enrolment == "none":
            unlabelled = ()
        parts = [
            inputs.build_examples(clips, labelled=labelled)
            for clips, labelled in ((unlabelled, False), (split.labelled, True))
            if clips
        ]
        sizes = [len(unlabelled), len(split.labelled)]
        first = torch.arange(sum(sizes)) < sizes[0]
        return LabelledFeatures(
            examples=_concatenate(parts, inputs),
            for_enrolment=first,
            for_head=~first,
            for_training=torch.zeros(sum(sizes), dtype=torch.bool),
        )


def pin_rosters(devices: Sequence[Device]) -> None:
    """Give each device the public keys of its secure sums, as a directory of users would.

    Args:
        devices: All devices of a secure sum.
    """
    roster = {
        device.profile.user: crypto.identity_public_key(device.identity_key) for device in devices
    }
    for device in devices:
        device.pin_roster(roster)


def _concatenate(parts: Sequence[Examples], inputs: FoldInputs) -> Examples:
    """Examples of several parts; without any part, none of the right width."""
    if not parts:
        shape = next(iter(inputs.features.values())).shape
        empty = torch.zeros(0, dtype=torch.int64)
        return Examples(features=torch.zeros(0, *shape), frames=empty, labels=empty)
    return concatenate_examples(parts)
