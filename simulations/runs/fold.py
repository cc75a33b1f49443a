"""One fold of a run: its server and devices on disk, from the first message to the scores."""

from typing import Protocol

from sottovoce.client.device.device import Device
from sottovoce.server.federation import checkpoint
from sottovoce.shared.errors import EngineError, ModelError
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.protocol.events import EventListener, FoldEnded
from sottovoce.simulations.evaluation import fold_result, scoring
from sottovoce.simulations.evaluation.fold_result import FoldResult
from sottovoce.simulations.evaluation.scoring import TestUser
from sottovoce.simulations.runs.fold_spec import FoldSpec
from sottovoce.simulations.runs.ledger_archive import LedgerArchive


class FoldDevices(Protocol):
    """The devices of a fold, and how they train with its server."""

    def prepare(self) -> None:
        """Make the job and the devices that are not there yet."""

    def train(self, listener: EventListener | None) -> None:
        """Run both apps to their end, or what is left of it after an interruption.

        Args:
            listener: Takes the events of the fold's rounds.

        Raises:
            EngineError: They ended without a model.
        """

    def open_device(self, user: str) -> Device:
        """Open a user's device in its state after the run."""

    def archive_ledgers(self, archive: LedgerArchive) -> dict[str, str]:
        """Archive the ledgers of devices that have one each; returns their head hashes by user."""

    def close(self) -> None:
        """Let go of the devices: the fold is scored and its ledgers are archived."""


class FoldRun:
    """One fold: trained, scored on its test users, its ledgers archived.

    Args:
        spec: What it is made of.
        devices: Its devices.
    """

    def __init__(self, spec: FoldSpec, devices: FoldDevices) -> None:
        self.spec = spec
        self.devices = devices
        self._archive = LedgerArchive(spec)

    def run(self, listener: EventListener | None = None) -> FoldResult:
        """Run all of it, or what is left of it after an interruption.

        Args:
            listener: Takes the events of the fold and its rounds; None leaves them to the log.

        Raises:
            SottovoceError: As the engine, the server or a device does.
        """
        if not fold_result.has_result(self.spec.folder):
            self.devices.prepare()
            self.devices.train(listener)
            self._finish()
        result = self._load_result()
        if listener:
            listener.handle_event(FoldEnded(fold=self.spec.fold.name, uar=result.final_uar))
        return result

    def user_ledger(self, user: str) -> Ledger:
        """Open a contributing user's ledger, from the run's archive.

        Raises:
            LedgerError: It is gone, or is not the one that the fold ended with.
        """
        facts, _ = fold_result.read_result(self.spec.folder)
        return self._archive.open_user_ledger(user, facts["ledgers"].get(user))

    def server_ledger(self) -> Ledger | None:
        """Open the server's ledger, from the run's archive; None where no sum hides a user.

        Raises:
            LedgerError: It is gone, or is not the one that the fold ended with.
        """
        if not self.spec.plan.scheme.has_private_sums:
            return None
        facts, _ = fold_result.read_result(self.spec.folder)
        return self._archive.open_server_ledger(facts.get("sums"))

    def load_model(self) -> ModelPackage:
        """Load the trained model.

        Raises:
            ModelError: It is gone or damaged.
        """
        spec = self.spec
        try:
            tensors, prior = checkpoint.load_released_model(spec.server_folder)
        except ModelError as error:
            raise ModelError(
                f"{error}: remove {spec.folder} and go on with --resume, {spec.fold.name} is "
                "trained again"
            ) from error
        return ModelPackage(
            labels=spec.plan.labels,
            extractor=spec.plan.extractor,
            spec=spec.plan.model,
            weights=tensors["weights"],
            projection=spec.inputs.projection,
            centre=tensors["centre"],
            speaker_statistics=spec.inputs.speaker_statistics,
            prior=prior,
            subtracts_user_mean=spec.plan.centre is not None,
            model_hash=spec.plan.hash_model(tensors["weights"]),
            neutral_direction=tensors.get("neutral"),
            familiar_speech=spec.inputs.familiar_speech,
        )

    def _finish(self) -> None:
        """Score, archive the ledgers, and let go of the devices."""
        package = self.load_model()
        users = [self._test_user(user, package) for user in self.spec.fold.test]
        scores = scoring.score_users(package, users)
        facts = {
            "clips": [clip for user in users for clip in user.clip_ids],
            "curve": scoring.measure_learning_curve(
                package, users, checkpoint.iter_round_weights(self.spec.server_folder)
            ),
            "ledgers": self.devices.archive_ledgers(self._archive),
        }
        if self.spec.plan.scheme.has_private_sums:
            facts["sums"] = self._archive.archive_server_ledger()
        # The result is written last: a fold that has one has all of its ledgers.
        fold_result.write_result(self.spec.folder, facts, scores)
        self.devices.close()

    def _test_user(self, user: str, package: ModelPackage) -> TestUser:
        """A test user's clips to be scored, and what the device made of enrolment."""
        split = self.spec.split_clips(user)
        clips = [clip for clip in self.spec.inputs.clips[user] if clip not in split.neutral]
        vault = self.devices.open_device(user).vault
        if not vault.has_blob("normaliser"):
            raise EngineError(
                f"the device of {user} did not take the model, as the warnings say; go on with "
                "--resume once it can"
            )
        return TestUser.from_vault(
            vault,
            package,
            examples=self.spec.inputs.build_examples(clips),
            clip_ids=[clip.clip_id for clip in clips],
            labelled=[clip in split.labelled for clip in clips],
        )

    def _load_result(self) -> FoldResult:
        spec = self.spec
        clips = [clip for user in spec.fold.test for clip in spec.inputs.clips[user]]
        return fold_result.load_result(
            spec.folder,
            fold=spec.fold.name,
            labels=spec.plan.labels,
            clips=clips,
            has_heads=spec.enrolment.labelled_clips_per_user > 0,
        )
