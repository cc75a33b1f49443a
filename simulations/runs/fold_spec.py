"""What one fold of a run is made of: who trains and tests, by which plan, on what inputs."""

from dataclasses import dataclass
from pathlib import Path

from sottovoce.server.federation.cohort_sampling import CohortSampler
from sottovoce.server.federation.training_job import Job
from sottovoce.server.planning import noise_calibration
from sottovoce.server.planning.recipe import CLASS_EXPONENTS, Recipe
from sottovoce.shared import seeding
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.corpora.speaker_splits import EnrolmentSplit, Fold, split_enrolment
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.scenario.settings import EnrolmentSettings, RunSettings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FoldSpec:
    """One fold, as it is to be run.

    Attributes:
        folder: Where its server and devices live.
        ledgers: Where its ledgers are archived.
        fold: Who trains and who tests.
        plan: The plan of this fold.
        recipe: How the model is trained.
        target: What is promised.
        enrolment: What test users bring.
        settings: Seed, engine and workers.
        inputs: What all folds share.
    """

    folder: Path
    ledgers: Path
    fold: Fold
    plan: Plan
    recipe: Recipe
    target: PrivacyTarget
    enrolment: EnrolmentSettings
    settings: RunSettings
    inputs: FoldInputs

    @property
    def server_folder(self) -> Path:
        """Where the server's job, models and ledger are."""
        return self.folder / "server"

    @property
    def seed(self) -> int:
        """Decides what server and devices draw."""
        return seeding.derive_fold_seed(self.settings.seed, self.fold.name)

    @property
    def speakers(self) -> list[str]:
        """All users, by the index of their device."""
        return [*self.fold.train, *self.fold.test]

    def split_clips(self, user: str) -> EnrolmentSplit:
        """Split a test user's clips by their use.

        Args:
            user: Name of a test user.
        """
        return split_enrolment(
            self.inputs.clips[user],
            neutral=self.enrolment.neutral_clips or 0,
            labelled=self.enrolment.labelled_clips_per_user,
            seed=seeding.derive_seed(self.settings.seed, "enrolment"),
        )

    def make_job(
        self, *, devices: int, quorum: float, cohort_sampler: CohortSampler | None = None
    ) -> Job:
        """Make the server's job.

        Args:
            devices: How many devices there are.
            quorum: Share of them that must answer, in (0, 1].
            cohort_sampler: How rounds are drawn of a population; None asks all devices.
        """
        return Job(
            plan=self.plan,
            aggregation=self.recipe.aggregation,
            weights=self.inputs.initial_weights,
            projection=self.inputs.projection,
            speaker_statistics=self.inputs.speaker_statistics,
            devices=devices,
            quorum=quorum,
            class_exponent=CLASS_EXPONENTS[self.recipe.class_weights],
            budgets=noise_calibration.server_budgets(self.target),
            simulated_seed=self.seed,
            held_out_path=self.inputs.held_out_file,
            calibration_groups=(self.recipe.calibration_groups if self.plan.calibration else 0),
            cohort_sampler=cohort_sampler,
        )
