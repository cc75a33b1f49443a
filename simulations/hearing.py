"""What a run hears: the users' corpus behind its protocol, public corpora, and their features.

Whatever cannot be used is refused with its way out, or left out, counted and reported.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.features.extract import extractor
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.clips import Clip, Corpus
from sottovoce.simulations.features import Exclusion, FeatureTable, features
from sottovoce.simulations.protocols import NEUTRAL, Protocol, check_classes, protocol
from sottovoce.simulations.recall import named, recalled
from sottovoce.simulations.scenario import HEADS_ON_FROZEN, Scenario

FRONT_ONLY = ("synthetic", "speakers=40,clips=20,seed=90210")
"""Voices that fit the front where no corpus is declared public: made up, so public by birth."""

Spoken = tuple[Sequence[Clip], "PublicFeatures"]
"""A public corpus's clips and features."""

Tell = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Heard:
    """A corpus behind its protocol, its features, and what was left out."""

    protocol: Protocol
    table: FeatureTable
    exclusions: Mapping[str, int]


class PublicFeatures(Mapping[str, Tensor]):
    """Features of a public corpus by clip, read when first asked for.

    A run whose public material was learned before needs none.

    Args:
        decided_by: All that decides them.
        read: Reads them, and what is to be said of clips that were left out.
    """

    def __init__(self, decided_by: str, read: Callable[[], FeatureTable]) -> None:
        self.decided_by = decided_by
        self._read = read
        self._table: FeatureTable | None = None

    @property
    def table(self) -> FeatureTable:
        """All of them."""
        if self._table is None:
            self._table = self._read()
        return self._table

    def __getitem__(self, clip: str) -> Tensor:
        return self.table.features[clip]

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.features)

    def __len__(self) -> int:
        return len(self.table.features)


def cache_folder() -> Path:
    """Where features are kept between runs: ``$SOTTOVOCE_CACHE``, or the user's cache folder."""
    named = os.environ.get("SOTTOVOCE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sottovoce"


def check_encoder(scenario: Scenario) -> None:
    """Refuse features that the model cannot read, before any is computed.

    Raises:
        SettingError: The encoder is unknown, or gives frames where the model reads vectors, or the
            other way round.
    """
    recipe, chosen = scenario.recipe, extractor(scenario.encoder)
    frames = recipe.model not in HEADS_ON_FROZEN or recipe.pooling != "none"
    if chosen.framewise != frames:
        gives, reads = ("frames", "one vector") if chosen.framewise else ("one vector", "frames")
        raise SettingError(
            f"encoder {scenario.encoder} gives {gives} and model {recipe.model} with pooling "
            f"{recipe.pooling} reads {reads} an utterance; leave --encoder or --model out, or set "
            "recipe.pooling in a scenario file"
        )


def hear(scenario: Scenario, cache: FeatureCache, tell: Tell, progress: Progress) -> Heard:
    """Open the users' corpus, split its speakers, compute features."""
    corpus = open_corpus(scenario.corpus, scenario.data)
    for line in corpus.mapping_lines():
        tell(f"label {line}")
    for found in corpus.findings:
        tell(f"found: {found}")
    chosen = protocol(scenario.protocol or "default", corpus)
    for found in chosen.findings:
        tell(f"{chosen.name}: {found}")
    table = _features(chosen.corpus, scenario, cache, tell, progress)
    chosen = _usable(chosen, table)
    if scenario.neutral_clips and NEUTRAL not in chosen.corpus.emotions:
        raise SettingError(
            f"enrolment is {scenario.enrolment} and corpus {corpus.name} has no neutral clip; it "
            "must be none or all"
        )
    exclusions = dict(Counter(_fault(entry) for entry in table.excluded)) | {
        found.what: found.count for found in corpus.findings if "left out" in found.action
    }
    return Heard(protocol=chosen, table=table, exclusions=exclusions)


def _usable(chosen: Protocol, table: FeatureTable) -> Protocol:
    """The protocol without the clips that have no features.

    Raises:
        CorpusError: A speaker has none left, or a fold has no clip of a class to train on.
    """
    usable = tuple(clip for clip in chosen.corpus.clips if clip.clip_id in table.features)
    if len(usable) == len(chosen.corpus.clips):
        return chosen
    speakers = {clip.speaker for clip in usable}
    silent = [name for name in chosen.corpus.speakers if name not in speakers]
    if silent:
        raise CorpusError(
            f"no clip of {', '.join(silent[:5])} can be used; remove them from the corpus"
        )
    corpus = replace(chosen.corpus, clips=usable)
    if len(corpus.emotions) < 2:
        raise CorpusError(
            f"corpus {corpus.name} has usable clips of one class only, {corpus.emotions[0]}; "
            "recognition needs at least 2"
        )
    check_classes(corpus, chosen.folds)
    return replace(chosen, corpus=corpus)


_FAULTS = (
    "cannot be read as audio",
    "cannot be read",
    "holds no samples",
    "holds NaN or infinite samples",
    "is longer than",
    "peaks at",
    "values that are not finite",
    "silent",
    "too short",
)


def _fault(entry: Exclusion) -> str:
    """The kind of fault, to count by; the full reason names the file."""
    return next((fault for fault in _FAULTS if fault in entry.reason), "cannot be used")


def _features(
    corpus: Corpus, scenario: Scenario, cache: FeatureCache, tell: Tell, progress: Progress
) -> FeatureTable:
    """Features of a corpus, with an account of what was left out."""
    before = cache.corrupt
    table = recalled(corpus.clips, scenario.encoder, cache)
    damaged = cache.corrupt - before
    if table is None:
        table = features(
            corpus.clips,
            scenario.encoder,
            cache,
            workers=max(scenario.workers, os.cpu_count() or 1),
            progress=lambda done, total: progress(f"features of {corpus.name}", done, total),
        )
    for line in left_out(table):
        tell(line)
    if damaged:
        tell(f"{damaged} damaged cache entries were computed again")
    return table


def left_out(table: FeatureTable) -> tuple[str, ...]:
    """What to say of the clips that cannot be used."""
    return tuple(f"left out: {entry.clip_id}: {entry.reason}" for entry in table.excluded)


def hear_public(scenario: Scenario, heard: Heard, tell: Tell, progress: Progress) -> list[Spoken]:
    """Open the public corpora; none for models that need none. Features come when asked for."""
    if scenario.recipe.model not in HEADS_ON_FROZEN:
        return []
    if not scenario.public:
        tell("no corpus is declared public: the front is fitted on made-up voices")
    spoken: list[Spoken] = []
    for name, data in scenario.public or (FRONT_ONLY,):
        corpus = open_corpus(name, data)
        contents, decided_by = named(corpus.clips, scenario.encoder)
        _check_apart(name, heard.table, contents)
        read = partial(_read_public, corpus, scenario, tell, progress)
        spoken.append((corpus.clips, PublicFeatures(decided_by, read)))
    return spoken


def _read_public(
    corpus: Corpus, scenario: Scenario, tell: Tell, progress: Progress
) -> FeatureTable:
    """Features of a public corpus, by a cache opened for them."""
    with FeatureCache(cache_folder()) as cache:
        return _features(corpus, scenario, cache, tell, progress)


def _check_apart(name: str, users: FeatureTable, public: Mapping[str, str]) -> None:
    """Refuse a public corpus that holds a user's recording, under whatever name.

    Raises:
        CorpusError: It holds some: what is learned from it would be no public fact.
    """
    own = {users.contents[clip]: clip for clip in users.features}
    shared = [own[content] for content in public.values() if content in own]
    if shared:
        raise CorpusError(
            f"{len(shared)} recordings of the users' corpus are in the public corpus {name} too "
            f"({', '.join(shared[:3])}); no recording can be both: leave them out of one"
        )
