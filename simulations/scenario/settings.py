"""Parts of a scenario: data, enrolment, plan and run settings.

A file is flat, as users type it; a scenario is composed of these, a recipe and a privacy target, so
that a stage's signature says what decides its result.
"""

import re
from dataclasses import dataclass

from sottovoce.server.planning.recipe import Recipe
from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError

ENGINES = ("local", "ray")
BASELINES = ("central", "local_only", "federated_no_privacy")
MAX_WORKERS = 1024
MAX_ENROLMENT_CLIPS = 10_000
"""Most labelled, or neutral, clips that a test user brings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrolmentSettings:
    """Settings of test users' enrolment and personal heads.

    Attributes:
        enrolment: What a user's normaliser is learned from: ``none``, ``neutral:K``, ``all``.
        labelled_clips_per_user: Labelled clips on which each user's head is fitted, 0 or above.

    Example:
        >>> EnrolmentSettings(enrolment="neutral:3").neutral_clips
        3
    """

    enrolment: str = "all"
    labelled_clips_per_user: int = 5

    def __post_init__(self) -> None:
        validation.require_count(
            0, MAX_ENROLMENT_CLIPS, labelled_clips_per_user=self.labelled_clips_per_user
        )
        self.neutral_clips  # noqa: B018  (raises when the enrolment makes no sense)

    @property
    def subtracts_user_mean(self) -> bool:
        """Whether training subtracts each user's own mean: test users enrol with all their clips.

        Example:
            >>> EnrolmentSettings(enrolment="none").subtracts_user_mean
            False
        """
        return self.enrolment == "all"

    @property
    def neutral_clips(self) -> int | None:
        """K of ``neutral:K``; None for other enrolments.

        Raises:
            SettingError: The enrolment is none of the three.
        """
        if self.enrolment in ("none", "all"):
            return None
        # Not str.isdigit: it takes digits that int does not, such as a superscript.
        found = re.fullmatch(r"neutral:([1-9][0-9]{0,8})", str(self.enrolment))
        if not found:
            known = ("none", "all", "neutral:5")
            raise SettingError(
                f"enrolment is {validation.format_value(self.enrolment)}"
                f"{validation.suggest_name(self.enrolment, known)}; it must be none, all, or "
                f"neutral:K with K from 1 to {MAX_ENROLMENT_CLIPS:,}"
            )
        validation.require_count(1, MAX_ENROLMENT_CLIPS, **{"K of neutral:K": int(found[1])})
        return int(found[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """Choice of a run's corpora, protocol, features and enrolment.

    Attributes:
        corpus: Name of the corpus of users.
        folder: Its folder, or the options of ``synthetic``.
        protocol: Which speakers test which model; empty: the corpus's usual one.
        public: Corpora declared public, as (name, folder).
        encoder: Name of the feature extractor.
        enrolment: What test users bring.
        label_map: A user's own label map, by file or name; empty: the folder's own.
        follow_links: Whether paths of a manifest may lead out of its folder through links.
    """

    corpus: str
    folder: str = ""
    protocol: str = ""
    public: tuple[tuple[str, str], ...] = ()
    encoder: str = ""
    enrolment: EnrolmentSettings = EnrolmentSettings()
    label_map: str = ""
    follow_links: bool = False

    def __post_init__(self) -> None:
        if (self.corpus, self.folder) in self.public:
            raise SettingError(
                f"{self.corpus} is the users' corpus and declared public; one corpus cannot be both"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSettings:
    """Settings of a run's plan, before noise is added.

    Attributes:
        recipe: How the model is trained; its share for head statistics says whether they are asked.
        extractor: Name of the feature extractor.
        rounds: Rounds of training, at least 1.
        subtracts_user_mean: Whether training subtracts the user's own mean.
    """

    recipe: Recipe
    extractor: str
    rounds: int
    subtracts_user_mean: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineSettings:
    """How baselines are trained: as the run is, but for its privacy.

    Attributes:
        recipe: How the model is trained.
        enrolment: What test users bring; with ``none`` no user's mean is subtracted.
        seed: The run's seed.
    """

    recipe: Recipe
    enrolment: EnrolmentSettings
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """How a run is carried out.

    Attributes:
        rounds: Rounds of training, at least 1.
        seed: Decides every draw, 0 or above.
        engine: What runs the apps.
        workers: Processes for features and clients, at least 1.
        baselines: What to compare with.
    """

    rounds: int
    seed: int = 0
    engine: str = "local"
    workers: int = 1
    baselines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validation.require_one_of(ENGINES, engine=self.engine)
        try:
            validation.require_count(1, validation.MAX_ROUNDS, rounds=self.rounds)
        except SettingError as error:
            raise SettingError(f"{error}; leave it out, or at 0, for the usual number") from error
        validation.require_count(0, validation.MAX_SEED, seed=self.seed)
        validation.require_count(1, MAX_WORKERS, workers=self.workers)
        for name in self.baselines:
            validation.require_one_of(BASELINES, baselines=name)
