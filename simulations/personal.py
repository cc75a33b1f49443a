"""What users' own labels are worth: heads and sets fitted anew from what a finished run kept.

A run folder keeps the shared model's probabilities of every test clip. Their logarithms are its
logits but for a constant per clip, which no head sees. So heads can be fitted on other labelled
clips than the run's own, as often as it takes, with the code that devices run.
"""

import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from sottovoce.server import checkpoint, prior
from sottovoce.server.prior import default_prior, population_prior
from sottovoce.shared import conformal, heads, seeds
from sottovoce.shared.conformal import Scores
from sottovoce.shared.errors import SettingError
from sottovoce.shared.heads import HeadPrior
from sottovoce.shared.metrics import Counts, Floats
from sottovoce.shared.models.flat import load_flat
from sottovoce.shared.models.loss import Loss
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.simulations import outcome
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.clips import Clip
from sottovoce.simulations.names import folder_name
from sottovoce.simulations.protocols import Fold, protocol

_LEAST = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Person:
    """One test speaker as the shared model sees them.

    Attributes:
        speaker: Who.
        gender: "" where unknown.
        fold: Whose model it is.
        logits: Shape (clips, classes), float64.
        labels: Shape (clips,), int64.
        prior: Where heads start, under this fold's model; its scores are public speakers'.
        told: Scores that the run's own training users told of; None where they were asked nothing.
        coordinates: In the prior's basis, shape (clips, rank); None where it has none.
    """

    speaker: str
    gender: str
    fold: str
    logits: Tensor
    labels: Tensor
    prior: HeadPrior
    told: Scores | None = None
    coordinates: Tensor | None = None

    def heard(self, chosen: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits and coordinates of some clips."""
        own = self.coordinates
        return self.logits[chosen], None if own is None else own[chosen]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """Clips of one person that were not labelled, before and after the labelled ones were used.

    Attributes:
        person: Who.
        labels: Shape (clips,), int64.
        before: Probabilities without a head, shape (clips, classes).
        after: Probabilities behind the head, same shape.
        covered: By threshold, whether the set holds the truth, shape (clips,), bool.
        within: By threshold, whether the truth lies within it, same shape; a set, which is never
            empty, can hold the truth without.
        sizes: By threshold, how many emotions the set holds, shape (clips,), int64.
    """

    person: Person
    labels: Counts
    before: Floats
    after: Floats
    covered: Mapping[str, np.ndarray]
    within: Mapping[str, np.ndarray]
    sizes: Mapping[str, Counts]


def people(run: Path, corpora: Path) -> list[Person]:
    """All test speakers of a finished run, with the priors that it handed out.

    Where its users were asked nothing, priors are made anew from its public speakers.

    Args:
        run: The run folder.
        corpora: The folder in which the corpora lie under their names.

    Raises:
        ModelError: What the run kept is damaged.
        CorpusError: The corpus is not there.
    """
    about = config(run)
    chosen = protocol(about["protocol"], open_corpus(about["corpus"], corpora / about["corpus"]))
    clips = {clip.clip_id: clip for clip in chosen.corpus.clips}
    return [person for fold in chosen.folds for person in _of_fold(run, fold, clips)]


def config(run: Path) -> dict[str, Any]:
    """The scenario of a finished run, as it was settled."""
    return tomllib.loads((run / "config.toml").read_text())


def _of_fold(run: Path, fold: Fold, clips: Mapping[str, Clip]) -> Iterable[Person]:
    """The people of one fold."""
    folder = run / "checkpoints" / folder_name(fold.name)
    facts, kept = outcome.read(folder)
    heard = [clips[name] for name in facts["clips"]]
    logits = torch.from_numpy(np.log(np.maximum(kept["before"], _LEAST)))
    labels = torch.from_numpy(kept["labels"]).long()
    start, told = heads_prior(run, folder, logits.shape[1])
    places = None if start.basis is None else torch.from_numpy(kept[outcome.COORDINATES]).double()
    for speaker in fold.test:
        own = [place for place, clip in enumerate(heard) if clip.speaker == speaker]
        yield Person(
            speaker=speaker,
            gender=heard[own[0]].gender or "",
            fold=fold.name,
            logits=logits[own],
            labels=labels[own],
            prior=start,
            told=told,
            coordinates=None if places is None else places[own],
        )


def heads_prior(run: Path, folder: Path, classes: int) -> tuple[HeadPrior, Scores | None]:
    """The prior of the fold's model, with public scores, and the scores that users told of."""
    public = run / "checkpoints" / "held_out.safetensors"
    if not public.is_file():
        return default_prior(classes), None
    given = load_file(public)
    # Read by hand: the plan of an older release has another schema, but the same model.
    plan = json.loads(json.loads((folder / "server" / "job.json").read_text())["plan"])
    model = build(ModelSpec.from_dict(plan["model"]), seed=0).eval()
    tensors, released = checkpoint.released(folder / "server")
    load_flat(model, tensors["weights"])
    with torch.no_grad():
        logits = model(given["features"], given["frames"])
    names = sorted(set(given["speakers"].tolist()))
    speakers = [given["speakers"] == name for name in names]
    heard = [(logits[chosen], given["labels"][chosen]) for chosen in speakers]
    training = plan["training"]
    start = population_prior(
        heard,
        classes=classes,
        smoothing=float(training.get("label_smoothing", 0.0)),
        loss=Loss(**training.get("loss", {})),
    )
    if not plan.get("calibration") or start.scores is None:
        return replace(start, basis=released.basis), None
    scores = conformal.learn(prior.usual_scores(released.mean, heard))
    weight = min(scores.concentration, prior.STRANGERS)
    scores = replace(scores, concentration=weight)
    return replace(released, scores=scores), released.scores


def others(everybody: Sequence[Person]) -> dict[str, Scores]:
    """For every fold the scores of the same corpus's speakers who are not tested in it.

    Each of them is judged by the model that did not hear them, behind that model's usual head.
    """
    found = {person.speaker: usual_scores(person) for person in everybody}
    return {
        fold: conformal.learn([found[one.speaker] for one in everybody if one.fold != fold])
        for fold in {person.fold for person in everybody}
    }


def usual_scores(person: Person) -> Tensor:
    """How strange a person's clips look behind the head of users without labels."""
    usual = heads.apply(person.prior.mean, person.logits)
    return conformal.scores(torch.softmax(usual, 1), person.labels)


def told_coverage(everybody: Sequence[Person], *, coverage: float) -> float:
    """Share of all clips whose set holds the truth, by what training users told, without labels.

    Args:
        everybody: Test speakers of a run whose users were asked.
        coverage: Asked for, in (0, 1).
    """
    held = []
    for person in everybody:
        if person.told is None:
            raise SettingError("this run's users told nothing of their clips; run it again")
        chances = torch.softmax(heads.apply(person.prior.mean, person.logits), 1)
        inside = conformal.sets(chances, conformal.threshold(person.told, coverage=coverage))
        held.append(inside.gather(1, person.labels[:, None])[:, 0])
    return float(torch.cat(held).double().mean())


def judge(
    person: Person, clips: int, draw: int, *, seed: int, members: Scores | None = None
) -> Judged:
    """Fit a person's head on some labelled clips and judge the others.

    Args:
        person: Who.
        clips: How many clips the person labels; every emotion keeps one to judge.
        draw: Number of the draw.
        seed: Of all draws.
        members: Scores of the same corpus's other speakers; None leaves their sets out.
    """
    labelled = labelled_clips(person, clips, draw, seed=seed)
    logits, places = person.heard(labelled)
    found = heads.fitted(logits, person.labels[labelled], person.prior, places)
    own = conformal.scores(found.blind, person.labels[labelled])
    rest = torch.ones(len(person.labels), dtype=torch.bool)
    rest[labelled] = False
    after = torch.softmax(heads.apply(found.head, *person.heard(rest)), 1)
    covered, within, sizes = _sets(person, after, person.labels[rest], own, {"members": members})
    return Judged(
        person=person,
        labels=person.labels[rest].numpy(),
        before=torch.softmax(person.logits[rest], 1).numpy(),
        after=after.numpy(),
        covered=covered,
        within=within,
        sizes=sizes,
    )


def _sets(
    person: Person,
    chances: Tensor,
    labels: Tensor,
    own: Tensor,
    more: Mapping[str, Scores | None],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Counts]]:
    """Coverage and sizes with and without the own clips, by whose scores the sets start from."""
    covered: dict[str, np.ndarray] = {}
    within: dict[str, np.ndarray] = {}
    sizes: dict[str, Counts] = {}
    truth = labels[:, None]
    scores = conformal.scores(chances, labels)
    by_people = {"public": person.prior.scores, "users": person.told, **more}
    for whose, population in by_people.items():
        if population is None:
            continue
        for name, clips in ((whose, None), (f"{whose} and own", own)):
            limit = conformal.threshold(population, clips, coverage=conformal.COVERAGE)
            inside = conformal.sets(chances, limit)
            covered[name] = inside.gather(1, truth)[:, 0].numpy()
            within[name] = (scores <= limit).numpy()
            sizes[name] = inside.sum(1).numpy()
    return covered, within, sizes


def labelled_clips(person: Person, clips: int, draw: int, *, seed: int) -> list[int]:
    """Places of the clips that a person labels: at random, less the last one of each emotion."""
    left = Counter(person.labels.tolist())
    order = seeds.numpy_rng(seed, "heads", person.speaker, draw).permutation(len(person.labels))
    chosen: list[int] = []
    for place in order.tolist():
        label = int(person.labels[place])
        if len(chosen) < clips and left[label] > 1:
            left[label] -= 1
            chosen.append(place)
    return chosen
