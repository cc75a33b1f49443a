"""The speech of a corpus's first few speakers, and what pretraining gives, for a small real run."""

import os
from collections.abc import Callable, Mapping, Sequence
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
from sottovoce.simulations.scenario.scenario import Scenario

SYNTHETIC_PUBLIC = ("synthetic", "speakers=16,clips=12,seed=90210")
"""Public speech where a scenario names none."""


def load_few_speakers(
    scenario: Scenario, speakers: int, out: Path, on_message: Callable[[str], None]
) -> FoldInputs:
    """Load the features of a corpus's first speakers, and learn from public speech.

    Args:
        scenario: The settled scenario: corpora, encoder, recipe and seed.
        speakers: How many users.
        out: Where the held-out public speakers are written.
        on_message: Gets a line for each corpus whose features are computed.

    Raises:
        SottovoceError: A corpus cannot be read, or has too few speakers.
    """
    cache = FeatureCache(cache_folder())
    corpus = open_corpus(scenario.corpus, scenario.data)
    chosen = corpus.speakers[:speakers]
    if len(chosen) < speakers:
        raise CorpusError(f"{corpus.name} has {len(chosen)} speakers; ask for fewer --speakers")
    own = _load_features(
        [clip for clip in corpus.clips if clip.speaker in chosen], scenario, cache, on_message
    )
    public = [
        _load_features(open_corpus(name, data).clips, scenario, cache, on_message)
        for name, data in scenario.public or (SYNTHETIC_PUBLIC,)
    ]
    plan = run_plan.plan_without_noise(scenario, run="", labels=corpus.emotions, inputs=1)
    return pretrain(
        UserSpeech(
            labels=corpus.emotions,
            features=own[1],
            clips={user: tuple(clip for clip in own[0] if clip.speaker == user) for user in chosen},
        ),
        merge_public_corpora(corpus.emotions, public),
        PretrainingSettings(
            spec=plan.model,
            recipe=scenario.recipe,
            user_mean=True,
            use_warm_start=bool(scenario.public),
            seed=scenario.seed,
        ),
        out,
    )


def _load_features(
    clips: Sequence[Clip],
    scenario: Scenario,
    cache: FeatureCache,
    on_message: Callable[[str], None],
) -> tuple[list[Clip], Mapping[str, Tensor]]:
    """Clips that can be used, and their features."""
    table = extract_features(clips, scenario.encoder, cache, workers=os.cpu_count())
    on_message(f"features of {len(table.features)} clips in {table.seconds:.0f} s")
    return [clip for clip in clips if clip.clip_id in table.features], table.features
