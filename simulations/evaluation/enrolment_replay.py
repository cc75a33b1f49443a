"""Replay of other enrolments on finished models: their effect on test speakers.

A run folder has the model, projection and public statistics of every fold, and the cache has the
features. Any enrolment can be tried on test speakers without training again, with the code that
devices run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sottovoce.shared import calibration
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.speaker import neutral_direction, normalisation, unlabelled_adaptation
from sottovoce.shared.speaker.unlabelled_adaptation import MeanPosterior
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.corpora.speaker_splits import EvaluationProtocol, apply_protocol
from sottovoce.simulations.data.feature_extraction import extract_features
from sottovoce.simulations.data.loading import cache_folder
from sottovoce.simulations.evaluation import personalisation
from sottovoce.simulations.evaluation.finished_model import FoldModel, load_fold_model


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EvaluatedSpeaker:
    """A test speaker under one fold's model.

    Attributes:
        clips: All clips.
        labels: Shape (clips,), int64.
        features: Projected rows less the centre, shape (clips, inputs).
        fold: Name of the fold.
        model: Its model.
    """

    clips: tuple[Clip, ...]
    labels: Tensor
    features: Tensor
    fold: str
    model: FoldModel

    @property
    def name(self) -> str:
        """Name of the speaker, as in the corpus."""
        return self.clips[0].speaker

    def neutral_mean(self, indices: Sequence[int]) -> Tensor:
        """Estimate the mean from clips known to be neutral, shape (inputs,); zeros without any."""
        rows, model = self.features[list(indices)], self.model
        return normalisation.estimate_mean(
            rows, model.speaker_statistics, is_neutral=True, direction=model.neutral_direction
        )

    def plain_mean(self, indices: Sequence[int]) -> Tensor:
        """Compute the plain mean of unlabelled clips, shape (inputs,)."""
        return normalisation.estimate_mean(
            self.features[list(indices)], self.model.speaker_statistics, is_neutral=False
        )

    def unlabelled_mean(
        self, indices: Sequence[int], neutral_indices: Sequence[int] = ()
    ) -> Tensor:
        """Estimate the mean from unlabelled clips of any class mix and some known to be neutral."""
        model = self.model
        posterior = unlabelled_adaptation.initial_posterior(
            self.features[list(neutral_indices)], model.speaker_statistics, model.neutral_direction
        )
        # The first guess of who is neutral uses the mean known so far, as a device does.
        logits = model.predict_logits(self.features[list(indices)], posterior.mean)
        neutral = torch.softmax(logits, 1)[:, neutral_direction.neutral_mask(model.labels)].sum(1)
        return self._estimate_mean(indices, neutral, posterior)

    def oracle_unlabelled_mean(self, indices: Sequence[int]) -> Tensor:
        """Estimate the mean from clips whose neutral ones are known, an upper bound.

        The loss that remains is not due to the estimated class mix.
        """
        neutral = neutral_direction.neutral_mask(
            [self.clips[index].emotion for index in indices]
        ).double()
        posterior = unlabelled_adaptation.initial_posterior(
            self.features[[]], self.model.speaker_statistics
        )
        return self._estimate_mean(indices, neutral, posterior)

    def _estimate_mean(
        self, indices: Sequence[int], neutral: Tensor, posterior: MeanPosterior
    ) -> Tensor:
        """The mean, from each clip's probability of being neutral."""
        return unlabelled_adaptation.adapt_mean(
            self.features[list(indices)],
            neutral,
            posterior,
            self.model.speaker_statistics,
            uniform_share=unlabelled_adaptation.uniform_neutral_share(self.model.labels),
            direction=self.model.neutral_direction,
        )

    def predict_probabilities(
        self, scored: Sequence[int], mean: Tensor, labelled: Sequence[int] = ()
    ) -> Tensor:
        """Probabilities under a mean and a head fitted on labelled clips, (scored, classes).

        Without labelled clips the head is the prior's mean.
        """
        own, model = list(labelled), self.model
        logits, coordinates = model.logits_and_coordinates(self.features, mean)
        chosen = [
            None if coordinates is None else coordinates[part] for part in (own, list(scored))
        ]
        head = calibration.fit_head_only(logits[own], self.labels[own], model.prior, chosen[0])
        return torch.softmax(calibration.calibrate_logits(head, logits[list(scored)], chosen[1]), 1)


def load_protocol(run: Path, corpora: Path) -> EvaluationProtocol:
    """Load the protocol of a finished run; errors as in ``personalisation.load_speakers``."""
    config = personalisation.read_config(run)
    return apply_protocol(
        config["protocol"], open_corpus(config["corpus"], corpora / config["corpus"])
    )


def load_speakers(run: Path, corpora: Path) -> Iterator[EvaluatedSpeaker]:
    """Iterate over all test speakers of a finished run.

    Args:
        run: The run folder.
        corpora: The folder in which the corpora lie under their names.

    Raises:
        ModelError: A file of the run is damaged.
        CorpusError: The corpus is not there.
    """
    tested, encoder = load_protocol(run, corpora), str(personalisation.read_config(run)["encoder"])
    with FeatureCache(cache_folder()) as cache:
        table = extract_features(tested.corpus.clips, encoder, cache)
    by_speaker = tested.corpus.clips_by_speaker()
    for fold in tested.folds:
        model = load_fold_model(run, fold)
        for name in fold.test:
            # Clips with defective sound have no features; the run left them out, too.
            clips = tuple(clip for clip in by_speaker[name] if clip.clip_id in table.features)
            rows = torch.stack([table.features[clip.clip_id] for clip in clips])
            yield EvaluatedSpeaker(
                clips=clips,
                labels=torch.tensor([model.labels.index(clip.emotion) for clip in clips]),
                features=model.projection.project_features(rows) - model.centre,
                fold=fold.name,
                model=model,
            )
