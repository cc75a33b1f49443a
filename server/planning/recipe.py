"""Recipes: how the shared model is trained, and the usual one for each privacy unit.

A recipe holds bounds, shares of the privacy budget and settings of training, all public; what is
promised is a :class:`PrivacyTarget`. ``docs/research/recipes.md`` has how recipes were chosen.
"""

from dataclasses import dataclass, field, replace

from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.planning.public_pretraining import ProjectionSettings
from sottovoce.shared import validation
from sottovoce.shared.models.losses import CROSS_ENTROPY, Loss
from sottovoce.shared.models.spec import MODEL_KINDS, POOLINGS
from sottovoce.shared.privacy.bounds import PrivacyBounds, UserLevelSettings
from sottovoce.shared.privacy.target import BudgetShares
from sottovoce.shared.protocol.local_training import (
    MIN_SAMPLE_RATE,
    NO_CURRICULUM,
    TARGETS,
    Curriculum,
)
from sottovoce.shared.validation import MAX_FACTOR, MIN_FACTOR

CLASS_EXPONENTS = {"inverse": 1.0, "root": 0.5, "none": 0.0}
FROZEN_ENCODER_MODELS = ("linear", "mlp")
MAX_HIDDEN = 4096
MAX_STEPS = 10_000
MAX_GROUPS = 100
"""Largest width of a hidden layer, number of local steps, and of groups for cross-fitting."""


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
        targets: ``majority`` trains towards labels, ``soft`` towards the shares of the raters'
            votes where a clip has several; counts, heads and figures go by the majority always.
        curriculum: Which utterances count less in early rounds.
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
        normaliser_radius: L2 bound on a row in the normaliser's release.
        normaliser_count: Weight of the count coordinate, as a share of the radius.
        count_noise: Standard deviation of the noise on label counts.
        calibration_subtracted_share: Share of a device's own contributions to the weights that is
            subtracted before its head statistics are computed.
        calibration_groups: In how many groups users' head statistics come from models that were
            trained without them; 0 takes the final model. Only where nothing is promised.
        shares: How the squared privacy budget is divided among releases; ``head_statistics`` of 0
            asks devices for none after the last round, with or without privacy.
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
    targets: str = "majority"
    curriculum: Curriculum = NO_CURRICULUM
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
    normaliser_radius: float = 0.8
    normaliser_count: float = 0.3
    count_noise: float = 10.0
    calibration_subtracted_share: float = 0.5
    calibration_groups: int = 0
    shares: BudgetShares = field(default_factory=BudgetShares)
    user: UserLevelSettings = field(default_factory=UserLevelSettings)

    def __post_init__(self) -> None:
        validation.require_one_of(MODEL_KINDS, model=self.model)
        validation.require_one_of(POOLINGS, pooling=self.pooling)
        validation.require_one_of(CLASS_EXPONENTS, class_weights=self.class_weights)
        validation.require_one_of(TARGETS, targets=self.targets)
        self._check_numbers()
        self.loss.check_smoothing(self.label_smoothing)
        self.curriculum.check_loss(self.loss)
        self.bounds  # noqa: B018  (raises where one is not above 0)

    def _check_numbers(self) -> None:
        """Refuse numbers that are none, or that would exhaust memory, time or floats."""
        validation.require_count(1, MAX_HIDDEN, hidden=self.hidden)
        validation.require_count(1, MAX_STEPS, steps=self.steps)
        validation.require_count(0, MAX_GROUPS, calibration_groups=self.calibration_groups)
        validation.require_range(MIN_SAMPLE_RATE, 1, sample_rate=self.sample_rate)
        validation.require_fraction(
            dropout=self.dropout, momentum=self.momentum, label_smoothing=self.label_smoothing
        )
        validation.require_range(
            0, 1, calibration_subtracted_share=self.calibration_subtracted_share
        )
        validation.require_range(
            0, MAX_FACTOR, pretraining_weight_decay=self.pretraining_weight_decay
        )
        validation.require_range(
            MIN_FACTOR, MAX_FACTOR, learning_rate=self.learning_rate, bias_feature=self.bias_feature
        )

    @property
    def bounds(self) -> PrivacyBounds:
        """Bounds on the contributions of one utterance and one user, to which noise is scaled."""
        return PrivacyBounds(
            clip_norm=self.clip_norm,
            centre_radius=self.centre_radius,
            normaliser_radius=self.normaliser_radius,
            normaliser_count=self.normaliser_count,
            count_noise=self.count_noise,
            user=self.user,
        )

    @property
    def reads_votes(self) -> bool:
        """Whether training looks at the votes of raters, and not at labels alone."""
        return self.targets == "soft" or self.curriculum.kind == "agreement"

    @property
    def reads_frames(self) -> bool:
        """Whether the model reads frames, rather than one vector an utterance."""
        return self.model not in FROZEN_ENCODER_MODELS or self.pooling != "none"


def default_recipe(*, unit: str, model: str | None = None, secure: bool = False) -> Recipe:
    """The usual recipe, from public facts alone; see docs/research/recipes.md.

    Args:
        unit: Name of the privacy unit; one that no recipe was chosen for takes the user's.
        model: Kind of the shared model; None takes the usual one.
        secure: Whether sums are secure, which the recipe of an utterance depends on.

    Example:
        >>> default_recipe(unit="user").aggregation.learning_rate
        200.0
    """
    secured = _SECURE_RECIPES.get(unit) if secure else None
    if model is not None and model not in FROZEN_ENCODER_MODELS:
        end_to_end = SECURE_END_TO_END_RECIPE if secured else END_TO_END_RECIPE
        return replace(end_to_end, model=model)
    usual = secured or _DEFAULT_RECIPES.get(unit, USER_RECIPE)
    return replace(usual, model=model) if model else usual


def default_rounds(recipe: Recipe, *, unit: str) -> int:
    """The usual number of rounds.

    Example:
        >>> default_rounds(USER_RECIPE, unit="user")
        10
    """
    if recipe.model not in FROZEN_ENCODER_MODELS:
        return END_TO_END_ROUNDS
    return _DEFAULT_ROUNDS.get(unit, USER_ROUNDS)


UTTERANCE_RECIPE = Recipe(
    model="linear",
    projection=ProjectionSettings(dims=128, whitening=0.5, discriminant_weight=1.0, row_norm=1.0),
    bias_feature=0.3,
    clip_norm=0.5,
    shares=BudgetShares(head_statistics=0.04),
    aggregation=AggregationSettings(
        optimiser="average", learning_rate=62.5, max_weight_noise_std=0.75
    ),
)
UTTERANCE_ROUNDS = 16

SECURE_UTTERANCE_RECIPE = replace(
    UTTERANCE_RECIPE,
    projection=replace(UTTERANCE_RECIPE.projection, dims=256),
    calibration_subtracted_share=0.0,
    aggregation=replace(UTTERANCE_RECIPE.aggregation, learning_rate=300.0),
)
"""Less noise bears more inputs and larger rates, by the number of clips: above 300 rounds swing up
and down in place of getting better. Devices cannot take back noise that is in the sums: they never
learn their own noised contribution."""

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

SECURE_BOTH_RECIPE = replace(BOTH_RECIPE, calibration_subtracted_share=0.0)

NON_PRIVATE_RECIPE = Recipe(
    model="mlp",
    dropout=0.5,
    projection=ProjectionSettings(dims=0, row_norm=16.0),
    warm_start=False,
    label_smoothing=0.1,
    shares=BudgetShares(head_statistics=0.04),
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

SECURE_END_TO_END_RECIPE = replace(END_TO_END_RECIPE, steps=1, learning_rate=0.4)
"""One step a round, for each is noised in its sum, as long as four."""

_DEFAULT_RECIPES = {
    "none": NON_PRIVATE_RECIPE,
    "utterance": UTTERANCE_RECIPE,
    "user": USER_RECIPE,
    "both": BOTH_RECIPE,
}
_SECURE_RECIPES = {"utterance": SECURE_UTTERANCE_RECIPE, "both": SECURE_BOTH_RECIPE}
_DEFAULT_ROUNDS = {
    "none": NON_PRIVATE_ROUNDS,
    "utterance": UTTERANCE_ROUNDS,
    "user": USER_ROUNDS,
    "both": UTTERANCE_ROUNDS,
}
