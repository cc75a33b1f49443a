"""Contracts of feature tables: the same for any number of workers, cached, and accounted for."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import soundfile
import torch

from sottovoce.shared.audio import Signal
from sottovoce.shared.audio.quality import QualityFlag
from sottovoce.shared.errors import AudioError, CorpusError, RecordingFault, SettingError
from sottovoce.shared.features.cache import CacheEntry, FeatureCache
from sottovoce.shared.features.fingerprint import hash_sources
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.data import feature_extraction as table
from sottovoce.simulations.data.feature_extraction import Exclusion, extract_features


def sound(seed: int, *, seconds: float = 0.5) -> Signal:
    time = torch.arange(int(16_000 * seconds)) / 16_000
    rng = torch.Generator().manual_seed(seed)
    wave = torch.sin(2 * math.pi * (100 + 10 * seed) * time) * torch.sin(2 * math.pi * 3 * time)
    return Signal((0.2 * wave + 0.001 * torch.randn(len(time), generator=rng))[None], 16_000)


@dataclass
class Fake:
    """A recording that counts how often it is decoded."""

    clip_id: str
    sound: Signal
    key: str = ""
    decoded: list[str] = field(default_factory=list)

    def content_key(self) -> str:
        if self.key == "unreadable":
            raise AudioError("no such file")
        return self.key or self.clip_id

    def load_signal(self) -> Signal:
        self.decoded.append(self.clip_id)
        return self.sound


def fakes(count: int) -> list[Fake]:
    return [Fake(f"clip-{n}", sound(n)) for n in range(count)]


def test_a_second_run_decodes_nothing_and_gives_the_same(tmp_path: Path) -> None:
    silent = Fake("silent", Signal(torch.zeros(1, 16_000), 16_000))
    recordings = [*fakes(3), silent]
    with FeatureCache(tmp_path) as cache:
        first = extract_features(recordings, "log-mel", cache, workers=0)
        second = extract_features(recordings, "log-mel", cache, workers=0)

    assert [recording.decoded for recording in recordings] == [[r.clip_id] for r in recordings]
    assert first.computed_count == 4
    assert second.computed_count == 0
    assert list(first.features) == list(second.features) == ["clip-0", "clip-1", "clip-2"]
    for name in first.features:
        assert torch.equal(first.features[name], second.features[name])
    assert first.excluded == second.excluded
    assert first.quality == second.quality


def test_what_cannot_be_used_is_listed_with_reasons_in_order(tmp_path: Path) -> None:
    class Broken(Fake):
        def load_signal(self) -> Signal:
            raise AudioError("not finite", kind=RecordingFault.NOT_FINITE)

    recordings = [
        Fake("gone", sound(0), key="unreadable"),
        Fake("silent", Signal(torch.zeros(1, 16_000), 16_000)),
        Fake("fine", sound(1)),
        Broken("broken", sound(2)),
        Fake("short", sound(3, seconds=0.1)),
    ]

    found = extract_features(recordings, "log-mel", FeatureCache(tmp_path), workers=0)

    assert list(found.features) == ["fine"]
    assert [item.clip_id for item in found.excluded] == ["gone", "silent", "broken", "short"]
    assert found.excluded[0] == Exclusion(clip_id="gone", reason="no such file")
    for item, word in zip(found.excluded[1:], ("silent", "not finite", "too short"), strict=True):
        assert word in item.reason
    assert [item.fault for item in found.excluded] == [
        RecordingFault.OTHER,
        RecordingFault.SILENT,
        RecordingFault.NOT_FINITE,
        RecordingFault.TOO_SHORT,
    ]
    assert found.content_keys.keys() == {"silent", "fine", "broken", "short"}
    assert found.quality["silent"].flags & QualityFlag.SILENT
    assert "broken" not in found.quality


def test_equal_contents_are_computed_once_and_reported(tmp_path: Path) -> None:
    recordings = [Fake("a", sound(0), "same"), Fake("b", sound(1)), Fake("c", sound(0), "same")]

    found = extract_features(recordings, "log-mel", FeatureCache(tmp_path), workers=0)

    assert sum(len(recording.decoded) for recording in recordings) == 2
    assert found.content_keys["a"] == found.content_keys["c"] != found.content_keys["b"]
    assert torch.equal(found.features["a"], found.features["c"])


def test_another_extractor_finds_nothing_in_the_cache(tmp_path: Path) -> None:
    recordings = fakes(2)
    cache = FeatureCache(tmp_path)

    assert extract_features(recordings, "log-mel", cache, workers=0).computed_count == 2
    assert extract_features(recordings, "descriptors", cache, workers=0).computed_count == 2


def test_the_gate_decides_too_and_other_extractors_do_not() -> None:
    gate = hash_sources("sottovoce.shared.audio.quality")
    extractor = hash_sources("sottovoce.shared.features.log_mel")

    # What an entry's name is made of, besides this module's own source.
    assert "sottovoce.shared.audio.signal" in gate
    assert not [name for name in gate | extractor if name.endswith((".pitch", ".cache"))]


def test_damaged_entries_are_counted_and_computed_again(tmp_path: Path) -> None:
    recordings = fakes(2)
    cache = FeatureCache(tmp_path)
    first = extract_features(recordings, "log-mel", cache, workers=0)
    with cache._connection:
        cache._connection.execute("UPDATE features SET checksum = x'00' WHERE content = 'clip-0'")

    again = extract_features(recordings, "log-mel", cache, workers=0)

    assert again.corrupt_count == 1
    assert again.computed_count == 1
    assert torch.equal(first.features["clip-0"], again.features["clip-0"])
    assert extract_features(recordings, "log-mel", cache, workers=0).corrupt_count == 0


def test_values_that_are_not_finite_are_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sottovoce.shared.features.log_mel.LogMel.__call__",
        lambda self, signal: torch.full((3, 64), torch.nan),
    )

    found = extract_features(fakes(1), "log-mel", FeatureCache(tmp_path), workers=0)

    assert found.features == {}
    assert "not finite" in found.excluded[0].reason


def test_progress_reaches_the_end_and_the_thread_count_is_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    seen: list[tuple[int, int]] = []

    extract_features(
        fakes(20),
        "log-mel",
        FeatureCache(tmp_path),
        workers=0,
        on_progress=lambda done, total: seen.append((done, total)),
    )

    assert seen[0] == (0, 20)
    assert seen[-1] == (20, 20)
    assert seen == sorted(seen)
    assert torch.get_num_threads() == before


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    recordings = fakes(40)
    cache = FeatureCache(tmp_path)

    def stop(done: int, total: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(recordings, "log-mel", cache, workers=0, on_progress=stop)

    assert extract_features(recordings, "log-mel", cache, workers=0).computed_count == 24


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    with pytest.raises(CorpusError, match="clip-0 is there twice"):
        extract_features(fakes(1) * 2, "log-mel", cache)
    with pytest.raises(SettingError, match="workers"):
        extract_features(fakes(1), "log-mel", cache, workers=-1)
    with pytest.raises(SettingError, match="log-mel"):
        extract_features(fakes(1), "no-such-extractor", cache)
    assert extract_features([], "log-mel", cache).features == {}


def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_IN_PROCESS_S", -math.inf)
    monkeypatch.setattr(table, "CHUNK_RECORDINGS", 3)
    clips = []
    for n in range(12):
        path = tmp_path / f"{n}.wav"
        soundfile.write(path, sound(n).samples[0].numpy(), 16_000, subtype="FLOAT")
        clips.append(
            Clip(clip_id=path.name, speaker="s", emotion="neutral", label="neutral", path=path)
        )
    (tmp_path / "7.wav").write_bytes(b"not sound")

    name = "whisper-tiny-en+descriptors"
    alone = extract_features(clips, name, FeatureCache(tmp_path / "one"), workers=0)
    many = extract_features(clips, name, FeatureCache(tmp_path / "two"), workers=2)

    assert list(alone.features) == list(many.features)
    assert len(many.features) == 11
    assert alone.excluded == many.excluded
    for clip_id, values in alone.features.items():
        assert torch.equal(values, many.features[clip_id]), clip_id


def test_a_cached_verdict_is_json(tmp_path: Path) -> None:
    entry = table._compute(fakes(1), "log-mel")[0][1]

    assert isinstance(entry, CacheEntry)
    assert json.loads(entry.note)["reason"] == ""
