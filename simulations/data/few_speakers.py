"""The speech of a corpus's first few speakers, and what pretraining gives, for a small real run."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from sottovoce.shared.errors import CorpusError
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.data import run_plan
from sottovoce.simulations.data.feature_extraction import extract_features
from sottovoce.simulations.data.fold_inputs import (
    FoldInputs,
    PretrainingSettings,
    UserSpeech,
    merge_public_corpora,
    pretrain,
)
from sottovoce.simulations.data.loading import cache_folder
from sottovoce.simulations.scenario.settings import DataSettings, PlanSettings

SYNTHETIC_PUBLIC = ("synthetic", "speakers=16,clips=12,seed=90210")
"""Public speech where a scenario names none."""


def load_few_speakers(
    data: DataSettings,
    settings: PlanSettings,
    out: Path,
    on_message: Callable[[str], None],
    *,
    speakers: int,
    seed: int,
) -> FoldInputs:
    """Load the features of a corpus's first speakers, and learn from public speech.

    Args:
        data: Corpora and encoder.
        settings: What the run's plan is made of.
        out: Where the held-out public speakers are written.
        on_message: Gets a line for each corpus whose features are computed.
        speakers: How many users.
        seed: The run's seed.

    Raises:
        SottovoceError: A corpus cannot be read, or has too few speakers.
    """
    cache = FeatureCache(cache_folder())
    open_one = partial(open_corpus, labels=data.label_map, follow_links=data.follow_links)
    corpus = open_one(data.corpus, data.folder)
    chosen = corpus.speakers[:speakers]
    if len(chosen) < speakers:
        raise CorpusError(f"{corpus.name} has {len(chosen)} speakers; ask for fewer --speakers")
    own = _load_features(
        [clip for clip in corpus.clips if clip.speaker in chosen], data.encoder, cache, on_message
    )
    public = [
        _load_features(open_one(name, folder).clips, data.encoder, cache, on_message)
        for name, folder in data.public or (SYNTHETIC_PUBLIC,)
    ]
    plan = run_plan.plan_without_noise(settings, run="", labels=corpus.emotions, inputs=1)
    return pretrain(
        UserSpeech(
            labels=corpus.emotions,
            features=own[1],
            clips={user: tuple(clip for clip in own[0] if clip.speaker == user) for user in chosen},
        ),
        merge_public_corpora(corpus.emotions, public),
        PretrainingSettings(
            spec=plan.model,
            recipe=settings.recipe,
            user_mean=True,
            use_warm_start=bool(data.public),
            seed=seed,
        ),
        out,
    )


def _load_features(
    clips: Sequence[Clip],
    encoder: str,
    cache: FeatureCache,
    on_message: Callable[[str], None],
) -> tuple[list[Clip], Mapping[str, Tensor]]:
    """Clips that can be used, and their features."""
    table = extract_features(clips, encoder, cache, workers=os.cpu_count())
    on_message(f"features of {len(table.features)} clips in {table.seconds:.0f} s")
    return [clip for clip in clips if clip.clip_id in table.features], table.features
