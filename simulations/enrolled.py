"""What a user's enrolment is worth: test speakers behind finished models, with other enrolments.

A run folder keeps model, front and public statistics of every fold, and the cache keeps features.
So any enrolment can be tried on test speakers without training again, with the code that devices
run.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sottovoce.server import checkpoint
from sottovoce.shared import heads, neutral, normaliser, unlabelled
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.front import Front, finish
from sottovoce.shared.heads import HeadPrior
from sottovoce.shared.models.flat import load_flat
from sottovoce.shared.models.network import Network
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.shared.normaliser import Population
from sottovoce.shared.unlabelled import Belief
from sottovoce.simulations import personal
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.clips import Clip
from sottovoce.simulations.features import features
from sottovoce.simulations.hearing import cache_folder
from sottovoce.simulations.names import folder_name
from sottovoce.simulations.protocols import Fold, Protocol, protocol


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Model:
    """One fold's finished model.

    Attributes:
        labels: Emotions in the order of the classes.
        network: The shared model, ready to predict.
        front: The public front.
        centre: Where the training users' voices lie, shape (inputs,).
        population: How public speakers differ.
        prior: Where heads start.
        neutral: Where the model hears neutral speech, shape (inputs,); None where it cannot say.
    """

    labels: tuple[str, ...]
    network: Network
    front: Front
    centre: Tensor
    population: Population
    prior: HeadPrior
    neutral: Tensor | None

    def logits(self, rows: Tensor, mean: Tensor) -> Tensor:
        """Shape (utterances, classes), float64, from rows from the centre, behind a mean."""
        return self.heard(rows, mean)[0]

    def heard(self, rows: Tensor, mean: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same, and coordinates in the prior's basis, where it has one."""
        single = torch.ones(len(rows), dtype=torch.int64)
        inputs = finish(rows, mean, single, length=self.front.length)
        found, places = self.prior.heard(self.network, inputs, single)
        return found.double(), places


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Speaker:
    """A test speaker as one fold's model hears them.

    Attributes:
        clips: All clips.
        labels: Shape (clips,), int64.
        rows: Behind the front, from the centre, shape (clips, inputs).
        fold: Name of the fold.
        model: Its model.
    """

    clips: tuple[Clip, ...]
    labels: Tensor
    rows: Tensor
    fold: str
    model: Model

    @property
    def name(self) -> str:
        """Who."""
        return self.clips[0].speaker

    def neutral(self, places: Sequence[int]) -> Tensor:
        """The mean from clips known to be neutral, shape (inputs,); zeros without any."""
        rows, model = self.rows[list(places)], self.model
        return normaliser.estimate(rows, model.population, neutral=True, direction=model.neutral)

    def plain(self, places: Sequence[int]) -> Tensor:
        """The plain mean of unlabelled clips, shape (inputs,)."""
        return normaliser.estimate(self.rows[list(places)], self.model.population, neutral=False)

    def unlabelled(self, places: Sequence[int], known: Sequence[int] = ()) -> Tensor:
        """The mean from unlabelled clips of any mix, and some known to be neutral."""
        model = self.model
        belief = unlabelled.begin(self.rows[list(known)], model.population, model.neutral)
        heard = model.logits(self.rows[list(places)], belief.mean)
        calm = torch.softmax(heard, 1)[:, neutral.classes(model.labels)].sum(1)
        return self._learned(places, calm, belief)

    def unlabelled_but_neutral(self, places: Sequence[int]) -> Tensor:
        """The same, told which clips are neutral: what is lost then is not in knowing the mix."""
        calm = neutral.classes([self.clips[place].emotion for place in places]).double()
        belief = unlabelled.begin(self.rows[[]], self.model.population)
        return self._learned(places, calm, belief)

    def _learned(self, places: Sequence[int], chances: Tensor, belief: Belief) -> Tensor:
        """The mean, from each clip's chance to be neutral."""
        rows, even = self.rows[list(places)], unlabelled.even_share(self.model.labels)
        population, direction = self.model.population, self.model.neutral
        return unlabelled.estimate(
            rows, chances, belief, population, even=even, direction=direction
        )

    def chances(self, scored: Sequence[int], mean: Tensor, labelled: Sequence[int] = ()) -> Tensor:
        """Probabilities behind a mean and a head fitted on labelled clips, (scored, classes).

        Without labelled clips the head is the prior's mean.
        """
        own, model = list(labelled), self.model
        logits, places = model.heard(self.rows, mean)
        chosen = [None if places is None else places[part] for part in (own, list(scored))]
        head = heads.fit(logits[own], self.labels[own], model.prior, chosen[0])
        return torch.softmax(heads.apply(head, logits[list(scored)], chosen[1]), 1)


def chosen(run: Path, corpora: Path) -> Protocol:
    """The protocol of a finished run; errors as in ``personal.people``."""
    config = personal.config(run)
    return protocol(config["protocol"], open_corpus(config["corpus"], corpora / config["corpus"]))


def speakers(run: Path, corpora: Path) -> Iterator[Speaker]:
    """All test speakers of a finished run.

    Args:
        run: The run folder.
        corpora: The folder in which the corpora lie under their names.

    Raises:
        ModelError: What the run kept is damaged.
        CorpusError: The corpus is not there.
    """
    tested, encoder = chosen(run, corpora), str(personal.config(run)["encoder"])
    with FeatureCache(cache_folder()) as cache:
        table = features(tested.corpus.clips, encoder, cache)
    by_speaker = tested.corpus.by_speaker()
    for fold in tested.folds:
        model = _model(run, fold)
        for name in fold.test:
            clips = tuple(clip for clip in by_speaker[name] if clip.clip_id in table.features)
            heard = torch.stack([table.features[clip.clip_id] for clip in clips])
            yield Speaker(
                clips=clips,
                labels=torch.tensor([model.labels.index(clip.emotion) for clip in clips]),
                rows=model.front.project(heard) - model.centre,
                fold=fold.name,
                model=model,
            )


def _model(run: Path, fold: Fold) -> Model:
    """What a fold handed out."""
    folder = run / "checkpoints" / folder_name(fold.name)
    # Read by hand: the plan of an older release has another schema, but the same model.
    job: dict[str, Any] = json.loads((folder / "server" / "job.json").read_text())
    plan = json.loads(job["plan"])
    kept = load_file(folder / "server" / "public.safetensors")
    released = checkpoint.released(folder / "server")[0]
    network = build(ModelSpec.from_dict(plan["model"]), seed=0).eval()
    load_flat(network, released["weights"])
    statistics = {name: kept[name] for name in Population.__dataclass_fields__}
    labels = tuple(plan["labels"])
    return Model(
        labels=labels,
        network=network,
        front=Front(mean=kept["mean"], matrix=kept["matrix"], length=float(job["length"])),
        centre=released["centre"],
        population=Population(**statistics),
        prior=personal.heads_prior(run, folder, len(labels))[0],
        neutral=released.get("neutral"),
    )
