"""A scenario: everything that decides a simulated run, as TOML.

What a user leaves out is settled here, once, from public facts alone; the settled scenario is
written to the run folder as ``config.toml`` and repeats the run.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.planning.public_pretraining import ProjectionSettings
from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.losses import CROSS_ENTROPY, Loss
from sottovoce.shared.models.spec import MODEL_KINDS, POOLINGS
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.simulations.scenario.population import PopulationSettings

UNITS = ("none", "utterance", "user", "both")
ENGINES = ("local", "ray")
BASELINES = ("central", "local_only", "federated_no_privacy")
MAX_EPSILON = 100.0
MAX_ROUNDS = 10_000
CLASS_EXPONENTS = {"inverse": 1.0, "root": 0.5, "none": 0.0}
FROZEN_ENCODER_MODELS = ("linear", "mlp")


@dataclass(frozen=True, kw_only=True, slots=True)
class UserLevelSettings:
    """How users are hidden in sums over them.

    Attributes:
        update_norm: L2 bound on a user's update in weights; where devices add noise of their own,
            on the sum of the user's clipped gradients.
        counts_norm: L2 bound on a user's label counts.
        centre_norm: L2 bound on a user's mean row; where devices add noise of their own, on the
            sum of the user's rows.
        counts_share: The label counts' share of the squared privacy budget.
        centre_share: The centre's share of it.
        calibration_norm: L2 bound on a user's mean head statistics; where devices add noise of
            their own, on the sum over the user's clips.
        user_sampling_rate: Probability that a user joins a round, in (0, 1]; 1 has everybody in
            every round.
        adaptive: Whether the update's clip norm is learned, from ``update_norm`` on.
        quantile: Share of the updates that it should leave whole, in (0, 1).
        dropout: Share of the devices that a secure sum must bear to lose, in [0, 1).
        corruption: Share of them that may side with the server, in [0, 1).
        min_separation: How many participation groups there are, at least 1; each user trains in
            every ``min_separation``-th round. 1 has everybody in every round.
        bands: Over how many rounds the noise of updates is correlated, at least 1 and at most
            ``min_separation``; 1 gives each round independent noise.
    """

    update_norm: float = 0.05
    counts_norm: float = 30.0
    centre_norm: float = 1.5
    counts_share: float = 0.05
    centre_share: float = 0.04
    calibration_norm: float = 0.4
    user_sampling_rate: float = 1.0
    adaptive: bool = False
    quantile: float = 0.5
    dropout: float = 0.1
    corruption: float = 0.1
    min_separation: int = 1
    bands: int = 1

    def __post_init__(self) -> None:
        validation.require_non_negative(dropout=self.dropout, corruption=self.corruption)
        validation.require_positive(
            update_norm=self.update_norm,
            counts_norm=self.counts_norm,
            centre_norm=self.centre_norm,
            calibration_norm=self.calibration_norm,
        )
        validation.require_between(0, 1, quantile=self.quantile)
        validation.require_rate(user_sampling_rate=self.user_sampling_rate)
        validation.require_between(
            0, 0.5, counts_share=self.counts_share, centre_share=self.centre_share
        )
        validation.require_at_least(1, min_separation=self.min_separation, bands=self.bands)
        # Raises where bands is larger.
        BandedNoise.from_square_root(bands=self.bands, min_separation=self.min_separation)
        if self.min_separation > 1 and (self.adaptive or self.user_sampling_rate < 1):
            raise SettingError(
                f"min_separation is {self.min_separation}, with adaptive {self.adaptive} and "
                f"user_sampling_rate {self.user_sampling_rate:g}; users in participation groups "
                "have a fixed clip norm and are not sampled: leave those out, or leave "
                "min_separation at 1"
            )

    @property
    def banded_noise(self) -> BandedNoise | None:
        """Participation groups and correlated noise; None where all train in each round."""
        if self.min_separation == 1:
            return None
        return BandedNoise.from_square_root(bands=self.bands, min_separation=self.min_separation)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How the model is trained.

    Attributes:
        model: Kind of the shared model.
        pooling: How frames become a vector, for heads on frame features.
        hidden: Width of hidden layers.
        dropout: Probability of dropping a number, in [0, 1).
        projection: How the public projection is fitted.
        warm_start: Whether training starts from a head fitted on public speech.
        bias_feature: The constant that the last layer's bias weighs.
        label_smoothing: Share of the target spread over all classes.
        loss: What training makes small, and the loss's own settings.
        pretraining_weight_decay: L2 penalty of that head.
        steps: Local steps a round.
        sample_rate: Probability that an utterance joins a step.
        learning_rate: Of a local step.
        momentum: Of local steps.
        class_weights: ``inverse``, ``root`` or ``none``: exponent on the (noised) class frequency.
        aggregation: How the server turns updates into a model.
        clip_norm: L2 bound on an utterance's gradient.
        centre: Whether devices release, noised, the mean of their projected rows.
        centre_radius: L2 bound on a row in that release.
        centre_share: Its share of the squared privacy budget.
        normaliser_radius: L2 bound on a row in the normaliser's release.
        normaliser_count: Weight of the count coordinate, as a share of the radius.
        normaliser_share: Its share of the squared privacy budget.
        count_noise: Standard deviation of the noise on label counts.
        calibration_share: Share of the squared privacy budget, of each unit, for the head
            statistics after the last round; 0 releases none.
        calibration_subtracted_share: Share of a device's own contributions to the weights that is
            subtracted before its head statistics are computed.
        calibration_groups: In how many groups users' head statistics come from models that were
            trained without them; 0 takes the final model. Only where nothing is promised.
        user: How users are hidden in sums.
    """

    model: str = "linear"
    pooling: str = "none"
    hidden: int = 128
    dropout: float = 0.0
    projection: ProjectionSettings = field(default_factory=ProjectionSettings)
    warm_start: bool = True
    bias_feature: float = 1.0
    label_smoothing: float = 0.0
    loss: Loss = CROSS_ENTROPY
    pretraining_weight_decay: float = 1e-3
    steps: int = 1
    sample_rate: float = 1.0
    learning_rate: float = 1.0
    momentum: float = 0.0
    class_weights: str = "inverse"
    aggregation: AggregationSettings = field(default_factory=AggregationSettings)
    clip_norm: float = 0.5
    centre: bool = True
    centre_radius: float = 1.5
    centre_share: float = 0.04
    normaliser_radius: float = 0.8
    normaliser_count: float = 0.3
    normaliser_share: float = 0.10
    count_noise: float = 10.0
    calibration_share: float = 0.0
    calibration_subtracted_share: float = 0.5
    calibration_groups: int = 0
    user: UserLevelSettings = field(default_factory=UserLevelSettings)

    def __post_init__(self) -> None:
        validation.require_one_of(MODEL_KINDS, model=self.model)
        validation.require_one_of(POOLINGS, pooling=self.pooling)
        validation.require_one_of(CLASS_EXPONENTS, class_weights=self.class_weights)
        self.loss.check_smoothing(self.label_smoothing)
        validation.require_positive(
            learning_rate=self.learning_rate,
            clip_norm=self.clip_norm,
            centre_radius=self.centre_radius,
            normaliser_radius=self.normaliser_radius,
            normaliser_count=self.normaliser_count,
            count_noise=self.count_noise,
        )
        validation.require_between(
            0, 1, centre_share=self.centre_share, normaliser_share=self.normaliser_share
        )
        validation.require_rate(sample_rate=self.sample_rate)
        validation.require_non_negative(
            calibration_subtracted_share=self.calibration_subtracted_share
        )
        validation.require_between(-1, 0.5, calibration_share=self.calibration_share)
        validation.require_at_least(1, steps=self.steps, hidden=self.hidden)
        validation.require_non_negative(
            pretraining_weight_decay=self.pretraining_weight_decay,
            dropout=self.dropout,
            calibration_share=self.calibration_share,
            calibration_groups=self.calibration_groups,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One simulated run.

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
        validation.require_one_of(UNITS, unit=self.unit)
        if self.secure and self.unit != "user":
            raise SettingError(
                f"secure is asked for with unit {self.unit!r}; secure sums hide users, so unit "
                "must be 'user'"
            )
        if self.recipe.user.min_separation > 1 and (self.secure or self.unit != "user"):
            raise SettingError(
                f"min_separation is {self.recipe.user.min_separation}, unit {self.unit!r}, secure "
                f"{self.secure}; participation groups need unit 'user' without secure sums: leave "
                "min_separation at 1"
            )
        if self.hides_utterances:
            self.recipe.loss.require_uncoupled()
        validation.require_one_of(ENGINES, engine=self.engine)
        validation.require_positive(epsilon=self.epsilon)
        if self.epsilon > MAX_EPSILON:
            raise SettingError(
                f"epsilon is {self.epsilon:g}; above {MAX_EPSILON:g} it promises nothing: "
                "say so with unit none"
            )
        validation.require_between(0, 1, delta=self.delta, user_delta=self.user_delta)
        validation.require_non_negative(
            rounds=self.rounds,
            labelled_clips_per_user=self.labelled_clips_per_user,
            seed=self.seed,
        )
        if self.rounds > MAX_ROUNDS:
            raise SettingError(f"rounds is {self.rounds}; it must be at most {MAX_ROUNDS}")
        validation.require_at_least(1, workers=self.workers, tuning_runs=self.tuning_runs)
        self.neutral_clips  # noqa: B018  (raises when the enrolment makes no sense)
        for name in self.baselines:
            validation.require_one_of(BASELINES, baselines=name)
        if (self.corpus, self.data) in self.public:
            raise SettingError(
                f"{self.corpus} is the users' corpus and declared public; one corpus cannot be both"
            )
        _check_public(self)
        if self.is_private and self.recipe.calibration_groups:
            raise SettingError(
                f"recipe.calibration_groups is {self.recipe.calibration_groups}; a budget pays "
                "for one model: set it to 0, or unit to none"
            )
        if self.population:
            _check_population(self, self.population)

    @property
    def neutral_clips(self) -> int | None:
        """K of ``neutral:K``; None for other enrolments.

        Raises:
            SettingError: The enrolment is none of the three.
        """
        if self.enrolment in ("none", "all"):
            return None
        kind, _, number = self.enrolment.partition(":")
        if kind != "neutral" or not number.isdigit() or int(number) < 1:
            raise SettingError(
                f"enrolment is {self.enrolment!r}; it must be none, all, or neutral:K with K from 1"
            )
        return int(number)

    @property
    def is_private(self) -> bool:
        """Whether an epsilon is promised."""
        return self.unit != "none"

    @property
    def hides_utterances(self) -> bool:
        """Whether what leaves a device hides any one utterance."""
        return self.unit in ("utterance", "both")

    @property
    def hides_users(self) -> bool:
        """Whether the sums over users hide any one user."""
        return self.unit in ("user", "both")

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
    if scenario.hides_utterances or scenario.secure or scenario.recipe.user.adaptive:
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
    if scenario.hides_users and not scenario.user_delta * population.users < 1:
        raise SettingError(
            f"user_delta is {scenario.user_delta:g} and there are {population.users} users: one of "
            f"them might lose everything; it must be below {1 / population.users:g}, well below"
        )


def _folder(data: str) -> Path:
    """The folder of a corpus, whether the folder or the manifest in it was named."""
    path = Path(data).expanduser().resolve()
    return path.parent if path.suffix == ".csv" else path


def default_recipe(*, unit: str, model: str | None) -> Recipe:
    """The usual recipe, from public facts alone; see docs/research/recipes.md."""
    if model is not None and model not in FROZEN_ENCODER_MODELS:
        return replace(END_TO_END_RECIPE, model=model)
    usual = _DEFAULT_RECIPES[unit]
    return replace(usual, model=model) if model else usual


UTTERANCE_RECIPE = Recipe(
    model="linear",
    projection=ProjectionSettings(dims=128, whitening=0.5, discriminant_weight=1.0, row_norm=1.0),
    bias_feature=0.3,
    clip_norm=0.5,
    calibration_share=0.04,
    aggregation=AggregationSettings(
        optimiser="average", learning_rate=62.5, max_weight_noise_std=0.75
    ),
)
UTTERANCE_ROUNDS = 16

USER_RECIPE = replace(
    UTTERANCE_RECIPE,
    aggregation=AggregationSettings(
        optimiser="average", learning_rate=200.0, max_weight_noise_std=0.65
    ),
)
USER_ROUNDS = 10

BOTH_RECIPE = replace(
    UTTERANCE_RECIPE,
    user=UserLevelSettings(update_norm=2.0, centre_norm=40.0, calibration_norm=20.0),
)

NON_PRIVATE_RECIPE = Recipe(
    model="mlp",
    dropout=0.5,
    projection=ProjectionSettings(dims=0, row_norm=16.0),
    warm_start=False,
    label_smoothing=0.1,
    calibration_share=0.04,
    calibration_subtracted_share=0.0,
    calibration_groups=3,
    aggregation=AggregationSettings(
        optimiser="adam",
        learning_rate=3e-3,
        momentum=0.9,
        second_moment_decay=0.999,
        schedule="cosine",
    ),
)
NON_PRIVATE_ROUNDS = 60

END_TO_END_RECIPE = Recipe(
    model="cnn-attention",
    hidden=96,
    projection=ProjectionSettings(dims=0, row_norm=0.0),
    centre=False,
    warm_start=False,
    steps=4,
    sample_rate=0.25,
    learning_rate=0.1,
    momentum=0.5,
    aggregation=AggregationSettings(learning_rate=1.0, momentum=0.8, schedule="cosine"),
)
END_TO_END_ROUNDS = 50

_DEFAULT_RECIPES = {
    "none": NON_PRIVATE_RECIPE,
    "utterance": UTTERANCE_RECIPE,
    "user": USER_RECIPE,
    "both": BOTH_RECIPE,
}
_DEFAULT_ROUNDS = {
    "none": NON_PRIVATE_ROUNDS,
    "utterance": UTTERANCE_ROUNDS,
    "user": USER_ROUNDS,
    "both": UTTERANCE_ROUNDS,
}


def fill_defaults(scenario: Scenario, *, model: str | None = None) -> Scenario:
    """Fill in what was left out."""
    recipe = default_recipe(unit=scenario.unit, model=model)
    frozen = recipe.model in FROZEN_ENCODER_MODELS
    rounds = _DEFAULT_ROUNDS[scenario.unit]
    return replace(
        scenario,
        recipe=recipe,
        encoder=scenario.encoder or ("whisper-tiny-en" if frozen else "log-mel"),
        rounds=scenario.rounds or (rounds if frozen else END_TO_END_ROUNDS),
    )
