"""A scenario: everything that decides a simulated run, composed of what each stage needs.

What a user leaves out is settled once, from public facts alone; the settled scenario is written to
the run folder as ``config.toml`` and repeats the run.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sottovoce.server.planning.recipe import (
    FROZEN_ENCODER_MODELS,
    Recipe,
    default_rounds,
)
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.losses import CROSS_ENTROPY
from sottovoce.shared.privacy.scheme import PrivacyScheme
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.protocol.local_training import NO_CURRICULUM
from sottovoce.shared.validation import format_value
from sottovoce.simulations.scenario.file_settings import PublicCorpusSettings, ScenarioSettings
from sottovoce.simulations.scenario.population import PopulationSettings
from sottovoce.simulations.scenario.settings import (
    BaselineSettings,
    DataSettings,
    EnrolmentSettings,
    PlanSettings,
    RunSettings,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """Settings of one simulated run, nothing of which is left open.

    Attributes:
        data: Corpora, protocol, features, and what test users bring.
        privacy: What is promised; its shares of the budget are the recipe's.
        recipe: How the model is trained.
        run: Rounds, seed, engine, workers and baselines.
        population: A synthetic population, of which each round samples some users; None takes
            the speakers of the corpus, all of them, as users.

    Raises:
        SettingError: Parts that do not go together.

    Example:
        >>> from sottovoce.simulations.scenario.loading import load_scenario
        >>> demo = load_scenario("demo")
        >>> demo.data.corpus, demo.privacy.epsilon, demo.run.rounds
        ('synthetic', 8.0, 12)
    """

    data: DataSettings
    privacy: PrivacyTarget
    recipe: Recipe
    run: RunSettings
    population: PopulationSettings | None = None

    def __post_init__(self) -> None:
        scheme = self.privacy_scheme
        scheme.check_bounds(self.recipe.bounds)
        scheme.check_loss(self.recipe.loss)
        if self.privacy.shares != self.recipe.shares:
            raise SettingError(
                f"privacy.shares is {self.privacy.shares} and recipe.shares {self.recipe.shares}; "
                "they must be the same: change both"
            )
        _check_public(self.data)
        if scheme.promised and self.recipe.calibration_groups:
            raise SettingError(
                f"recipe.calibration_groups is {self.recipe.calibration_groups}; a budget pays "
                "for one model: set it to 0, or unit to none"
            )
        if self.population:
            _check_population(self, self.population)

    @property
    def privacy_scheme(self) -> PrivacyScheme:
        """Privacy scheme for the scenario's unit.

        Raises:
            SettingError: There is no such unit, or it has no secure sums.
        """
        return scheme_for(self.privacy.unit, secure=self.privacy.secure)

    @property
    def plan_settings(self) -> PlanSettings:
        """Settings of the run's plan, before noise is added.

        Over a population devices are not asked for head statistics: nobody of it is asked again.
        """
        recipe = self.recipe
        if self.population:
            recipe = replace(recipe, shares=replace(recipe.shares, head_statistics=0.0))
        return PlanSettings(
            recipe=recipe,
            extractor=self.data.encoder,
            rounds=self.run.rounds,
            subtracts_user_mean=self.data.enrolment.subtracts_user_mean,
        )

    @property
    def baseline_settings(self) -> BaselineSettings:
        """Settings of the run's baselines: recipe, enrolment and seed."""
        return BaselineSettings(
            recipe=self.recipe, enrolment=self.data.enrolment, seed=self.run.seed
        )

    def to_settings(self) -> ScenarioSettings:
        """Spell the scenario as a file does; :func:`settle_scenario` reads it as this scenario.

        Example:
            >>> from sottovoce.simulations.scenario.loading import load_scenario
            >>> settle_scenario(load_scenario("demo").to_settings()) == load_scenario("demo")
            True
        """
        data, privacy, run = self.data, self.privacy, self.run
        return ScenarioSettings(
            corpus=data.corpus,
            data=data.folder,
            protocol=data.protocol,
            public=tuple(PublicCorpusSettings(name=name, data=at) for name, at in data.public),
            label_map=data.label_map,
            follow_links=data.follow_links,
            encoder=data.encoder,
            unit=privacy.unit,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            user_delta=privacy.user_delta,
            secure=privacy.secure,
            tuning_runs=privacy.tuning_runs,
            rounds=run.rounds,
            enrolment=data.enrolment.enrolment,
            labelled_clips_per_user=data.enrolment.labelled_clips_per_user,
            engine=run.engine,
            workers=run.workers,
            seed=run.seed,
            baselines=run.baselines,
            recipe=self.recipe,
            population=self.population,
        )

    def to_tables(self) -> dict[str, Any]:
        """The scenario as TOML's tables, such as a file that repeats the run holds."""
        record = asdict(self.to_settings())
        record["public"], record["baselines"] = list(record["public"]), list(record["baselines"])
        if self.recipe.loss == CROSS_ENTROPY:  # runs from before other losses keep their names
            del record["recipe"]["loss"]
        else:
            record["recipe"]["loss"] = self.recipe.loss.to_dict()
        if self.recipe.targets == "majority":  # likewise
            del record["recipe"]["targets"]
        if self.recipe.curriculum == NO_CURRICULUM:
            del record["recipe"]["curriculum"]
        for name in ("label_map", "follow_links"):  # likewise
            if not record[name]:
                del record[name]
        if self.population is None:  # TOML has no word for nothing
            del record["population"]
        return record

    def to_toml(self) -> str:
        """The scenario as a file that repeats the run."""
        import tomli_w

        return tomli_w.dumps(self.to_tables())


def settle_scenario(settings: ScenarioSettings) -> Scenario:
    """Compose a scenario of a file's settings, and fill in what they leave open.

    Args:
        settings: With the whole recipe; an empty encoder and 0 rounds take its usual ones.

    Raises:
        SettingError: Settings that make no sense, or do not go together.
    """
    recipe = settings.recipe
    frozen = recipe.model in FROZEN_ENCODER_MODELS
    return Scenario(
        data=DataSettings(
            corpus=settings.corpus,
            folder=settings.data,
            protocol=settings.protocol,
            public=tuple((corpus.name, corpus.data) for corpus in settings.public),
            encoder=settings.encoder or ("whisper-tiny-en" if frozen else "log-mel"),
            enrolment=EnrolmentSettings(
                enrolment=settings.enrolment,
                labelled_clips_per_user=settings.labelled_clips_per_user,
            ),
            label_map=settings.label_map,
            follow_links=settings.follow_links,
        ),
        privacy=PrivacyTarget(
            unit=settings.unit,
            epsilon=settings.epsilon,
            delta=settings.delta,
            user_delta=settings.user_delta,
            secure=settings.secure,
            tuning_runs=settings.tuning_runs,
            shares=recipe.shares,
        ),
        recipe=recipe,
        run=RunSettings(
            rounds=settings.rounds or default_rounds(recipe, unit=settings.unit),
            seed=settings.seed,
            engine=settings.engine,
            workers=settings.workers,
            baselines=settings.baselines,
        ),
        population=settings.population,
    )


def _check_public(data: DataSettings) -> None:
    """The same folder cannot be public and private, whatever it is called."""
    if not data.folder or data.corpus == "synthetic":
        return
    own = _folder(data.folder)
    for name, folder in data.public:
        if folder and name != "synthetic" and _folder(folder) == own:
            raise SettingError(
                f"{folder} holds the users' corpus; it cannot be public as {name} too"
            )


def _check_population(scenario: Scenario, population: PopulationSettings) -> None:
    """Refuse what cannot be simulated over a population, each with its way out."""
    privacy, corpus = scenario.privacy, scenario.data.corpus
    if corpus != "synthetic":
        raise SettingError(
            f"a population is drawn from synthetic voices and corpus is {corpus!r}; it "
            "must be synthetic: other corpora's speakers are users themselves, without population"
        )
    if not scenario.privacy_scheme.allows_population or scenario.recipe.user.adaptive:
        raise SettingError(
            f"over a population unit is {privacy.unit!r}, secure {privacy.secure} and adaptive "
            f"{scenario.recipe.user.adaptive}; it must be user or none, without secure and "
            "adaptive: cohorts are accounted for noise that the server adds within a fixed bound"
        )
    if scenario.recipe.user.min_separation > 1:
        raise SettingError(
            f"min_separation is {scenario.recipe.user.min_separation} over a population, whose "
            "users are sampled; leave min_separation at 1"
        )
    if scenario.recipe.user.user_sampling_rate not in (1.0, population.user_sampling_rate):
        raise SettingError(
            f"recipe.user.user_sampling_rate is {scenario.recipe.user.user_sampling_rate:g}; over "
            f"a population cohort / users decides, here {population.user_sampling_rate:g}: leave "
            "it out"
        )
    if scenario.run.engine != "local" or scenario.run.baselines:
        raise SettingError(
            "over a population engine must be local, and there are no baselines: nobody could "
            "train on all of its users together"
        )
    budgets = scenario.privacy_scheme.sum_budgets(scenario.privacy)
    if not all(budget.delta * population.users < 1 for budget in budgets):
        raise SettingError(
            f"user_delta is {privacy.user_delta:g} and there are {population.users} users: one of "
            f"them might lose everything; it must be below {1 / population.users:g}, well below"
        )


def _folder(data: str) -> Path:
    """The folder of a corpus, whether the folder or the manifest in it was named."""
    try:
        path = Path(data).expanduser().resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a link to itself, no home
        raise SettingError(f"{format_value(data)} is no path: {error}") from error
    return path.parent if path.suffix == ".csv" else path
