"""A scenario: everything that decides a simulated run, as TOML.

What a user leaves out is settled here, once, from public facts alone; the settled scenario is
written to the run folder as ``config.toml`` and repeats the run.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sottovoce.server.planning.recipe import (
    FROZEN_ENCODER_MODELS,
    Recipe,
    default_recipe,
    default_rounds,
)
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.losses import CROSS_ENTROPY
from sottovoce.shared.privacy.scheme import PrivacyScheme
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.simulations.scenario.population import PopulationSettings
from sottovoce.simulations.scenario.settings import (
    DataSettings,
    EnrolmentSettings,
    RunSettings,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """Settings of one simulated run.

    Attributes:
        corpus: Name of the corpus of users.
        data: Its folder, or the options of ``synthetic``.
        protocol: Which speakers test which model; empty: the corpus's usual one.
        public: Corpora declared public, as (name, folder).
        encoder: Name of the feature extractor; empty: the recipe's usual one.
        unit: What is protected: ``utterance``, ``user``, ``both`` or ``none``.
        epsilon: Budget of every device's life, above 0; with ``both``, of each unit.
        delta: For one utterance, in (0, 1).
        user_delta: For one user, in (0, 1); well below one over the number of users.
        tuning_runs: How many runs like this one settings were chosen by, this one included, at
            least 1; all of them are charged for.
        secure: Whether sums over users are made by secure aggregation, so that nobody sees less
            than the noised sum.
        rounds: Rounds of training, at least 1; 0 takes the recipe's.
        enrolment: What a test user's normaliser is learned from: ``none``, ``neutral:K``, ``all``.
        labelled_clips_per_user: Labelled clips on which each test user's head is fitted; they are
            not scored in the comparison before and after heads.
        engine: What runs the apps.
        workers: Processes for features and clients.
        seed: Decides every draw.
        baselines: What to compare with.
        recipe: How the model is trained.
        population: A synthetic population, of which each round samples some users; None takes
            the speakers of the corpus, all of them, as users.
    """

    corpus: str
    data: str = ""
    protocol: str = ""
    public: tuple[tuple[str, str], ...] = ()
    encoder: str = ""
    unit: str = "utterance"
    epsilon: float = 8.0
    delta: float = 1e-5
    user_delta: float = 1e-3
    secure: bool = False
    tuning_runs: int = 1
    rounds: int = 0
    enrolment: str = "all"
    labelled_clips_per_user: int = 5
    engine: str = "local"
    workers: int = 1
    seed: int = 0
    baselines: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    population: PopulationSettings | None = None

    def __post_init__(self) -> None:
        self.privacy_scheme.check_bounds(self.recipe.bounds)
        self.privacy_scheme.check_loss(self.recipe.loss)
        self.privacy_target  # noqa: B018  (raises when it makes no sense)
        # Each raises when it makes no sense.
        _ = self.run_settings, self.data_settings
        _check_public(self)
        if self.privacy_scheme.promised and self.recipe.calibration_groups:
            raise SettingError(
                f"recipe.calibration_groups is {self.recipe.calibration_groups}; a budget pays "
                "for one model: set it to 0, or unit to none"
            )
        if self.population:
            _check_population(self, self.population)

    @property
    def enrolment_settings(self) -> EnrolmentSettings:
        """Enrolment settings of test users.

        Raises:
            SettingError: It makes no sense.
        """
        return EnrolmentSettings(
            enrolment=self.enrolment, labelled_clips_per_user=self.labelled_clips_per_user
        )

    @property
    def data_settings(self) -> DataSettings:
        """Which speech the run is made of.

        Raises:
            SettingError: The users' corpus is declared public, or enrolment makes no sense.
        """
        return DataSettings(
            corpus=self.corpus,
            folder=self.data,
            protocol=self.protocol,
            public=self.public,
            encoder=self.encoder,
            enrolment=self.enrolment_settings,
        )

    @property
    def run_settings(self) -> RunSettings:
        """How the run is carried out.

        Raises:
            SettingError: It makes no sense.
        """
        return RunSettings(
            rounds=self.rounds,
            seed=self.seed,
            engine=self.engine,
            workers=self.workers,
            baselines=self.baselines,
        )

    @property
    def privacy_scheme(self) -> PrivacyScheme:
        """Privacy scheme for the scenario's unit.

        Raises:
            SettingError: There is no such unit, or it has no secure sums.
        """
        return scheme_for(self.unit, secure=self.secure)

    @property
    def privacy_target(self) -> PrivacyTarget:
        """Privacy guarantee that the run aims for.

        Raises:
            SettingError: It makes no sense.
        """
        return PrivacyTarget(
            unit=self.unit,
            epsilon=self.epsilon,
            delta=self.delta,
            user_delta=self.user_delta,
            secure=self.secure,
            tuning_runs=self.tuning_runs,
            shares=self.recipe.shares,
        )

    def to_toml(self) -> str:
        """The scenario as a file that repeats the run."""
        import tomli_w

        record = asdict(self)
        record["public"] = [{"name": name, "data": data} for name, data in self.public]
        if self.recipe.loss == CROSS_ENTROPY:  # runs from before other losses keep their names
            del record["recipe"]["loss"]
        if self.population is None:  # TOML has no word for nothing
            del record["population"]
        return tomli_w.dumps(record)


def _check_public(scenario: Scenario) -> None:
    """The same folder cannot be public and private, whatever it is called."""
    if not scenario.data or scenario.corpus == "synthetic":
        return
    own = _folder(scenario.data)
    for name, data in scenario.public:
        if data and name != "synthetic" and _folder(data) == own:
            raise SettingError(f"{data} holds the users' corpus; it cannot be public as {name} too")


def _check_population(scenario: Scenario, population: PopulationSettings) -> None:
    """Refuse what cannot be simulated over a population, each with its way out."""
    if scenario.corpus != "synthetic":
        raise SettingError(
            f"a population is drawn from synthetic voices and corpus is {scenario.corpus!r}; it "
            "must be synthetic: other corpora's speakers are users themselves, without population"
        )
    if not scenario.privacy_scheme.allows_population or scenario.recipe.user.adaptive:
        raise SettingError(
            f"over a population unit is {scenario.unit!r}, secure {scenario.secure} and adaptive "
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
    if scenario.engine != "local" or scenario.baselines:
        raise SettingError(
            "over a population engine must be local, and there are no baselines: nobody could "
            "train on all of its users together"
        )
    budgets = scenario.privacy_scheme.sum_budgets(scenario.privacy_target)
    if not all(budget.delta * population.users < 1 for budget in budgets):
        raise SettingError(
            f"user_delta is {scenario.user_delta:g} and there are {population.users} users: one of "
            f"them might lose everything; it must be below {1 / population.users:g}, well below"
        )


def _folder(data: str) -> Path:
    """The folder of a corpus, whether the folder or the manifest in it was named."""
    path = Path(data).expanduser().resolve()
    return path.parent if path.suffix == ".csv" else path


def fill_defaults(scenario: Scenario, *, model: str | None = None) -> Scenario:
    """Fill in what was left out."""
    recipe = default_recipe(unit=scenario.unit, model=model)
    frozen = recipe.model in FROZEN_ENCODER_MODELS
    return replace(
        scenario,
        recipe=recipe,
        encoder=scenario.encoder or ("whisper-tiny-en" if frozen else "log-mel"),
        rounds=scenario.rounds or default_rounds(recipe, unit=scenario.unit),
    )
