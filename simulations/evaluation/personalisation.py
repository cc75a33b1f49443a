"""Effect of users' own labels: heads and sets fitted anew on the scores of a finished run.

A run folder has the shared model's probabilities of every test clip. Their logarithms are the
logits up to a constant per clip, to which heads are invariant. Heads can be fitted on other
labelled clips than the run's own, any number of times, with the code that devices run.
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

from sottovoce.server.federation import checkpoint
from sottovoce.server.personalisation import prior_estimation
from sottovoce.server.personalisation.prior_estimation import default_prior, fit_head_prior
from sottovoce.shared import calibration, seeding
from sottovoce.shared.calibration import HeadPrior, conformal
from sottovoce.shared.calibration.conformal import NonconformityScores
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.losses import Loss
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.corpora.speaker_splits import Fold, apply_protocol
from sottovoce.simulations.evaluation import fold_result
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray
from sottovoce.simulations.results.path_names import folder_name

_MIN_PROBABILITY = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SpeakerData:
    """One test speaker under the shared model.

    Attributes:
        name: Name of the speaker.
        gender: "" where unknown.
        fold: Fold whose model scored the clips.
        logits: Shape (clips, classes), float64.
        labels: Shape (clips,), int64.
        prior: Prior of heads under this fold's model; its scores are public speakers'.
        user_scores: Scores that the run's own training users released; None where they released
            none.
        coordinates: In the prior's basis, shape (clips, rank); None where it has none.
    """

    name: str
    gender: str
    fold: str
    logits: Tensor
    labels: Tensor
    prior: HeadPrior
    user_scores: NonconformityScores | None = None
    coordinates: Tensor | None = None

    def logits_and_coordinates(
        self, chosen: Sequence[int] | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Select the logits and coordinates of some clips."""
        own = self.coordinates
        return self.logits[chosen], None if own is None else own[chosen]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoredDraw:
    """Unlabelled clips of one speaker, scored before and after the labelled ones were used.

    Attributes:
        speaker: The speaker of all clips.
        labels: Shape (clips,), int64.
        before: Probabilities without a head, shape (clips, classes).
        after: Probabilities after the head, same shape.
        covered: By threshold, whether the set holds the truth, shape (clips,), bool.
        within_threshold: By threshold, whether the truth lies within it, same shape. A set is never
            empty, so it can hold a truth that does not.
        sizes: By threshold, how many emotions the set holds, shape (clips,), int64.
    """

    speaker: SpeakerData
    labels: CountArray
    before: FloatArray
    after: FloatArray
    covered: Mapping[str, np.ndarray]
    within_threshold: Mapping[str, np.ndarray]
    sizes: Mapping[str, CountArray]


def load_speakers(run: Path, corpora: Path) -> list[SpeakerData]:
    """Load all test speakers of a finished run, with the priors that it released.

    Where its users released no statistics, priors are estimated from its public speakers.

    Args:
        run: The run folder.
        corpora: The folder in which the corpora lie under their names.

    Raises:
        ModelError: A file of the run is damaged.
        CorpusError: The corpus is not there.
    """
    config = read_config(run)
    chosen = apply_protocol(
        config["protocol"], open_corpus(config["corpus"], corpora / config["corpus"])
    )
    clips = {clip.clip_id: clip for clip in chosen.corpus.clips}
    return [speaker for fold in chosen.folds for speaker in _fold_speakers(run, fold, clips)]


def read_config(run: Path) -> dict[str, Any]:
    """Read the scenario of a finished run, as it was settled."""
    return tomllib.loads((run / "config.toml").read_text())


def _fold_speakers(run: Path, fold: Fold, clips: Mapping[str, Clip]) -> Iterable[SpeakerData]:
    """The test speakers of one fold."""
    folder = run / "checkpoints" / folder_name(fold.name)
    facts, scores = fold_result.read_result(folder)
    scored = [clips[name] for name in facts["clips"]]
    # Probabilities that underflowed to 0 stay finite logits.
    logits = torch.from_numpy(np.log(np.maximum(scores["before"], _MIN_PROBABILITY)))
    labels = torch.from_numpy(scores["labels"]).long()
    prior, user_scores = load_head_prior(run, folder, logits.shape[1])
    coordinates = (
        None
        if prior.basis is None
        else torch.from_numpy(scores[fold_result.COORDINATES_COLUMN]).double()
    )
    for speaker in fold.test:
        own = [row for row, clip in enumerate(scored) if clip.speaker == speaker]
        yield SpeakerData(
            name=speaker,
            gender=scored[own[0]].gender or "",
            fold=fold.name,
            logits=logits[own],
            labels=labels[own],
            prior=prior,
            user_scores=user_scores,
            coordinates=None if coordinates is None else coordinates[own],
        )


def load_head_prior(
    run: Path, folder: Path, classes: int
) -> tuple[HeadPrior, NonconformityScores | None]:
    """Load the prior of the fold's model with public scores, and users' released scores."""
    path = run / "checkpoints" / "held_out.safetensors"
    if not path.is_file():
        return default_prior(classes), None
    public = load_file(path)
    # Read by hand: the plan of an older release has another schema, but the same model.
    plan = json.loads(json.loads((folder / "server" / "job.json").read_text())["plan"])
    model = build_network(ModelSpec.from_dict(plan["model"]), seed=0).eval()
    tensors, released = checkpoint.load_released_model(folder / "server")
    load_parameters(model, tensors["weights"])
    with torch.no_grad():
        logits = model(public["features"], public["frames"])
    names = sorted(set(public["speakers"].tolist()))
    speakers = [public["speakers"] == name for name in names]
    public_speakers = [(logits[chosen], public["labels"][chosen]) for chosen in speakers]
    training = plan["training"]
    prior = fit_head_prior(
        public_speakers,
        classes=classes,
        smoothing=float(training.get("label_smoothing", 0.0)),
        loss=Loss.from_dict(training.get("loss", {})),
    )
    if not plan.get("calibration") or prior.scores is None:
        return replace(prior, basis=released.basis), None
    # The released prior has users' scores: public ones are computed under the released mean.
    scores = calibration.fit_population_scores(
        prior_estimation.speaker_nonconformity(released.mean, public_speakers)
    )
    # As on the server: public speakers must not outweigh a user's own clips.
    weight = min(scores.concentration, prior_estimation.MAX_PUBLIC_WEIGHT)
    scores = replace(scores, concentration=weight)
    return replace(released, scores=scores), released.scores


def scores_by_fold(speakers: Sequence[SpeakerData]) -> dict[str, NonconformityScores]:
    """Fit for every fold the scores of the speakers whom the fold does not test.

    Each of them is scored by the model that was not trained on them, with that model's default
    head.
    """
    found = {one.name: default_head_scores(one) for one in speakers}
    return {
        fold: calibration.fit_population_scores(
            [found[one.name] for one in speakers if one.fold != fold]
        )
        for fold in {one.fold for one in speakers}
    }


def default_head_scores(speaker: SpeakerData) -> Tensor:
    """Compute nonconformity scores of a speaker's clips under the head without labels."""
    logits = calibration.calibrate_logits(speaker.prior.mean, speaker.logits)
    return conformal.nonconformity(torch.softmax(logits, 1), speaker.labels)


def user_score_coverage(speakers: Sequence[SpeakerData], *, coverage: float) -> float:
    """Measure the share of clips whose set holds the truth, by training users' scores.

    No test user's label is used for the sets.

    Args:
        speakers: Test speakers of a run whose users released scores.
        coverage: Asked for, in (0, 1).
    """
    covered = []
    for one in speakers:
        if one.user_scores is None:
            raise SettingError("this run's users released no scores of their clips; run it again")
        probabilities = torch.softmax(calibration.calibrate_logits(one.prior.mean, one.logits), 1)
        inside = conformal.prediction_set_mask(
            probabilities, conformal.find_threshold(one.user_scores, coverage=coverage)
        )
        covered.append(inside.gather(1, one.labels[:, None])[:, 0])
    return float(torch.cat(covered).double().mean())


def score_draw(
    speaker: SpeakerData,
    clips: int,
    draw: int,
    *,
    seed: int,
    corpus_scores: NonconformityScores | None = None,
) -> ScoredDraw:
    """Fit a speaker's head on some labelled clips and score the others.

    Args:
        speaker: Speaker whose head is fitted.
        clips: How many clips the speaker labels; every emotion keeps one to score.
        draw: Number of the draw.
        seed: Of all draws.
        corpus_scores: Scores of the same corpus's other speakers; None leaves their sets out.
    """
    labelled = draw_labelled_clips(speaker, clips, draw, seed=seed)
    logits, coordinates = speaker.logits_and_coordinates(labelled)
    # Held-out probabilities: scores of clips that the head was fitted on would be too small.
    found = calibration.fit_head(logits, speaker.labels[labelled], speaker.prior, coordinates)
    own = conformal.nonconformity(found.held_out_probabilities, speaker.labels[labelled])
    rest = torch.ones(len(speaker.labels), dtype=torch.bool)
    rest[labelled] = False
    after = torch.softmax(
        calibration.calibrate_logits(found.head, *speaker.logits_and_coordinates(rest)), 1
    )
    covered, within, sizes = _evaluate_sets(
        speaker, after, speaker.labels[rest], own, {"members": corpus_scores}
    )
    return ScoredDraw(
        speaker=speaker,
        labels=speaker.labels[rest].numpy(),
        before=torch.softmax(speaker.logits[rest], 1).numpy(),
        after=after.numpy(),
        covered=covered,
        within_threshold=within,
        sizes=sizes,
    )


def _evaluate_sets(
    speaker: SpeakerData,
    probabilities: Tensor,
    labels: Tensor,
    own: Tensor,
    more: Mapping[str, NonconformityScores | None],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, CountArray]]:
    """Coverage and sizes with and without the own clips, by whose scores the sets start from."""
    covered: dict[str, np.ndarray] = {}
    within: dict[str, np.ndarray] = {}
    sizes: dict[str, CountArray] = {}
    truth = labels[:, None]
    scores = conformal.nonconformity(probabilities, labels)
    by_source = {"public": speaker.prior.scores, "users": speaker.user_scores, **more}
    for whose, population in by_source.items():
        if population is None:
            continue
        for name, clips in ((whose, None), (f"{whose} and own", own)):
            # "own" adds the user's labelled clips to the population's scores.
            limit = conformal.find_threshold(population, clips, coverage=conformal.DEFAULT_COVERAGE)
            inside = conformal.prediction_set_mask(probabilities, limit)
            covered[name] = inside.gather(1, truth)[:, 0].numpy()
            within[name] = (scores <= limit).numpy()
            sizes[name] = inside.sum(1).numpy()
    return covered, within, sizes


def draw_labelled_clips(speaker: SpeakerData, clips: int, draw: int, *, seed: int) -> list[int]:
    """Draw the indices of labelled clips: at random, less the last one of each emotion."""
    left = Counter(speaker.labels.tolist())
    # One permutation a draw, whatever the number: more labels are a superset of fewer.
    order = seeding.numpy_rng(seed, "heads", speaker.name, draw).permutation(len(speaker.labels))
    chosen: list[int] = []
    for index in order.tolist():
        label = int(speaker.labels[index])
        if len(chosen) < clips and left[label] > 1:
            left[label] -= 1
            chosen.append(index)
    return chosen
