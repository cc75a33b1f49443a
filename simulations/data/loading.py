"""What a run loads: the users' corpus behind its protocol, public corpora, and their features.

Whatever cannot be used is refused with its way out, or left out, counted and reported.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from sottovoce.server.planning.recipe import FROZEN_ENCODER_MODELS, Recipe
from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.features.registry import create_extractor
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.corpus import Clip, Corpus, make_finding
from sottovoce.simulations.corpora.inspection import find_silent_speakers
from sottovoce.simulations.corpora.speaker_splits import (
    NEUTRAL,
    EvaluationProtocol,
    apply_protocol,
    check_classes,
    split_enrolment,
)
from sottovoce.simulations.data.cached_features import fingerprint_features, load_cached_features
from sottovoce.simulations.data.feature_extraction import FeatureTable, extract_features
from sottovoce.simulations.scenario.settings import DataSettings, EnrolmentSettings

DEFAULT_PUBLIC_CORPUS = ("synthetic", "speakers=40,clips=20,seed=90210")
"""Voices that the projection is fitted on where no corpus is declared public: synthetic."""

PublicCorpus = tuple[Sequence[Clip], "PublicFeatures"]
"""A public corpus's clips and features."""

OnMessage = Callable[[str], None]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedCorpus:
    """A corpus behind its protocol, its features, and what was left out."""

    protocol: EvaluationProtocol
    feature_table: FeatureTable
    exclusion_counts: Mapping[str, int]


class PublicFeatures(Mapping[str, Tensor]):
    """Features of a public corpus by clip, read when first asked for.

    A run whose pretraining result is cached needs none.

    Args:
        fingerprint: All that decides them.
        read: Reads them, and what is to be said of clips that were left out.
    """

    def __init__(self, fingerprint: str, read: Callable[[], FeatureTable]) -> None:
        self.fingerprint = fingerprint
        self._read = read
        self._table: FeatureTable | None = None

    @property
    def feature_table(self) -> FeatureTable:
        """Features of all public clips, read on first use."""
        if self._table is None:
            self._table = self._read()
        return self._table

    def __getitem__(self, clip: str) -> Tensor:
        return self.feature_table.features[clip]

    def __iter__(self) -> Iterator[str]:
        return iter(self.feature_table.features)

    def __len__(self) -> int:
        return len(self.feature_table.features)


def cache_folder() -> Path:
    """Where features are kept between runs: ``$SOTTOVOCE_CACHE``, or the user's cache folder."""
    named = os.environ.get("SOTTOVOCE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sottovoce"


def check_encoder(encoder: str, recipe: Recipe) -> None:
    """Refuse features that the model cannot read, before any is computed.

    Raises:
        SettingError: The encoder is unknown, or gives frames where the model reads vectors, or the
            other way round.
    """
    chosen = create_extractor(encoder)
    frames = recipe.model not in FROZEN_ENCODER_MODELS or recipe.pooling != "none"
    if chosen.is_framewise != frames:
        gives, reads = ("frames", "one vector") if chosen.is_framewise else ("one vector", "frames")
        raise SettingError(
            f"encoder {encoder} gives {gives} and model {recipe.model} with pooling "
            f"{recipe.pooling} reads {reads} an utterance; leave --encoder or --model out, or set "
            "recipe.pooling in a scenario file"
        )


def load_corpus(
    data: DataSettings,
    cache: FeatureCache,
    on_message: OnMessage,
    on_progress: OnProgress,
    *,
    recipe: Recipe | None = None,
    workers: int = 1,
) -> LoadedCorpus:
    """Open the users' corpus, split its speakers, compute features.

    A ``recipe`` that does not go with its emotions is refused before features are computed.
    """
    corpus = _open(data, data.corpus, data.folder)
    for line in corpus.format_mapping():
        on_message(f"label {line}")
    for found in corpus.findings:
        on_message(f"found: {found}")
    # Before features: a speaker less may be one too few for the protocol.
    gone = find_silent_speakers(corpus)
    unusable = tuple(clip for clip in corpus.clips if clip.speaker in gone)
    corpus = _without_speakers(corpus, gone, on_message)
    chosen = apply_protocol(data.protocol or "default", corpus)
    for found in chosen.findings:
        on_message(f"{chosen.name}: {found}")
    # Before features: what counts alone can refuse is not to cost anybody an hour.
    _require_neutral_clips(data.enrolment, chosen.corpus)
    for line in enrolment_messages(data.enrolment, chosen.corpus):
        on_message(line)
    if recipe:
        recipe.loss.assign_coordinates(chosen.corpus.emotions)
        if recipe.reads_votes and not any(clip.votes for clip in chosen.corpus.clips):
            on_message(
                f"no clip of {corpus.name} has the votes of several raters: training goes by "
                "labels, whatever targets and curriculum ask for"
            )
    loader = _FeatureLoader(data.encoder, workers, on_message, on_progress)
    # With the clips that cannot be used: each is named and counted.
    everything = replace(chosen.corpus, clips=(*chosen.corpus.clips, *unusable))
    table = loader.load(everything, cache)
    # A protocol may have chosen only such clips of a speaker as cannot be used.
    silent = _speakers_without_features(chosen.corpus, table)
    if silent:
        corpus = _without_speakers(corpus, silent, on_message)
        chosen = apply_protocol(data.protocol or "default", corpus)
    chosen = _without_unusable_clips(chosen, table)
    _require_neutral_clips(data.enrolment, chosen.corpus)
    exclusions = dict(Counter(entry.fault.value for entry in table.excluded)) | {
        found.what: found.count for found in corpus.findings if "left out" in found.action
    }
    return LoadedCorpus(protocol=chosen, feature_table=table, exclusion_counts=exclusions)


def _open(data: DataSettings, name: str, folder: str) -> Corpus:
    """One of the run's corpora, under the run's label map."""
    return open_corpus(name, folder, labels=data.label_map, follow_links=data.follow_links)


def _require_neutral_clips(enrolment: EnrolmentSettings, corpus: Corpus) -> None:
    """Refuse neutral enrolment where there is nothing neutral.

    Raises:
        SettingError: There is no neutral clip.
    """
    if enrolment.neutral_clips and NEUTRAL not in corpus.emotions:
        raise SettingError(
            f"enrolment is {enrolment.enrolment} and corpus {corpus.name} has no neutral clip; it "
            "must be none or all"
        )


def _without_speakers(corpus: Corpus, silent: Sequence[str], on_message: OnMessage) -> Corpus:
    """A corpus without the speakers who have no usable clip, and a message about them.

    Raises:
        CorpusError: No speaker is left.
    """
    if not silent:
        return corpus
    found = make_finding("speakers without a usable clip", silent, "left out")
    on_message(f"found: {found}")
    return replace(
        corpus,
        clips=tuple(clip for clip in corpus.clips if clip.speaker not in silent),
        set_aside=tuple(clip for clip in corpus.set_aside if clip.speaker not in silent),
        findings=(*corpus.findings, found),
    )


def _speakers_without_features(corpus: Corpus, table: FeatureTable) -> list[str]:
    """The speakers none of whose clips has features."""
    usable = {clip.speaker for clip in corpus.clips if clip.clip_id in table.features}
    return [speaker for speaker in corpus.speakers if speaker not in usable]


def _without_unusable_clips(chosen: EvaluationProtocol, table: FeatureTable) -> EvaluationProtocol:
    """The protocol without the clips that have no features.

    Raises:
        CorpusError: One class is left, or a fold has no clip of a class to train on.
    """
    usable = tuple(clip for clip in chosen.corpus.clips if clip.clip_id in table.features)
    if len(usable) == len(chosen.corpus.clips):
        return chosen
    corpus = replace(chosen.corpus, clips=usable)
    if len(corpus.emotions) < 2:
        raise CorpusError(
            f"corpus {corpus.name} has usable clips of one class only, {corpus.emotions[0]}; "
            "recognition needs at least 2"
        )
    check_classes(corpus, chosen.folds)
    return replace(chosen, corpus=corpus)


@dataclass(frozen=True, slots=True)
class _FeatureLoader:
    """Computes features of corpora, or takes them from the cache; says what was left out."""

    encoder: str
    workers: int
    on_message: OnMessage
    on_progress: OnProgress

    def load(self, corpus: Corpus, cache: FeatureCache) -> FeatureTable:
        """Load the features of a corpus."""
        before = cache.corrupt_count
        table = load_cached_features(corpus.clips, self.encoder, cache)
        damaged = cache.corrupt_count - before
        if table is None:
            what = f"features of {corpus.name}"
            table = extract_features(
                corpus.clips,
                self.encoder,
                cache,
                workers=max(self.workers, os.cpu_count() or 1),
                on_progress=lambda done, total: self.on_progress(what, done, total),
            )
        for line in exclusion_messages(table):
            self.on_message(line)
        if damaged:
            self.on_message(f"{damaged} damaged cache entries were computed again")
        return table

    def load_public(self, corpus: Corpus) -> FeatureTable:
        """Load the features of a public corpus, by a cache opened for them."""
        with FeatureCache(cache_folder()) as cache:
            return self.load(corpus, cache)


def enrolment_messages(enrolment: EnrolmentSettings, corpus: Corpus) -> tuple[str, ...]:
    """Messages about enrolment clips that were asked for and that not every speaker has.

    Args:
        enrolment: What test users bring.
        corpus: The users' corpus, with the labels in use.
    """
    neutral, labelled = enrolment.neutral_clips or 0, enrolment.labelled_clips_per_user
    splits = [
        split_enrolment(clips, neutral=neutral, labelled=labelled, seed=0)
        for clips in corpus.clips_by_speaker().values()
    ]
    uses = (
        ("labelled", labelled, [len(split.labelled) for split in splits]),
        ("neutral", neutral, [len(split.neutral) for split in splits]),
    )
    return tuple(
        f"{asked} {use} clips of each test user were asked for and speakers have from {min(there)} "
        f"to {max(there)} to enrol, as clips of each emotion stay to be scored: those are used"
        for use, asked, there in uses
        if min(there) < asked
    )


def exclusion_messages(table: FeatureTable) -> tuple[str, ...]:
    """Messages about the clips that cannot be used."""
    return tuple(f"left out: {entry.clip_id}: {entry.reason}" for entry in table.excluded)


def open_public_corpora(data: DataSettings) -> list[Corpus]:
    """Open the corpora declared public; errors as in ``open_corpus``."""
    return [_open(data, name, folder) for name, folder in data.public or (DEFAULT_PUBLIC_CORPUS,)]


def load_public_corpora(
    data: DataSettings,
    loaded_corpus: LoadedCorpus,
    on_message: OnMessage,
    on_progress: OnProgress,
    *,
    opened: Sequence[Corpus] | None = None,
    workers: int = 1,
) -> list[PublicCorpus]:
    """Open the public corpora, unless they were ``opened``. Features come when asked for."""
    if not data.public:
        on_message("no corpus is declared public: the projection is fitted on synthetic voices")
    corpora: list[PublicCorpus] = []
    loader = _FeatureLoader(data.encoder, workers, on_message, on_progress)
    for corpus in opened or open_public_corpora(data):
        name = corpus.name
        contents, fingerprint = fingerprint_features(corpus.clips, data.encoder)
        _check_disjoint(name, loaded_corpus.feature_table, contents)
        read = partial(loader.load_public, corpus)
        corpora.append((corpus.clips, PublicFeatures(fingerprint, read)))
    return corpora


def _check_disjoint(name: str, users: FeatureTable, public: Mapping[str, str]) -> None:
    """Refuse a public corpus that holds a user's recording, under whatever name.

    Raises:
        CorpusError: It holds some: what is learned from it would be no public fact.
    """
    own = {users.content_keys[clip]: clip for clip in users.features}
    shared = [own[content] for content in public.values() if content in own]
    if shared:
        raise CorpusError(
            f"{len(shared)} recordings of the users' corpus are in the public corpus {name} too "
            f"({', '.join(shared[:3])}); no recording can be both: leave them out of one"
        )


def load_corpora(
    data: DataSettings,
    recipe: Recipe,
    on_message: OnMessage,
    on_progress: OnProgress,
    *,
    workers: int = 1,
) -> tuple[LoadedCorpus, list[PublicCorpus]]:
    """Open the users' corpus and the public ones; no public one for models that need none.

    Errors are those of each.

    Args:
        data: Corpora, protocol, features and enrolment.
        recipe: Its model says whether public corpora are needed.
        on_message: Takes a line about what was found.
        on_progress: Takes (what, done, total).
        workers: Processes for features, at least 1.
    """
    needs_public = recipe.model in FROZEN_ENCODER_MODELS
    # Opened first: a public corpus that is not there is known before features are computed.
    public = open_public_corpora(data) if needs_public else []
    with FeatureCache(cache_folder()) as cache:
        loaded = load_corpus(data, cache, on_message, on_progress, recipe=recipe, workers=workers)
    if not needs_public:
        return loaded, []
    return loaded, load_public_corpora(
        data, loaded, on_message, on_progress, opened=public, workers=workers
    )
