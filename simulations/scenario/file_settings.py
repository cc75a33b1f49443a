"""Settings of a scenario as its file spells them: flat, and with nothing settled yet.

A scenario is composed of these once what was left out is filled in; see ``scenario``.
"""

from dataclasses import dataclass

from sottovoce.server.planning.recipe import Recipe
from sottovoce.simulations.scenario.population import PopulationSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicCorpusSettings:
    """A corpus declared public, a table ``[[public]]``.

    Attributes:
        name: Name of the corpus.
        data: Its folder, or the options of ``synthetic``.
    """

    name: str
    data: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioSettings:
    """Settings of one simulated run.

    Attributes:
        corpus: Name of the corpus of users.
        data: Its folder, or the options of ``synthetic``.
        protocol: Which speakers test which model; empty: the corpus's usual one.
        public: Corpora declared public.
        label_map: A label map for all corpora, by file or name; empty: each folder's own.
        follow_links: Whether paths of a manifest may lead out of its folder through links.
        encoder: Name of the feature extractor; empty: the recipe's usual one.
        unit: What is protected: ``utterance``, ``user``, ``both`` or ``none``.
        epsilon: Budget of every device's life, above 0; with ``both``, of each unit.
        delta: For one utterance, in (0, 1).
        user_delta: For one user, in (0, 1); well below one over the number of users.
        secure: Whether sums over users are made by secure aggregation, so that nobody sees less
            than the noised sum.
        tuning_runs: How many runs like this one settings were chosen by, this one included, at
            least 1; all of them are charged for.
        rounds: Rounds of training, at least 1; 0 takes the recipe's.
        enrolment: What a test user's normaliser is learned from: ``none``, ``neutral:K``, ``all``.
        labelled_clips_per_user: Labelled clips on which each test user's head is fitted; they are
            not scored in the comparison before and after heads.
        engine: What runs the apps.
        workers: Processes for features and clients.
        seed: Decides every draw.
        baselines: What to compare with.
        recipe: How the model is trained; what is left out is the usual of the unit and the model.
        population: A synthetic population, of which each round samples some users; None takes
            the speakers of the corpus, all of them, as users.
    """

    corpus: str
    data: str = ""
    protocol: str = ""
    public: tuple[PublicCorpusSettings, ...] = ()
    label_map: str = ""
    follow_links: bool = False
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
    recipe: Recipe = Recipe()  # noqa: RUF009  (frozen)
    population: PopulationSettings | None = None
