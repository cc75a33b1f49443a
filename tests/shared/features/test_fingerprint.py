"""Contracts of fingerprints: whatever decides a value is in the hash."""

import sys
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


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose module ``entry`` uses others, in every way there is."""
    folder = tmp_path / "voicelab"
    folder.mkdir()
    sources = {
        "__init__": "",
        "entry": (
            "from typing import TYPE_CHECKING\n"
            "import voicelab.plain\n"
            "from voicelab import named as other\n"
            "from voicelab.inner import value\n"
            "if TYPE_CHECKING:\n    from voicelab.hints import Hint\n"
            "def late():\n    from voicelab.late import later\n"
        ),
        "plain": "import voicelab.deep",
        "inner": "value = 1",
        **dict.fromkeys(("named", "deep", "late", "hints", "unrelated"), ""),
    }
    for name, text in sources.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "voicelab", raising=False)  # of the test before
    return folder


@pytest.mark.parametrize("module", ["entry", "plain", "named", "inner", "deep", "late"])
def test_an_edit_of_used_code_counts(package: Path, module: str) -> None:
    asked = ASKED | {"module": "voicelab.entry"}
    before = fingerprint.compute_fingerprint(**asked)  # type: ignore[arg-type]

    with (package / f"{module}.py").open("a") as file:
        file.write("\n# edited")
    fingerprint.hash_sources.cache_clear()

    assert fingerprint.compute_fingerprint(**asked) != before  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["__init__", "hints", "unrelated"])
def test_an_edit_of_other_code_does_not(package: Path, module: str) -> None:
    asked = ASKED | {"module": "voicelab.entry"}
    before = fingerprint.compute_fingerprint(**asked)  # type: ignore[arg-type]

    (package / f"{module}.py").write_text("# edited")
    fingerprint.hash_sources.cache_clear()

    assert fingerprint.compute_fingerprint(**asked) == before  # type: ignore[arg-type]


def test_a_library_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint.compute_fingerprint(**ASKED)  # type: ignore[arg-type]
    monkeypatch.setattr(torch, "__version__", "0.0.1")

    assert fingerprint.compute_fingerprint(**ASKED) != before  # type: ignore[arg-type]


def test_code_without_source_is_refused() -> None:
    with pytest.raises(FeatureError, match="is not installed"):
        fingerprint.hash_sources("sottovoce.shared.no_such_module")
