"""A finished run's models on a corpus that they never saw.

Emotions are those that both the models and the corpus have, and a model names one of them. How
much is known of a voice is varied, without a label anywhere: nothing, some utterances, all of the
corpus, or all of the speaker.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared import seeding
from sottovoce.shared.errors import SettingError
from sottovoce.shared.printable import clean_text
from sottovoce.simulations.corpora.corpus import Clip, Corpus
from sottovoce.simulations.evaluation import bootstrap, metrics, personalisation
from sottovoce.simulations.evaluation.enrolment_replay import EvaluatedSpeaker
from sottovoce.simulations.evaluation.finished_model import FoldModel, load_all_models
from sottovoce.simulations.evaluation.metrics import CountArray
from sottovoce.simulations.experiments.commands import extract_vectors

UNLABELLED: Final = 10
"""Utterances of a voice that a device adapts to, for ``unlabelled``."""

KNOWN: Final = ("none", "unlabelled", "corpus", "user")
"""How much is known of a voice: nothing; ``UNLABELLED`` utterances, which are then not scored; the
mean of all the corpus; the mean of all the speaker's utterances. No label is used."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Target:
    """The corpus that is tried: its usable clips, their features, the emotions that count."""

    clips: tuple[Clip, ...]
    rows: Tensor
    emotions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Knowledge:
    """How much is known of a voice: one of ``KNOWN``, and what ``unlabelled`` draws."""

    name: str
    unlabelled: int
    seed: int

    def draw_adapted(self, speaker: EvaluatedSpeaker) -> list[int]:
        """Utterances that the device adapts to before any is scored."""
        if self.name != "unlabelled":
            return []
        return sorted(
            range(len(speaker.clips)),
            key=lambda index: seeding.derive_seed(self.seed, "heard", speaker.clips[index].clip_id),
        )[: self.unlabelled]

    def estimate_mean(
        self, speaker: EvaluatedSpeaker, adapted: Sequence[int], corpus_mean: Tensor
    ) -> Tensor:
        """The speaker's mean, less the centre of those who trained the model, shape (inputs,)."""
        if self.name == "corpus":  # what an operator could learn, not a device alone
            return corpus_mean
        if self.name == "user":
            return speaker.plain_mean(range(len(speaker.clips)))
        return speaker.unlabelled_mean(adapted)  # without any: the centre itself


def measure_transfer(
    run: Path,
    corpus: Corpus,
    *,
    known: Sequence[str] = KNOWN,
    unlabelled: int = UNLABELLED,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the models of a finished run on another corpus.

    Args:
        run: A finished run.
        corpus: The corpus; that of the run, or one declared public in it, is refused.
        known: Which of ``KNOWN`` to measure.
        unlabelled: Utterances of each voice that ``unlabelled`` adapts to.
        seed: Decides which utterances those are, and the bootstrap.

    Returns:
        The corpus's name, clips and speakers, the emotions, and for each of ``known`` the UAR with
        its 95 % interval over speakers. Counts of all folds' models are added, so that the UAR is
        the mean of theirs.

    Raises:
        SettingError: The corpus took part in the run, or has fewer than two of its emotions.
    """
    models = load_all_models(run)  # first: it tells whether that is a run at all
    config = personalisation.read_config(run)
    require_unseen(config, corpus)
    target = _open_target(corpus, models[0].labels, config["encoder"])
    return {
        "corpus": corpus.name,
        "clips": sum(clip.emotion in target.emotions for clip in target.clips),
        "speakers": len({clip.speaker for clip in target.clips}),
        "emotions": list(target.emotions),
        "uar": {
            name: _measure_interval(
                models, target, _Knowledge(name=name, unlabelled=unlabelled, seed=seed), seed
            )
            for name in known
        },
    }


def require_unseen(config: Mapping[str, Any], corpus: Corpus) -> None:
    """Refuse a corpus that gave a run its users or its public speech.

    Args:
        config: Settings of the run, as ``config.toml`` has them.
        corpus: Refused by its name, or where its recordings lie in a folder that the run read;
            a copy of a manifest's recordings elsewhere is not recognised.

    Raises:
        SettingError: The corpus took part.
    """
    parts = {config["corpus"]: config["data"]} | {
        one["name"]: one["data"] for one in config["public"]
    }
    folders = [one["data"] for one in config["public"]] + [config["data"]]
    lies = corpus.clips[0].path
    if (corpus.name != "folder" and corpus.name in parts) or any(
        lies is not None and lies.resolve().is_relative_to(Path(folder).resolve())
        for folder in folders
    ):
        raise SettingError(
            f"corpus is {corpus.name}, which took part in the run as its users' or as public "
            f"speech ({', '.join(parts)}); give a corpus that its models never saw"
        )


def _open_target(corpus: Corpus, labels: Sequence[str], encoder: str) -> _Target:
    """The corpus as the models read it."""
    features = extract_vectors(corpus.clips, encoder)
    clips = tuple(clip for clip in corpus.clips if clip.clip_id in features)
    emotions = tuple(label for label in labels if any(clip.emotion == label for clip in clips))
    if len(emotions) < 2:
        has = ", ".join(clean_text(name) for name in corpus.emotions)
        # One emotion would always be named right.
        raise SettingError(
            f"the corpus has the emotions {has} and the models {', '.join(labels)}; they must "
            "share at least 2: rename labels with --label-map"
        )
    return _Target(
        clips=clips,
        rows=torch.stack([features[clip.clip_id] for clip in clips]),
        emotions=emotions,
    )


def _measure_interval(
    models: Sequence[FoldModel], target: _Target, about: _Knowledge, seed: int
) -> dict[str, float]:
    """UAR of all models together, with its interval over speakers."""
    counts: dict[str, CountArray] = {}
    for model in models:
        speakers = list(_iter_speakers(model, target))
        corpus_mean = torch.cat([speaker.features for speaker in speakers]).mean(0)
        for speaker in speakers:
            adapted = about.draw_adapted(speaker)
            matrix = _count_answers(
                speaker,
                target.emotions,
                mean=about.estimate_mean(speaker, adapted, corpus_mean),
                left_out=adapted,
            )
            # Added over models: each has predicted the same clips, so the UAR is their mean.
            counts[speaker.name] = counts.get(speaker.name, np.zeros_like(matrix)) + matrix
    # A speaker all of whose clips were adapted to has none left.
    scored = np.stack([matrix for matrix in counts.values() if matrix.sum()])
    rng = np.random.default_rng(seeding.derive_seed(seed, "transfer", about.name))
    found = bootstrap.uar_interval(scored, rng)
    return {name: round(getattr(found, name), 4) for name in ("estimate", "low", "high")}


def _iter_speakers(model: FoldModel, target: _Target) -> Iterator[EvaluatedSpeaker]:
    """All speakers of the corpus under one model; clips of emotions unknown to it have label -1."""
    centred = model.projection.project_features(target.rows) - model.centre
    number = {label: index for index, label in enumerate(model.labels)}
    indices: dict[str, list[int]] = {}
    for index, clip in enumerate(target.clips):
        indices.setdefault(clip.speaker, []).append(index)
    for own in indices.values():
        clips = tuple(target.clips[index] for index in own)
        labels = torch.tensor([number.get(clip.emotion, -1) for clip in clips])
        yield EvaluatedSpeaker(
            clips=clips, labels=labels, features=centred[own], fold="", model=model
        )


def _count_answers(
    speaker: EvaluatedSpeaker, emotions: Sequence[str], *, mean: Tensor, left_out: Sequence[int]
) -> CountArray:
    """Confusion matrix of one speaker's scored clips, over the emotions that count."""
    scored = [
        index
        for index, clip in enumerate(speaker.clips)
        if clip.emotion in emotions and index not in left_out
    ]
    # Named among the emotions that count: a model is not asked about those it cannot be right in.
    columns = [speaker.model.labels.index(emotion) for emotion in emotions]
    logits = speaker.model.predict_logits(speaker.features[scored], mean)[:, columns]
    truth = np.array([emotions.index(speaker.clips[index].emotion) for index in scored], dtype=int)
    return metrics.confusion_matrix(truth, logits.argmax(1).numpy(), len(emotions))
