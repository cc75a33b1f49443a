"""Features of whole corpora: computed once in worker processes, then read from the cache."""

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from sottovoce.shared.audio import Signal, quality
from sottovoce.shared.audio.quality import QualityReport
from sottovoce.shared.errors import (
    AudioError,
    CorpusError,
    EngineError,
    FeatureError,
    RecordingFault,
    SettingError,
)
from sottovoce.shared.features import registry
from sottovoce.shared.features.cache import CacheEntry, FeatureCache
from sottovoce.shared.features.fingerprint import hash_source, hash_sources
from sottovoce.shared.features.registry import Extractor

CHUNK_RECORDINGS = 16
"""Recordings a worker gets, and the cache commits, at a time."""

MAX_IN_PROCESS_S = 8.0
"""Work of so many seconds is done in this process: to start workers, each of which imports torch,
takes cores about as long."""


class Recording(Protocol):
    """Recording to compute features of, such as ``corpora.corpus.Clip``. Must survive pickling."""

    @property
    def clip_id(self) -> str:
        """Its name within the corpus."""

    def content_key(self) -> str:
        """SHA-256 of all that decides its sound; ``AudioError`` when it cannot be read."""

    def load_signal(self) -> Signal:
        """Its sound; ``AudioError`` when it cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """A recording without features.

    Attributes:
        clip_id: Which.
        reason: Why, fit for a report.
        fault: Its kind, to count by.
    """

    clip_id: str
    reason: str
    fault: RecordingFault = RecordingFault.OTHER


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FeatureTable:
    """Features of the usable recordings of a corpus, and an account of the others.

    Attributes:
        extractor: Name of what computed them.
        fingerprint: Hash of all that decides the values.
        features: By clip, in the order of the recordings: (features,) or (frames, features),
            float32, finite.
        content_keys: Content key by clip, of all whose bytes could be read.
        quality: What the gate measured by clip, of all that could be decoded.
        excluded: Recordings without features, in their order.
        computed_count: Recordings decoded and computed now; the others came from the cache.
        corrupt_count: Damaged cache entries met and replaced.
        seconds: Time that all of it took.
    """

    extractor: str
    fingerprint: str
    features: Mapping[str, Tensor]
    content_keys: Mapping[str, str]
    quality: Mapping[str, QualityReport]
    excluded: tuple[Exclusion, ...]
    computed_count: int
    corrupt_count: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RecordingIndex:
    """Recordings by their content, for one extractor.

    Attributes:
        recordings: In their order.
        extractor: The extractor's name.
        fingerprint: Hash of all that decides the values.
        contents: Content key by clip, of all whose bytes could be read.
        unreadable: What is wrong with the others, by clip.
    """

    recordings: Sequence[Recording]
    extractor: str
    fingerprint: str
    contents: Mapping[str, str]
    unreadable: Mapping[str, AudioError]

    @classmethod
    def build(cls, recordings: Sequence[Recording], extractor: str) -> Self:
        """Read the content key of every recording.

        Args:
            recordings: With names that are unique.
            extractor: Name, as ``registry.create_extractor`` takes it.

        Raises:
            SettingError: The extractor is not known.
        """
        fingerprint = fingerprint_extractor(registry.create_extractor(extractor))
        contents: dict[str, str] = {}
        unreadable: dict[str, AudioError] = {}
        for recording in recordings:
            try:
                contents[recording.clip_id] = recording.content_key()
            except AudioError as error:
                unreadable[recording.clip_id] = error
        return cls(
            recordings=recordings,
            extractor=extractor,
            fingerprint=fingerprint,
            contents=contents,
            unreadable=unreadable,
        )

    def cached_entries(self, cache: FeatureCache) -> dict[str, CacheEntry]:
        """Read the entries that the cache has, by content."""
        wanted = dict.fromkeys(self.contents.values())
        found = ((content, cache.get_entry(content, self.fingerprint)) for content in wanted)
        return {content: entry for content, entry in found if entry is not None}

    def build_table(
        self, entries: Mapping[str, CacheEntry], *, computed: int, corrupt: int, started: float
    ) -> FeatureTable:
        """Put entries, by content, into the order of the recordings.

        Args:
            entries: One for every content.
            computed: Recordings decoded and computed now.
            corrupt: Damaged cache entries met and replaced.
            started: When the work began, by ``time.monotonic``.
        """
        found: dict[str, Tensor] = {}
        qualities: dict[str, QualityReport] = {}
        excluded: list[Exclusion] = []
        for clip_id in (recording.clip_id for recording in self.recordings):
            if clip_id in self.unreadable:
                error = self.unreadable[clip_id]
                excluded.append(Exclusion(clip_id=clip_id, reason=str(error), fault=error.kind))
                continue
            entry = entries[self.contents[clip_id]]
            verdict = json.loads(entry.note)
            if verdict["quality"]:
                qualities[clip_id] = QualityReport.from_json(verdict["quality"])
            if entry.features is None:
                fault = RecordingFault(verdict["fault"])
                excluded.append(Exclusion(clip_id=clip_id, reason=verdict["reason"], fault=fault))
            else:
                found[clip_id] = entry.features
        return FeatureTable(
            extractor=self.extractor,
            fingerprint=self.fingerprint,
            features=found,
            content_keys=self.contents,
            quality=qualities,
            excluded=tuple(excluded),
            computed_count=computed,
            corrupt_count=corrupt,
            seconds=time.monotonic() - started,
        )


def extract_features(
    recordings: Sequence[Recording],
    extractor: str,
    cache: FeatureCache,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> FeatureTable:
    """Compute the features of recordings, or fetch those that were computed before.

    Each recording is computed alone on one thread, so the number of workers changes nothing. The
    gate's verdict is cached as well: a second run decodes no audio. Recordings of equal content
    are computed once. Finished work is committed as it comes: an interrupted run goes on from
    there.

    Args:
        recordings: With names that are unique.
        extractor: Name, as ``registry.create_extractor`` takes it.
        cache: Where features are kept.
        workers: Processes, 0 for this one alone; None for one a core.
        on_progress: Called in this process with (done, total) recordings.

    Returns:
        The table. Unreadable and unusable recordings are listed in it, never raised.

    Raises:
        SettingError: The extractor is not known, or the number of workers is below 0.
        CorpusError: Two recordings share a name.
        FeatureError: The cache cannot be used, or weights cannot be downloaded.
        ModelError: Weights are damaged.
        EngineError: A worker process died.
    """
    started = time.monotonic()
    corrupt_before = cache.corrupt_count
    _require_unique(recordings)
    index = RecordingIndex.build(recordings, extractor)
    contents, entries = index.contents, index.cached_entries(cache)
    # Of recordings with equal content the first one is computed.
    missing = [
        recording
        for content, recording in {
            contents[one.clip_id]: one for one in reversed(recordings) if one.clip_id in contents
        }.items()
        if content not in entries
    ][::-1]
    report = on_progress or (lambda *_: None)
    done = len(recordings) - len(missing)
    report(done, len(recordings))
    for chunk in _compute_chunks(missing, extractor, workers=_worker_count(workers)):
        fresh = {contents[clip_id]: entry for clip_id, entry in chunk}
        cache.put_entries((content, index.fingerprint, entry) for content, entry in fresh.items())
        entries |= fresh
        done += len(chunk)
        report(done, len(recordings))
    return index.build_table(
        entries,
        computed=len(missing),
        corrupt=cache.corrupt_count - corrupt_before,
        started=started,
    )


def _require_unique(recordings: Sequence[Recording]) -> None:
    """Raise where a name stands twice."""
    seen: set[str] = set()
    for recording in recordings:
        if recording.clip_id in seen:
            raise CorpusError(
                f"clip {recording.clip_id} is there twice; give every clip its own clip_id"
            )
        seen.add(recording.clip_id)


def fingerprint_extractor(chosen: Extractor) -> str:
    """Hash an extractor's fingerprint, and the code that decides what is excluded."""
    gate = [chosen.fingerprint, hash_sources(quality.__name__), hash_source(__name__)]
    return hashlib.sha256(json.dumps(gate, sort_keys=True).encode()).hexdigest()


def _worker_count(workers: int | None) -> int:
    """How many processes; one a core that this process may use where nobody says."""
    if workers is None:
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    if workers < 0:
        raise SettingError(f"workers is {workers}; it must be 0 (this process) or above")
    return workers


Chunk = list[tuple[str, CacheEntry]]


def _compute_chunks(
    missing: Sequence[Recording], extractor: str, *, workers: int
) -> Iterator[Chunk]:
    """Entries of recordings by clip, chunk by chunk, in the order in which they are done."""
    # A worker process would not know an extractor that this one registered.
    alone = workers == 0 or registry.is_registered(extractor)
    if not alone:
        left_s = 0.0
        # The first recording loads what the extractor needs; the second shows how long one takes.
        for recording in missing[:2]:
            started = time.monotonic()
            entry = _compute_here([recording], extractor)
            left_s = (time.monotonic() - started) * (len(missing) - 2)
            yield entry
        missing = missing[2:]
        alone = left_s <= MAX_IN_PROCESS_S
    chunks = [
        missing[at : at + CHUNK_RECORDINGS] for at in range(0, len(missing), CHUNK_RECORDINGS)
    ]
    if alone or not chunks:
        for chunk in chunks:
            yield _compute_here(chunk, extractor)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(chunks)), multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        futures: list[Future[Chunk]] = [pool.submit(_compute, chunk, extractor) for chunk in chunks]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise EngineError(
            "a worker died while computing features, perhaps for want of memory; "
            "try fewer workers (a script needs `if __name__ == '__main__':` around its calls)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """One thread a process: faster for short clips, and the same sums everywhere."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Do not outlive a parent that was killed: the pool's queue would be waited on for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _compute_here(chunk: Sequence[Recording], extractor: str) -> Chunk:
    """Compute in this process as a worker would, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _compute(chunk, extractor)
    finally:
        torch.set_num_threads(before)


def _compute(chunk: Sequence[Recording], extractor: str) -> Chunk:
    """Entries of recordings, in order."""
    chosen = registry.create_extractor(extractor)
    return [(recording.clip_id, _entry(recording, chosen)) for recording in chunk]


def _entry(recording: Recording, chosen: Extractor) -> CacheEntry:
    """Decode, gate and extract; what cannot be used gives an entry without features."""
    try:
        recorded = recording.load_signal()
    except AudioError as error:
        return _excluded_entry(str(error), error.kind, None)
    measured = quality.measure_quality(recorded)
    if measured.fault:
        return _excluded_entry(measured.flag_summary, measured.fault, measured)
    try:
        computed = chosen(recorded)
    except (RuntimeError, ValueError, IndexError) as error:
        raise FeatureError(f"{chosen.name} failed on {recording.clip_id}: {error}") from error
    if not bool(computed.isfinite().all()):
        reason = f"{chosen.name} gave values that are not finite"
        return _excluded_entry(reason, RecordingFault.BAD_FEATURES, measured)
    return CacheEntry(features=computed, note=_note("", "", measured))


def _excluded_entry(
    reason: str, fault: RecordingFault, measured: QualityReport | None
) -> CacheEntry:
    """An entry that says why there are no features."""
    return CacheEntry(features=None, note=_note(reason, fault.value, measured))


def _note(reason: str, fault: str, measured: QualityReport | None) -> str:
    """Verdict and figures as JSON."""
    figures = measured.to_json() if measured else None
    return json.dumps({"reason": reason, "fault": fault, "quality": figures})
