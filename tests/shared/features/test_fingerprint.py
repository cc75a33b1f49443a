"""Contracts of fingerprints: whatever decides a value is in the hash."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sottovoce.shared.errors import FeatureError
from sottovoce.shared.features import fingerprint, whisper

HERE = "sottovoce.shared.features"
ASKED = {"name": "a", "module": f"{HERE}.log_mel", "settings": {"bands": 64}, "weights": "00"}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    fingerprint.hash_sources.cache_clear()
    yield
    fingerprint.hash_sources.cache_clear()


def test_code_that_counts_is_found_through_imports() -> None:
    counted = fingerprint.hash_sources(whisper.__name__).keys()

    assert {
        f"{HERE}.whisper",
        f"{HERE}.whisper_weights",
        "sottovoce.shared.audio.signal",
    } <= counted
    assert f"{HERE}.cache" not in counted
    assert f"{HERE}.descriptors" not in counted
    assert f"{HERE}.spectral" in fingerprint.hash_sources(f"{HERE}.log_mel")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "b"},
        {"module": f"{HERE}.descriptors"},
        {"settings": {"bands": 65}},
        {"weights": "01"},
    ],
)
def test_every_argument_counts(change: dict[str, object]) -> None:
    before = fingerprint.compute_fingerprint(**ASKED)  # type: ignore[arg-type]

    assert before == fingerprint.compute_fingerprint(**ASKED)  # type: ignore[arg-type]
    assert before != fingerprint.compute_fingerprint(**{**ASKED, **change})  # type: ignore[arg-type]


def test_an_edit_of_used_code_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint.compute_fingerprint(**ASKED)  # type: ignore[arg-type]
    real = fingerprint._source

    def edited(module: str) -> Path:
        if not module.endswith(".spectral"):
            return real(module)
        copy = tmp_path / "spectral.py"
        copy.write_bytes(real(module).read_bytes() + b"# edited\n")
        return copy

    monkeypatch.setattr(fingerprint, "_source", edited)
    fingerprint.hash_sources.cache_clear()

    assert fingerprint.compute_fingerprint(**ASKED) != before  # type: ignore[arg-type]


def test_a_library_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint.compute_fingerprint(**ASKED)  # type: ignore[arg-type]
    monkeypatch.setattr(torch, "__version__", "0.0.1")

    assert fingerprint.compute_fingerprint(**ASKED) != before  # type: ignore[arg-type]


def test_code_without_source_is_refused() -> None:
    with pytest.raises(FeatureError, match="is not installed"):
        fingerprint.hash_sources("sottovoce.shared.no_such_module")
