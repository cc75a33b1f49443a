"""One fold of a run: its server and devices on disk, from the first message to the scores."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.client.personalisation.head_calibrator import HeadCalibrator
from sottovoce.server.aggregation.private_sums import LEDGER_FILE, LEDGER_OWNER
from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.training_job import Job
from sottovoce.server.planning import noise_calibration
from sottovoce.shared import calibration, crypto, seeding
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.calibration import conformal
from sottovoce.shared.errors import EngineError, LedgerError, ModelError
from sottovoce.shared.models.examples import Examples, concatenate_examples
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.projection import normalise_and_mask
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.protocol.events import EventListener
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.corpora.speaker_splits import EnrolmentSplit, Fold, split_enrolment
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.devices.backends import DeviceBackend, open_backend
from sottovoce.simulations.engines import load_engine
from sottovoce.simulations.evaluation import fold_result, metrics
from sottovoce.simulations.evaluation.fold_result import FoldResult
from sottovoce.simulations.evaluation.predictions import Predictions
from sottovoce.simulations.results.path_names import file_name
from sottovoce.simulations.results.schema import Json
from sottovoce.simulations.scenario.scenario import CLASS_EXPONENTS, Scenario

LOG = logging.getLogger("sottovoce.simulations")


class FoldRun:
    """One fold.

    Args:
        folder: Where server and devices live.
        ledgers: Where ledgers are archived.
        fold: Who trains and who tests.
        plan: The plan of this fold.
        scenario: The settled scenario.
        fold_inputs: What all folds share.
        address: Of the Ray cluster to run on; None runs on this machine.
        listener: Takes the events of the fold's rounds.
    """

    def __init__(
        self,
        *,
        folder: Path,
        ledgers: Path,
        fold: Fold,
        plan: Plan,
        scenario: Scenario,
        fold_inputs: FoldInputs,
        address: str | None = None,
        listener: EventListener | None = None,
    ) -> None:
        self.folder = folder
        self.ledgers = ledgers
        self.fold = fold
        self.plan = plan
        self.scenario = scenario
        self.fold_inputs = fold_inputs
        self.address = address
        self.listener = listener

    def run(self) -> FoldResult:
        """Everything, or what is left of it after an interruption."""
        if not fold_result.has_result(self.folder):
            self._build()
            self._train()
            self._finish()
        return self._load_result()

    def user_ledger(self, user: str) -> Ledger:
        """A contributing user's ledger, from the run's archive.

        Raises:
            LedgerError: It is gone, or is not the one that the fold ended with.
        """
        facts, _ = fold_result.read_result(self.folder)
        return self._archived_ledger(self._ledger_archive(user), user, facts["ledgers"].get(user))

    def server_ledger(self) -> Ledger | None:
        """The server's ledger, from the run's archive; None where no sum hides a user.

        Raises:
            LedgerError: It is gone, or is not the one that the fold ended with.
        """
        if self.plan.user is None:
            return None
        facts, _ = fold_result.read_result(self.folder)
        return self._archived_ledger(self._server_ledger_archive, LEDGER_OWNER, facts.get("sums"))

    def _archived_ledger(self, path: Path, owner: str, head: str | None) -> Ledger:
        """An archived ledger that ends as the fold did."""
        ledger = Ledger(path, owner=owner, read_only=True)
        if ledger.head_hash != head:
            raise LedgerError(
                f"the ledger of {owner} in {path.parent} is not the one that {self.fold.name} "
                f"ended with; restore it, or remove {self.folder} and go on with --resume"
            )
        return ledger

    def load_model(self) -> ModelPackage:
        """The trained model.

        Raises:
            ModelError: It is gone or damaged.
        """
        try:
            tensors, prior = checkpoint.load_released_model(self.folder / "server")
        except ModelError as error:
            raise ModelError(
                f"{error}: remove {self.folder} and go on with --resume, {self.fold.name} is "
                "trained again"
            ) from error
        return ModelPackage(
            labels=self.plan.labels,
            extractor=self.plan.extractor,
            spec=self.plan.model,
            weights=tensors["weights"],
            projection=self.fold_inputs.projection,
            centre=tensors["centre"],
            speaker_statistics=self.fold_inputs.speaker_statistics,
            prior=prior,
            subtracts_user_mean=self.plan.centre is not None,
            model_hash=self.plan.hash_model(tensors["weights"]),
            neutral_direction=tensors.get("neutral"),
        )

    @property
    def _seed(self) -> int:
        """Decides what server and devices draw."""
        return seeding.derive_fold_seed(self.scenario.seed, self.fold.name)

    @property
    def _speakers(self) -> list[str]:
        """All users, by the index of their device."""
        return [*self.fold.train, *self.fold.test]

    def _ledger_archive(self, user: str) -> Path:
        """Where a user's ledger is archived."""
        return self.ledgers / f"{file_name(user)}.jsonl"

    @property
    def _server_ledger_archive(self) -> Path:
        """Where the server's ledger is archived: beside its users' folder, not among them."""
        return self.ledgers.with_name(f"{self.ledgers.name}.server.jsonl")

    @cached_property
    def _backend(self) -> DeviceBackend:
        """Where the users' devices are."""
        return open_backend(self.folder, self.scenario.engine)

    def _open_device(self, user: str) -> Device:
        """A user's device, as the run left it."""
        return self._backend.open_device(self._speakers.index(user))

    def _build(self) -> None:
        """Make the job and the devices that are not there yet."""
        devices, indices = self._backend, range(len(self._speakers))
        if (self.folder / "server").exists() and not all(map(devices.has_device, indices)):
            # Rounds whose ledgers are gone must not count: the fold begins anew, devices and all.
            devices.close()
            shutil.rmtree(self.folder)
        for index, user in enumerate(self._speakers):
            if not devices.has_device(index):
                devices.create_device(index, *self._device_contents(user))
        devices.commit_changes()
        if self.scenario.secure:
            pin_rosters([self._open_device(user) for user in self.fold.train])
        devices.commit_changes()
        devices.close()
        job = Job(
            plan=self.plan,
            aggregation=self.scenario.recipe.aggregation,
            weights=self.fold_inputs.initial_weights,
            projection=self.fold_inputs.projection,
            speaker_statistics=self.fold_inputs.speaker_statistics,
            devices=len(self._speakers),
            quorum=1.0,  # a run that left somebody out could not be repeated
            class_exponent=CLASS_EXPONENTS[self.scenario.recipe.class_weights],
            budgets=noise_calibration.server_budgets(self.scenario),
            simulated_seed=self._seed,
            held_out_path=self.fold_inputs.held_out_file,
            calibration_groups=self.scenario.recipe.calibration_groups
            if self.plan.calibration
            else 0,
        )
        job.save(self.folder / "server")

    def _device_contents(self, user: str) -> tuple[DeviceProfile, LabelledFeatures]:
        """What a user's device holds: all clips of a training user, enrolment of a new one."""
        clips = list(self.fold_inputs.clips[user])
        contributes = user in self.fold.train
        if contributes:
            everyone = torch.ones(len(clips), dtype=torch.bool)
            nobody = torch.zeros(len(clips), dtype=torch.bool)
            features = LabelledFeatures(
                examples=self.fold_inputs.build_examples(clips),
                for_enrolment=everyone,
                for_head=nobody,
                for_training=everyone,
            )
        else:
            features = self._enrolment_features(user)
        profile = DeviceProfile(
            user=user,
            budgets=noise_calibration.device_budgets(self.scenario),
            contributes=contributes,
            neutral_enrolment=not contributes and self.scenario.neutral_clips is not None,
            labels=self.plan.labels,
            simulated_seed=self._seed,
        )
        return profile, features

    def _split_clips(self, user: str) -> EnrolmentSplit:
        """How a test user's clips are used."""
        return split_enrolment(
            self.fold_inputs.clips[user],
            neutral=self.scenario.neutral_clips or 0,
            labelled=self.scenario.labelled_clips_per_user,
            seed=seeding.derive_seed(self.scenario.seed, "enrolment"),
        )

    def _enrolment_features(self, user: str) -> LabelledFeatures:
        """What a new user has on the device: unlabelled clips, and those that the user labelled."""
        split = self._split_clips(user)
        unlabelled = split.neutral if self.scenario.neutral_clips else self.fold_inputs.clips[user]
        if self.scenario.enrolment == "none":
            unlabelled = ()
        parts = [
            self.fold_inputs.build_examples(clips, labelled=labelled)
            for clips, labelled in ((unlabelled, False), (split.labelled, True))
            if clips
        ]
        sizes = [len(unlabelled), len(split.labelled)]
        first = torch.arange(sum(sizes)) < sizes[0]
        return LabelledFeatures(
            examples=_concatenate(parts, self.fold_inputs),
            for_enrolment=first,
            for_head=~first,
            for_training=torch.zeros(sum(sizes), dtype=torch.bool),
        )

    def _train(self) -> None:
        """Run both apps."""
        config = {"job": str((self.folder / "server").resolve()), **self._backend.engine_config}
        load_engine(self.scenario.engine, address=self.address)(
            devices=len(self._speakers),
            config=config,
            workers=self.scenario.workers,
            listener=self.listener,
        )
        if not (self.folder / "server" / "released.safetensors").is_file():
            raise EngineError(
                f"{self.fold.name}: the {self.scenario.engine} engine ended without a model; "
                "run again with --resume"
            )

    def _finish(self) -> None:
        """Score, archive the ledgers, and delete the devices."""
        scores, facts = self._score()
        facts["ledgers"] = {}
        for user in self.fold.train:
            ledger = self._open_device(user).ledger
            replace_file(self._ledger_archive(user), ledger.raw_bytes)
            facts["ledgers"][user] = ledger.head_hash
        if self.plan.user:
            sums = Ledger(self.folder / "server" / LEDGER_FILE, owner=LEDGER_OWNER, read_only=True)
            replace_file(self._server_ledger_archive, sums.path.read_bytes())
            facts["sums"] = sums.head_hash
        fold_result.write_result(self.folder, facts, scores)
        self._backend.delete_devices()

    def _score(self) -> tuple[dict[str, Tensor], Json]:
        """Probabilities of all test users' clips, and the learning curve."""
        package = self.load_model()
        before, after, inputs, labels, clips, labelled, sets = [], [], [], [], [], [], []
        coordinates: list[Tensor] = []
        for user in self.fold.test:
            split = self._split_clips(user)
            chosen = [clip for clip in self.fold_inputs.clips[user] if clip not in split.neutral]
            examples = self.fold_inputs.build_examples(chosen)
            device = self._open_device(user)
            if not device.vault.has_blob("normaliser"):
                raise EngineError(
                    f"the device of {user} did not take the model, as the warnings say; go on with "
                    "--resume once it can"
                )
            mean = device.vault.get_tensors("normaliser")["mean"]
            logits, own_coordinates = package.logits_and_coordinates(
                examples.features, examples.frames, mean
            )
            calibrator = HeadCalibrator(
                device.vault, model_hash=package.model_hash, prior=package.prior
            )
            before.append(logits)
            after.append(
                calibration.calibrate_logits(calibrator.current_head(), logits, own_coordinates)
            )
            coordinates += [] if own_coordinates is None else [own_coordinates]
            sets.append(_prediction_sets(package, calibrator, after[-1]))
            inputs.append((examples, mean))
            labels.append(examples.labels)
            clips += [clip.clip_id for clip in chosen]
            labelled += [clip in split.labelled for clip in chosen]
        scores = {
            "before": torch.softmax(torch.cat(before).double(), 1),
            "after": torch.softmax(torch.cat(after).double(), 1),
            "labels": torch.cat(labels),
            "labelled": torch.tensor(labelled),
        }
        if coordinates:
            scores[fold_result.COORDINATES_COLUMN] = torch.cat(coordinates).float()
        found = [one for one in sets if one is not None]
        if found:
            inside = torch.cat(found)
            truth = scores["labels"][:, None]
            scores |= {"covered": inside.gather(1, truth)[:, 0], "sizes": inside.sum(1)}
        return scores, {"clips": clips, "curve": self._learning_curve(package, inputs)}

    def _learning_curve(
        self, package: ModelPackage, inputs: Sequence[tuple[Examples, Tensor]]
    ) -> list[tuple[int, float]]:
        """UAR on the test users after each round, for display only: nothing is chosen by it."""
        ready = [
            (
                normalise_and_mask(
                    package.projection.project_features(examples.features),
                    mean,
                    examples.frames,
                    row_norm=package.projection.row_norm,
                ),
                examples.frames,
            )
            for examples, mean in inputs
        ]
        labels = torch.cat([examples.labels for examples, _ in inputs]).numpy()
        network, points = package.build_network(), []
        for number, weights in checkpoint.iter_round_weights(self.folder / "server"):
            load_parameters(network, weights)
            with torch.no_grad():
                guesses = torch.cat([network(*batch).argmax(1) for batch in ready])
            matrix = metrics.confusion_matrix(labels, guesses.numpy(), len(self.plan.labels))
            points.append((number, float(metrics.uar(matrix))))
        return points

    def _load_result(self) -> FoldResult:
        """The scores as they were written."""
        facts, scores = fold_result.read_result(self.folder)
        by_name = {
            clip.clip_id: clip for user in self.fold.test for clip in self.fold_inputs.clips[user]
        }
        clips = [by_name[name] for name in facts["clips"]]
        rows = np.arange(len(clips))
        personal = None
        if self.scenario.labelled_clips_per_user:
            unlabelled = rows[~scores["labelled"]]
            personal = self._predictions(clips, scores, unlabelled, after="after")
        return FoldResult(
            predictions=self._predictions(clips, scores, rows, after="before"),
            personalised=personal,
            learning_curve=facts["curve"],
        )

    def _predictions(
        self, clips: Sequence[Clip], scores: Mapping[str, np.ndarray], rows: np.ndarray, after: str
    ) -> Predictions:
        """A table of some of the scores."""
        chosen = [clips[row] for row in rows]
        return Predictions(
            emotions=self.plan.labels,
            clips=[clip.clip_id for clip in chosen],
            speakers=[clip.speaker for clip in chosen],
            folds=[self.fold.name] * len(chosen),
            labels=scores["labels"][rows],
            before=scores["before"][rows],
            after=scores[after][rows],
            genders=[clip.gender or "" for clip in chosen],
            ages=[clip.age for clip in chosen],
            languages=[clip.language or "" for clip in chosen],
            **{name: scores[name][rows] for name in fold_result.SET_COLUMNS if name in scores},
        )


def _prediction_sets(
    package: ModelPackage, calibrator: HeadCalibrator, calibrated: Tensor
) -> Tensor | None:
    """A user's prediction sets, (utterances, classes), bool; None where the model has none."""
    if package.prior.scores is None:
        return None
    limit = conformal.find_threshold(
        package.prior.scores, calibrator.nonconformity_scores(), coverage=conformal.DEFAULT_COVERAGE
    )
    return conformal.prediction_set_mask(torch.softmax(calibrated.double(), 1), limit)


def pin_rosters(devices: Sequence[Device]) -> None:
    """Give each device the public keys of its secure sums, as a directory of users would."""
    roster = {
        device.profile.user: crypto.identity_public_key(device.identity_key) for device in devices
    }
    for device in devices:
        device.pin_roster(roster)


def _concatenate(parts: Sequence[Examples], fold_inputs: FoldInputs) -> Examples:
    """Examples of several parts; without any part, none of the right width."""
    if not parts:
        shape = next(iter(fold_inputs.features.values())).shape
        empty = torch.zeros(0, dtype=torch.int64)
        return Examples(features=torch.zeros(0, *shape), frames=empty, labels=empty)
    return concatenate_examples(parts)
