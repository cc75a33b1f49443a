"""A world: one fold's server and devices on disk, from before the first message to the scores."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sottovoce.client.calibrator import Calibrator
from sottovoce.client.device import Device
from sottovoce.client.owner import Clips, Facts
from sottovoce.server import checkpoint
from sottovoce.server.job import Job
from sottovoce.server.sums import LEDGER, OWNER
from sottovoce.shared import conformal, crypto, heads, metrics, seeds
from sottovoce.shared.bundle import Bundle
from sottovoce.shared.errors import EngineError, LedgerError, ModelError
from sottovoce.shared.examples import Examples, join
from sottovoce.shared.front import finish
from sottovoce.shared.models.flat import load_flat
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.simulations import outcome, promise
from sottovoce.simulations.corpora.clips import Clip
from sottovoce.simulations.devices.homes import Home, home
from sottovoce.simulations.engines import engine
from sottovoce.simulations.material import Material
from sottovoce.simulations.names import file_name
from sottovoce.simulations.outcome import Outcome
from sottovoce.simulations.protocols import Enrolment, Fold, enrolment_split
from sottovoce.simulations.runfile import Json
from sottovoce.simulations.scenario import CLASS_EXPONENTS, Scenario
from sottovoce.simulations.scored import Scored

LOG = logging.getLogger("sottovoce.simulations")


class World:
    """One fold.

    Args:
        folder: Where server and devices live.
        ledgers: Where ledgers are kept for good.
        fold: Who trains and who tests.
        plan: The plan of this fold.
        scenario: The settled scenario.
        material: What all folds share.
        address: Of the Ray cluster to run on; None runs on this machine.
    """

    def __init__(
        self,
        *,
        folder: Path,
        ledgers: Path,
        fold: Fold,
        plan: Plan,
        scenario: Scenario,
        material: Material,
        address: str | None = None,
    ) -> None:
        self.folder = folder
        self.ledgers = ledgers
        self.fold = fold
        self.plan = plan
        self.scenario = scenario
        self.material = material
        self.address = address

    def run(self) -> Outcome:
        """Everything, or what is left of it after an interruption."""
        if not outcome.exists(self.folder):
            self._build()
            self._train()
            self._finish()
        return self._outcome()

    def ledger(self, user: str) -> Ledger:
        """A contributing user's ledger, from the run's keeping.

        Raises:
            LedgerError: It is gone, or is not the one that the fold ended with.
        """
        facts, _ = outcome.read(self.folder)
        return self._kept(self._kept_ledger(user), user, facts["ledgers"].get(user))

    def sums(self) -> Ledger | None:
        """The server's ledger, from the run's keeping; None where no sum hides a user.

        Raises:
            LedgerError: It is gone, or is not the one that the fold ended with.
        """
        if self.plan.user is None:
            return None
        facts, _ = outcome.read(self.folder)
        return self._kept(self._kept_sums, OWNER, facts.get("sums"))

    def _kept(self, path: Path, whose: str, head: str | None) -> Ledger:
        """A kept ledger that ends as the fold did."""
        ledger = Ledger(path, owner=whose, read_only=True)
        if ledger.head != head:
            raise LedgerError(
                f"the ledger of {whose} in {path.parent} is not the one that {self.fold.name} "
                f"ended with; restore it, or remove {self.folder} and go on with --resume"
            )
        return ledger

    def bundle(self) -> Bundle:
        """The trained model.

        Raises:
            ModelError: It is gone or damaged.
        """
        try:
            tensors, prior = checkpoint.released(self.folder / "server")
        except ModelError as error:
            raise ModelError(
                f"{error}: remove {self.folder} and go on with --resume, {self.fold.name} is "
                "trained again"
            ) from error
        return Bundle(
            labels=self.plan.labels,
            extractor=self.plan.extractor,
            spec=self.plan.model,
            weights=tensors["weights"],
            front=self.material.front,
            centre=tensors["centre"],
            population=self.material.population,
            prior=prior,
            user_mean=self.plan.centre is not None,
            model_hash=self.plan.model_hash(tensors["weights"]),
            neutral=tensors.get("neutral"),
        )

    @property
    def _seed(self) -> int:
        """Decides what server and devices draw."""
        return seeds.of_fold(self.scenario.seed, self.fold.name)

    @property
    def _speakers(self) -> list[str]:
        """All users, by the place of their device."""
        return [*self.fold.train, *self.fold.test]

    def _kept_ledger(self, user: str) -> Path:
        """Where a user's ledger is kept for good."""
        return self.ledgers / f"{file_name(user)}.jsonl"

    @property
    def _kept_sums(self) -> Path:
        """Where the server's ledger is kept for good: beside its users' folder, not among them."""
        return self.ledgers.with_name(f"{self.ledgers.name}.server.jsonl")

    @cached_property
    def _home(self) -> Home:
        """Where the users' devices are."""
        return home(self.folder, self.scenario.engine)

    def _opened(self, user: str) -> Device:
        """A user's device, as the run left it."""
        return self._home.device(self._speakers.index(user))

    def _build(self) -> None:
        """Make the job and the devices that are not there yet."""
        devices, places = self._home, range(len(self._speakers))
        if (self.folder / "server").exists() and not all(map(devices.holds, places)):
            # Rounds whose ledgers are gone must not count: the fold begins anew, devices and all.
            devices.close()
            shutil.rmtree(self.folder)
        for place, user in enumerate(self._speakers):
            if not devices.holds(place):
                devices.put(place, *self._device(user))
        devices.commit()
        if self.scenario.secure:
            introduce([self._opened(user) for user in self.fold.train])
        devices.commit()
        devices.close()
        job = Job(
            plan=self.plan,
            aggregation=self.scenario.recipe.aggregation,
            weights=self.material.start,
            front=self.material.front,
            population=self.material.population,
            devices=len(self._speakers),
            quorum=1.0,  # a run that left somebody out could not be repeated
            class_exponent=CLASS_EXPONENTS[self.scenario.recipe.class_weights],
            budgets=promise.sum_budgets(self.scenario),
            simulated_seed=self._seed,
            held_out=self.material.held_out,
            groups=self.scenario.recipe.calibration_groups if self.plan.calibration else 0,
        )
        job.save(self.folder / "server")

    def _device(self, user: str) -> tuple[Facts, Clips]:
        """What a user's device holds: all clips of a training user, enrolment of a new one."""
        clips = list(self.material.clips[user])
        contributes = user in self.fold.train
        if contributes:
            everyone = torch.ones(len(clips), dtype=torch.bool)
            nobody = torch.zeros(len(clips), dtype=torch.bool)
            held = Clips(
                examples=self.material.examples(clips),
                enrols=everyone,
                calibrates=nobody,
                trains=everyone,
            )
        else:
            held = self._enrolment_clips(user)
        facts = Facts(
            user=user,
            budgets=promise.budgets(self.scenario),
            contributes=contributes,
            neutral_enrolment=not contributes and self.scenario.neutral_clips is not None,
            labels=self.plan.labels,
            simulated_seed=self._seed,
        )
        return facts, held

    def _split(self, user: str) -> Enrolment:
        """How a test user's clips are used."""
        return enrolment_split(
            self.material.clips[user],
            neutral=self.scenario.neutral_clips or 0,
            labelled=self.scenario.head_clips,
            seed=seeds.derive(self.scenario.seed, "enrolment"),
        )

    def _enrolment_clips(self, user: str) -> Clips:
        """What a new user has given the device; only labels that the user gave are there."""
        split = self._split(user)
        unlabelled = split.neutral if self.scenario.neutral_clips else self.material.clips[user]
        if self.scenario.enrolment == "none":
            unlabelled = ()
        parts = [
            self.material.examples(clips, labelled=labelled)
            for clips, labelled in ((unlabelled, False), (split.labelled, True))
            if clips
        ]
        sizes = [len(unlabelled), len(split.labelled)]
        first = torch.arange(sum(sizes)) < sizes[0]
        return Clips(
            examples=_joined(parts, self.material),
            enrols=first,
            calibrates=~first,
            trains=torch.zeros(sum(sizes), dtype=torch.bool),
        )

    def _train(self) -> None:
        """Run both apps."""
        config = {"job": str((self.folder / "server").resolve()), **self._home.config}
        engine(self.scenario.engine, address=self.address)(
            devices=len(self._speakers), config=config, workers=self.scenario.workers
        )
        if not (self.folder / "server" / "released.safetensors").is_file():
            raise EngineError(
                f"{self.fold.name}: the {self.scenario.engine} engine ended without a model; "
                "run again with --resume"
            )

    def _finish(self) -> None:
        """Score, keep the ledgers, and forget the devices."""
        scores, facts = self._score()
        facts["ledgers"] = {}
        for user in self.fold.train:
            ledger = self._opened(user).ledger
            checkpoint.replace_file(self._kept_ledger(user), ledger.lines)
            facts["ledgers"][user] = ledger.head
        if self.plan.user:
            sums = Ledger(self.folder / "server" / LEDGER, owner=OWNER, read_only=True)
            checkpoint.replace_file(self._kept_sums, sums.path.read_bytes())
            facts["sums"] = sums.head
        outcome.write(self.folder, facts, scores)
        self._home.remove()

    def _score(self) -> tuple[dict[str, Tensor], Json]:
        """Probabilities of all test users' clips, and the learning curve."""
        bundle = self.bundle()
        before, after, inputs, labels, clips, aside, sets = [], [], [], [], [], [], []
        coordinates: list[Tensor] = []
        for user in self.fold.test:
            split = self._split(user)
            chosen = [clip for clip in self.material.clips[user] if clip not in split.neutral]
            examples = self.material.examples(chosen)
            device = self._opened(user)
            if not device.vault.has("normaliser"):
                raise EngineError(
                    f"the device of {user} did not take the model, as the warnings say; go on with "
                    "--resume once it can"
                )
            mean = device.vault.get_tensors("normaliser")["mean"]
            logits, places = bundle.heard(examples.features, examples.frames, mean)
            calibrator = Calibrator(device.vault, model_hash=bundle.model_hash, prior=bundle.prior)
            before.append(logits)
            after.append(heads.apply(calibrator.head(), logits, places))
            coordinates += [] if places is None else [places]
            sets.append(_sets(bundle, calibrator, after[-1]))
            inputs.append((examples, mean))
            labels.append(examples.labels)
            clips += [clip.clip_id for clip in chosen]
            aside += [clip in split.labelled for clip in chosen]
        scores = {
            "before": torch.softmax(torch.cat(before).double(), 1),
            "after": torch.softmax(torch.cat(after).double(), 1),
            "labels": torch.cat(labels),
            "labelled": torch.tensor(aside),
        }
        if coordinates:
            scores[outcome.COORDINATES] = torch.cat(coordinates).float()
        found = [one for one in sets if one is not None]
        if found:
            inside = torch.cat(found)
            truth = scores["labels"][:, None]
            scores |= {"covered": inside.gather(1, truth)[:, 0], "sizes": inside.sum(1)}
        return scores, {"clips": clips, "curve": self._curve(bundle, inputs)}

    def _curve(
        self, bundle: Bundle, inputs: Sequence[tuple[Examples, Tensor]]
    ) -> list[tuple[int, float]]:
        """UAR on the test users after each round, for looking only: nothing is chosen by it."""
        ready = [
            (
                finish(
                    bundle.front.project(examples.features),
                    mean,
                    examples.frames,
                    length=bundle.front.length,
                ),
                examples.frames,
            )
            for examples, mean in inputs
        ]
        labels = torch.cat([examples.labels for examples, _ in inputs]).numpy()
        network, points = bundle.network(), []
        for number, weights in checkpoint.history(self.folder / "server"):
            load_flat(network, weights)
            with torch.no_grad():
                guesses = torch.cat([network(*batch).argmax(1) for batch in ready])
            matrix = metrics.confusion(labels, guesses.numpy(), len(self.plan.labels))
            points.append((number, float(metrics.uar(matrix))))
        return points

    def _outcome(self) -> Outcome:
        """The scores as they were kept."""
        facts, scores = outcome.read(self.folder)
        by_name = {
            clip.clip_id: clip for user in self.fold.test for clip in self.material.clips[user]
        }
        clips = [by_name[name] for name in facts["clips"]]
        rows = np.arange(len(clips))
        personal = None
        if self.scenario.head_clips:
            kept = rows[~scores["labelled"]]
            personal = self._scored(clips, scores, kept, after="after")
        return Outcome(
            everything=self._scored(clips, scores, rows, after="before"),
            personal=personal,
            curve=facts["curve"],
        )

    def _scored(
        self, clips: Sequence[Clip], scores: Mapping[str, np.ndarray], rows: np.ndarray, after: str
    ) -> Scored:
        """A table of some of the scores."""
        chosen = [clips[row] for row in rows]
        return Scored(
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
            **{name: scores[name][rows] for name in outcome.SETS if name in scores},
        )


def _sets(bundle: Bundle, calibrator: Calibrator, calibrated: Tensor) -> Tensor | None:
    """A user's prediction sets, (utterances, classes), bool; None where the model has none."""
    if bundle.prior.scores is None:
        return None
    limit = conformal.threshold(
        bundle.prior.scores, calibrator.scores(), coverage=conformal.COVERAGE
    )
    return conformal.sets(torch.softmax(calibrated.double(), 1), limit)


def introduce(devices: Sequence[Device]) -> None:
    """Tell devices whom they make secure sums with, as a directory of users would."""
    roster = {device.facts.user: crypto.identity_public(device.identity) for device in devices}
    for device in devices:
        device.pin(roster)


def _joined(parts: Sequence[Examples], material: Material) -> Examples:
    """Examples one behind the other; none at all keep their width."""
    if not parts:
        shape = next(iter(material.features.values())).shape
        empty = torch.zeros(0, dtype=torch.int64)
        return Examples(features=torch.zeros(0, *shape), frames=empty, labels=empty)
    return join(parts)
