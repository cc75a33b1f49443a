"""A scenario: everything that decides a simulated run, as TOML.

What a user leaves out is settled here, once, from public facts alone; the settled scenario is
written to the run folder as ``config.toml`` and repeats the run.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sottovoce.server.public import FrontSettings
from sottovoce.server.round import Aggregation
from sottovoce.shared import check
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.loss import CROSS_ENTROPY, Loss
from sottovoce.shared.models.spec import KINDS, POOLINGS
from sottovoce.shared.privacy.bands import Bands
from sottovoce.simulations.population.settings import PopulationSettings

UNITS = ("none", "utterance", "user", "both")
ENGINES = ("local", "ray")
BASELINES = ("central", "local_only", "federated_no_privacy")
MOST_EPSILON = 100.0
MOST_ROUNDS = 10_000
CLASS_EXPONENTS = {"inverse": 1.0, "root": 0.5, "none": 0.0}
HEADS_ON_FROZEN = ("linear", "mlp")


@dataclass(frozen=True, kw_only=True, slots=True)
class UserSettings:
    """How users are hidden in sums over them.

    Attributes:
        update_norm: L2 bound on a user's update in weights; where devices add noise of their own,
            on the sum of the user's clipped gradients.
        counts_norm: L2 bound on a user's label counts.
        centre_norm: L2 bound on a user's mean row; where devices add noise of their own, on the
            sum of the user's rows.
        counts_share: The label counts' share of the squared privacy budget.
        centre_share: The centre's share of it.
        calibration_norm: L2 bound on a user's mean answer to what is asked of calibration; where
            devices add noise of their own, on the sum over the user's clips.
        cohort_rate: Chance that a user joins a round, in (0, 1]; 1 has everybody in every round.
        adaptive: Whether the update's clip norm is learned, from ``update_norm`` on.
        quantile: Share of the updates that it should leave whole, in (0, 1).
        dropout: Share of the devices that a secure sum must bear to lose, in [0, 1).
        corruption: Share of them that may side with the server, in [0, 1).
        spacing: In how many groups users take turns, at least 1; each user trains in every
            ``spacing``-th round. 1 has everybody in every round.
        bands: Over how many rounds the noise of updates hangs together, at least 1 and at most
            ``spacing``; 1 gives each round its own.
    """

    update_norm: float = 0.05
    counts_norm: float = 30.0
    centre_norm: float = 1.5
    counts_share: float = 0.05
    centre_share: float = 0.04
    calibration_norm: float = 0.4
    cohort_rate: float = 1.0
    adaptive: bool = False
    quantile: float = 0.5
    dropout: float = 0.1
    corruption: float = 0.1
    spacing: int = 1
    bands: int = 1

    def __post_init__(self) -> None:
        check.not_negative(dropout=self.dropout, corruption=self.corruption)
        check.positive(
            update_norm=self.update_norm,
            counts_norm=self.counts_norm,
            centre_norm=self.centre_norm,
            calibration_norm=self.calibration_norm,
        )
        check.inside(0, 1, quantile=self.quantile)
        check.rate(cohort_rate=self.cohort_rate)
        check.inside(0, 0.5, counts_share=self.counts_share, centre_share=self.centre_share)
        check.at_least(1, spacing=self.spacing, bands=self.bands)
        Bands.square_root(bands=self.bands, spacing=self.spacing)  # raises where bands is larger
        if self.spacing > 1 and (self.adaptive or self.cohort_rate < 1):
            raise SettingError(
                f"spacing is {self.spacing}, with adaptive {self.adaptive} and cohort_rate "
                f"{self.cohort_rate:g}; users who take turns have a fixed clip norm and no coin: "
                "leave those out, or spacing at 1"
            )

    @property
    def turns(self) -> Bands | None:
        """How users take turns and noise hangs together; None where all train in each round."""
        if self.spacing == 1:
            return None
        return Bands.square_root(bands=self.bands, spacing=self.spacing)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How the model is trained.

    Attributes:
        model: Kind of the shared model.
        pooling: How frames become a vector, for heads on frame features.
        hidden: Width of hidden layers.
        dropout: Chance of dropping a number, in [0, 1).
        front: How the public front is fitted.
        warm_start: Whether training starts from a head fitted on public speech.
        bias_feature: The constant that the last layer's bias weighs.
        label_smoothing: Share of the target spread over all classes.
        loss: What training makes small, and the loss's own settings.
        warm_decay: L2 penalty of that head.
        steps: Local steps a round.
        sample_rate: Chance that an utterance joins a step.
        learning_rate: Of a local step.
        momentum: Of local steps.
        class_weights: ``inverse``, ``root`` or ``none``: exponent on the (noised) class frequency.
        aggregation: How the server turns updates into a model.
        clip_norm: L2 bound on an utterance's gradient.
        centre: Whether devices tell, noised, where their voices lie in front space.
        centre_radius: L2 bound on a row in that release.
        centre_share: Its share of the squared privacy budget.
        normaliser_radius: L2 bound on a row in the normaliser's release.
        normaliser_count: Weight of the count coordinate, as a share of the radius.
        normaliser_share: Its share of the squared privacy budget.
        count_noise: Standard deviation of the noise on label counts.
        calibration_share: Share of the squared privacy budget, of each unit, for what devices tell
            of heads and scores after the last round; 0 asks nothing.
        calibration_taken_back: Share of a device's own contributions to the weights that is taken
            off before its clips are judged.
        calibration_groups: In how many groups users are judged by models that were trained
            without them; 0 judges by the final model. Only where nothing is promised.
        user: How users are hidden in sums.
    """

    model: str = "linear"
    pooling: str = "none"
    hidden: int = 128
    dropout: float = 0.0
    front: FrontSettings = field(default_factory=FrontSettings)
    warm_start: bool = True
    bias_feature: float = 1.0
    label_smoothing: float = 0.0
    loss: Loss = CROSS_ENTROPY
    warm_decay: float = 1e-3
    steps: int = 1
    sample_rate: float = 1.0
    learning_rate: float = 1.0
    momentum: float = 0.0
    class_weights: str = "inverse"
    aggregation: Aggregation = field(default_factory=Aggregation)
    clip_norm: float = 0.5
    centre: bool = True
    centre_radius: float = 1.5
    centre_share: float = 0.04
    normaliser_radius: float = 0.8
    normaliser_count: float = 0.3
    normaliser_share: float = 0.10
    count_noise: float = 10.0
    calibration_share: float = 0.0
    calibration_taken_back: float = 0.5
    calibration_groups: int = 0
    user: UserSettings = field(default_factory=UserSettings)

    def __post_init__(self) -> None:
        check.one_of(KINDS, model=self.model)
        check.one_of(POOLINGS, pooling=self.pooling)
        check.one_of(CLASS_EXPONENTS, class_weights=self.class_weights)
        self.loss.check_smoothing(self.label_smoothing)
        check.positive(
            learning_rate=self.learning_rate,
            clip_norm=self.clip_norm,
            centre_radius=self.centre_radius,
            normaliser_radius=self.normaliser_radius,
            normaliser_count=self.normaliser_count,
            count_noise=self.count_noise,
        )
        check.inside(0, 1, centre_share=self.centre_share, normaliser_share=self.normaliser_share)
        check.rate(sample_rate=self.sample_rate)
        check.not_negative(calibration_taken_back=self.calibration_taken_back)
        check.inside(-1, 0.5, calibration_share=self.calibration_share)
        check.at_least(1, steps=self.steps, hidden=self.hidden)
        check.not_negative(
            warm_decay=self.warm_decay,
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
        tuned_over: How many runs like this one settings were chosen by, this one included, at
            least 1; all of them are charged for.
        secure: Whether sums over users are made by secure aggregation, so that nobody sees less
            than the noised sum.
        rounds: Rounds of training, at least 1; 0 takes the recipe's.
        enrolment: What a test user's normaliser is learned from: ``none``, ``neutral:K``, ``all``.
        head_clips: Labelled clips on which each test user's head is fitted; they are not scored
            in the comparison before and after heads.
        engine: What runs the apps.
        workers: Processes for features and clients.
        seed: Decides every draw.
        baselines: What to compare with.
        recipe: How the model is trained.
        population: A crowd of made-up users, of whom each round draws some; None takes the
            speakers of the corpus, all of them, as users.
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
    tuned_over: int = 1
    rounds: int = 0
    enrolment: str = "all"
    head_clips: int = 5
    engine: str = "local"
    workers: int = 1
    seed: int = 0
    baselines: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    population: PopulationSettings | None = None

    def __post_init__(self) -> None:
        check.one_of(UNITS, unit=self.unit)
        if self.secure and self.unit != "user":
            raise SettingError(
                f"secure is asked for with unit {self.unit!r}; secure sums hide users, so unit "
                "must be 'user'"
            )
        if self.recipe.user.spacing > 1 and (self.secure or self.unit != "user"):
            raise SettingError(
                f"spacing is {self.recipe.user.spacing}, unit {self.unit!r}, secure {self.secure}; "
                "users take turns only with unit 'user' and without secure sums: leave spacing at 1"
            )
        if self.hides_utterances:
            self.recipe.loss.check_alone()
        check.one_of(ENGINES, engine=self.engine)
        check.positive(epsilon=self.epsilon)
        if self.epsilon > MOST_EPSILON:
            raise SettingError(
                f"epsilon is {self.epsilon:g}; above {MOST_EPSILON:g} it promises nothing: "
                "say so with unit none"
            )
        check.inside(0, 1, delta=self.delta, user_delta=self.user_delta)
        check.not_negative(rounds=self.rounds, head_clips=self.head_clips, seed=self.seed)
        if self.rounds > MOST_ROUNDS:
            raise SettingError(f"rounds is {self.rounds}; it must be at most {MOST_ROUNDS}")
        check.at_least(1, workers=self.workers, tuned_over=self.tuned_over)
        self.neutral_clips  # noqa: B018  (raises when the enrolment makes no sense)
        for name in self.baselines:
            check.one_of(BASELINES, baselines=name)
        if (self.corpus, self.data) in self.public:
            raise SettingError(
                f"{self.corpus} is the users' corpus and declared public; one corpus cannot be both"
            )
        _check_public(self)
        if self.private and self.recipe.calibration_groups:
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
    def private(self) -> bool:
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
    """Refuse what cannot be kept over a crowd, each with its way out."""
    if scenario.corpus != "synthetic":
        raise SettingError(
            f"a population is drawn from made-up voices and corpus is {scenario.corpus!r}; it must "
            "be synthetic: other corpora's speakers are users themselves, without population"
        )
    if scenario.hides_utterances or scenario.secure or scenario.recipe.user.adaptive:
        raise SettingError(
            f"over a population unit is {scenario.unit!r}, secure {scenario.secure} and adaptive "
            f"{scenario.recipe.user.adaptive}; it must be user or none, without secure and "
            "adaptive: cohorts are priced for noise that the server adds within a fixed bound"
        )
    if scenario.recipe.user.spacing > 1:
        raise SettingError(
            f"spacing is {scenario.recipe.user.spacing} over a population, whose users join by a "
            "coin; leave spacing at 1"
        )
    if scenario.recipe.user.cohort_rate not in (1.0, population.rate):
        raise SettingError(
            f"recipe.user.cohort_rate is {scenario.recipe.user.cohort_rate:g}; over a population "
            f"cohort / users decides, here {population.rate:g}: leave it out"
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
    """Where a corpus lies, whether its folder or the manifest in it was named."""
    path = Path(data).expanduser().resolve()
    return path.parent if path.suffix == ".csv" else path


def recipe_for(*, unit: str, model: str | None) -> Recipe:
    """The usual recipe, from public facts alone; see docs/recipes.md for how it was chosen."""
    if model is not None and model not in HEADS_ON_FROZEN:
        return replace(END_TO_END, model=model)
    usual = _USUAL[unit]
    return replace(usual, model=model) if model else usual


PRIVATE = Recipe(
    model="linear",
    front=FrontSettings(dims=128, whitening=0.5, emphasis=1.0, length=1.0),
    bias_feature=0.3,
    clip_norm=0.5,
    calibration_share=0.04,
    aggregation=Aggregation(optimiser="average", learning_rate=62.5, weight_noise=0.75),
)
PRIVATE_ROUNDS = 16

USER = replace(
    PRIVATE,
    aggregation=Aggregation(optimiser="average", learning_rate=200.0, weight_noise=0.65),
)
USER_ROUNDS = 10

BOTH = replace(PRIVATE, user=UserSettings(update_norm=2.0, centre_norm=40.0, calibration_norm=20.0))

OPEN = Recipe(
    model="mlp",
    dropout=0.5,
    front=FrontSettings(dims=0, length=16.0),
    warm_start=False,
    label_smoothing=0.1,
    calibration_share=0.04,
    calibration_taken_back=0.0,
    calibration_groups=3,
    aggregation=Aggregation(
        optimiser="adam", learning_rate=3e-3, momentum=0.9, second_moment=0.999, schedule="cosine"
    ),
)
OPEN_ROUNDS = 60

END_TO_END = Recipe(
    model="cnn-attention",
    hidden=96,
    front=FrontSettings(dims=0, length=0.0),
    centre=False,
    warm_start=False,
    steps=4,
    sample_rate=0.25,
    learning_rate=0.1,
    momentum=0.5,
    aggregation=Aggregation(learning_rate=1.0, momentum=0.8, schedule="cosine"),
)
END_TO_END_ROUNDS = 50

_USUAL = {"none": OPEN, "utterance": PRIVATE, "user": USER, "both": BOTH}
_ROUNDS = {
    "none": OPEN_ROUNDS,
    "utterance": PRIVATE_ROUNDS,
    "user": USER_ROUNDS,
    "both": PRIVATE_ROUNDS,
}


def settle(scenario: Scenario, *, model: str | None = None) -> Scenario:
    """Fill in what was left out."""
    recipe = recipe_for(unit=scenario.unit, model=model)
    frozen = recipe.model in HEADS_ON_FROZEN
    rounds = _ROUNDS[scenario.unit]
    return replace(
        scenario,
        recipe=recipe,
        encoder=scenario.encoder or ("whisper-tiny-en" if frozen else "log-mel"),
        rounds=scenario.rounds or (rounds if frozen else END_TO_END_ROUNDS),
    )
