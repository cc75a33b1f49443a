"""What there is to attack: a run's first fold, made again from its settled scenario.

The attacker is the server. It knows the plan, the models it sent and all that is public; the
harness also knows the users' clips, to let them live again with and without what the attacker looks
for.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sottovoce.server import calibration, checkpoint
from sottovoce.server.job import Job
from sottovoce.server.round import class_weights
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.shared.examples import Examples
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.normaliser import EXACT_CENTRE, EXACT_MEAN
from sottovoce.shared.plan import Plan
from sottovoce.shared.training import NoPrivacy
from sottovoce.simulations.audit.subject import Asked, Course
from sottovoce.simulations.corpora.clips import Clip
from sottovoce.simulations.hearing import Progress, Spoken, cache_folder, hear, hear_public
from sottovoce.simulations.material import Material
from sottovoce.simulations.names import folder_name
from sottovoce.simulations.preparation import material_of, plan_of
from sottovoce.simulations.protocols import Fold
from sottovoce.simulations.reading import find
from sottovoce.simulations.scenario import CLASS_EXPONENTS, HEADS_ON_FROZEN, Scenario

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Person:
    """Somebody whose device may be looked at.

    Attributes:
        examples: Utterances as raw features.
        gender: As the corpus has it; empty where it has none.
    """

    examples: Examples
    gender: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Case:
    """A fold to attack.

    Attributes:
        scenario: The settled scenario.
        fold: Name of the fold.
        course: What the server asked of every device.
        users: Those who trained, by name.
        strangers: Public speakers, by name, on whom an attacker may practise.
    """

    scenario: Scenario
    fold: str
    course: Course
    users: Mapping[str, Person]
    strangers: Mapping[str, Person]

    def without_noise(self) -> "Case":
        """The same recipe with its privacy switched off: nothing is clipped, noised or promised."""
        course = self.course
        plan = replace(
            course.plan,
            mechanism=NoPrivacy(),
            centre=course.plan.centre and EXACT_CENTRE,
            normaliser=course.plan.normaliser and EXACT_MEAN,
            count_noise=0.0,
            user=None,
            calibration=course.plan.calibration
            and replace(course.plan.calibration, noise_multiplier=0.0),
        )
        return replace(self, course=replace(course, plan=plan))


def open_case(
    run_folder: Path,
    tell: Tell = lambda _line: None,
    progress: Progress = lambda _what, _done, _total: None,
) -> Case:
    """Make a run's first fold again; arguments and errors as for :func:`open_cases`."""
    return open_cases(run_folder, tell, progress, folds=1)[0]


def open_cases(
    run_folder: Path,
    tell: Tell = lambda _line: None,
    progress: Progress = lambda _what, _done, _total: None,
    *,
    folds: int | None = None,
) -> list[Case]:
    """Make a run's folds again, in their order.

    Args:
        run_folder: What ``simulate --out`` made, with its checkpoints.
        tell: Takes a line about what was found.
        progress: Takes (what, done, total).
        folds: How many, from the first on; None makes all.

    Raises:
        SettingError: No run there, or one that this version cannot attack.
        ModelError: The models that the server sent are gone.
        SottovoceError: Corpora that are not where they were, and the like.
    """
    scenario = _scenario(run_folder)
    _check(scenario)
    with FeatureCache(cache_folder()) as cache:
        heard = hear(scenario, cache, tell, progress)
    public = hear_public(scenario, heard, tell, progress)
    cases = []
    with tempfile.TemporaryDirectory() as folder:  # nothing is written into the run
        material = material_of(scenario, heard, public, Path(folder), tell)
        plan, strangers = plan_of(scenario, material, "audit"), _strangers(material, public)
        for fold in heard.protocol.folds[:folds]:
            users = {name: _person(material, material.clips[name]) for name in fold.train}
            course = _course(scenario, plan, material, users, _server(run_folder, fold))
            cases.append(
                Case(
                    scenario=scenario,
                    fold=fold.name,
                    course=course,
                    users=users,
                    strangers=strangers,
                )
            )
    return cases


def _scenario(run_folder: Path) -> Scenario:
    """The settled scenario of a run."""
    path = run_folder / "config.toml"
    if not path.is_file():
        raise SettingError(f"there is no {path}; name the folder that --out made")
    return find(str(path))


def _check(scenario: Scenario) -> None:
    """Refuse what cannot be attacked yet, before anything is computed."""
    recipe = scenario.recipe
    if recipe.user.spacing > 1:
        raise SettingError(
            f"the run's users take turns (spacing {recipe.user.spacing}); this version attacks "
            "runs in which everybody trains in every round"
        )
    if recipe.model not in HEADS_ON_FROZEN or recipe.pooling != "none":
        raise SettingError(
            f"the run's model is {recipe.model} with pooling {recipe.pooling}, which reads frames; "
            f"this version attacks {' and '.join(HEADS_ON_FROZEN)} on one vector an utterance"
        )


def _server(run_folder: Path, fold: Fold) -> Path:
    """Where the fold's server kept its models."""
    return run_folder / "checkpoints" / folder_name(fold.name) / "server"


def _course(
    scenario: Scenario,
    plan: Plan,
    material: Material,
    users: Mapping[str, Person],
    server: Path,
) -> Course:
    """What the server asked, from what it kept."""
    sent = [weights for _, weights in checkpoint.history(server)]
    if len(sent) < plan.rounds or sent[0].shape != material.start.shape:
        raise ModelError(
            f"{server} holds {len(sent)} of the {plan.rounds} models of this run; the audit needs "
            "them all: simulate config.toml again into a new folder"
        )
    tensors, _ = checkpoint.released(server)
    labels = torch.cat([person.examples.labels for person in users.values()])
    counts = torch.bincount(labels, minlength=len(plan.labels)).double()
    return Course(
        plan=plan,
        front=material.front,
        population=material.population,
        centre=tensors["centre"],
        class_weights=class_weights(counts, CLASS_EXPONENTS[scenario.recipe.class_weights]),
        weights=[material.start, *sent[: plan.rounds - 1]],
        denominator=max(len(labels) / len(users) * plan.training.sample_rate, 1.0),
        devices=len(users),
        asked=_asked(scenario, plan, material, tensors["weights"]),
    )


def _asked(scenario: Scenario, plan: Plan, material: Material, weights: Tensor) -> Asked | None:
    """What the server asked after the last round, as it asks it; None where it asked nothing."""
    if plan.calibration is None:
        return None
    job = Job(
        plan=plan,
        aggregation=scenario.recipe.aggregation,
        weights=material.start,
        front=material.front,
        population=material.population,
        devices=1,
        held_out=material.held_out,
    )
    speakers, short = job.public_speakers(weights), plan.user is not None
    question = calibration.question(job.prior_of(weights), speakers, short=short)
    return Asked(weights=weights, question=question)


def _person(material: Material, clips: tuple[Clip, ...]) -> Person:
    """A user of the run."""
    return Person(examples=material.examples(clips), gender=clips[0].gender or "")


def _strangers(material: Material, public: list[Spoken]) -> dict[str, Person]:
    """Public speakers with the emotions that the run knows, and a known gender."""
    found: dict[str, Person] = {}
    for number, (clips, features) in enumerate(public):
        spoken: dict[str, list[Clip]] = {}
        for clip in clips:
            if clip.clip_id in features and clip.emotion in material.labels and clip.gender:
                spoken.setdefault(clip.speaker, []).append(clip)
        for speaker, own in spoken.items():
            held = replace(material, features=features).examples(own)
            found[f"{number}/{speaker}"] = Person(examples=held, gender=own[0].gender or "")
    return found
