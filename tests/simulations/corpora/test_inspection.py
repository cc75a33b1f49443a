import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.simulations.corpora import inspect_corpus, open_corpus
from sottovoce.simulations.corpora.inspection import find_silent_speakers

WriteWav = Callable[..., Path]


@pytest.fixture
def ward(tmp_path: Path, wav: WriteWav) -> Path:
    """A folder with one clip of every ailment."""
    wav("fine.wav")
    wav("quiet.wav", level=0.0005)
    wav("silent.wav", level=0.0)
    (tmp_path / "broken.wav").write_bytes(b"RIFF, or so it says, and then nothing of the kind")
    header = wav("fine2.wav").read_bytes()[:44]
    (tmp_path / "nothing.wav").write_bytes(header[:40] + struct.pack("<I", 0))
    nan = struct.pack("<4f", *[float("nan")] * 4)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32)
    body = b"WAVE" + form + b"data" + struct.pack("<I", len(nan)) + nan
    (tmp_path / "nan.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    names = ("fine", "quiet", "silent", "broken", "nothing", "nan")
    rows = "".join(f"{name}.wav,{name[0]},sad,f\n" for name in names)
    (tmp_path / "manifest.csv").write_text("path,speaker,emotion,gender\n" + rows)
    return tmp_path


def test_every_ailment_is_told_apart(ward: Path) -> None:
    progress: list[int] = []

    report = inspect_corpus(open_corpus("folder", ward), on_progress=progress.append)

    assert {k: v for k, v in report.verdicts.items() if k != "noisy"} == {
        "unreadable": 1,
        "zero-length": 1,
        "not finite": 1,
        "silent": 1,
        "quiet": 1,
    }
    assert progress == [1, 2, 3, 4, 5, 6]


def test_the_report_counts_and_can_be_printed(ward: Path) -> None:
    report = inspect_corpus(open_corpus("folder", ward))

    assert report.emotions == {"sad": 6}
    assert report.genders == {"female": 6}
    assert report.speakers["n"] == 2
    assert report.seconds == pytest.approx(0.9)
    assert json.loads(json.dumps(report.to_dict()))["clips"] == 6
    text = "\n".join(report.format_lines())
    assert "found: silent clips: 1, left out when features are computed (silent.wav)" in text


def test_clean_clips_are_called_clean() -> None:
    report = inspect_corpus(open_corpus("synthetic", "speakers=2,clips=6"))

    assert report.verdicts == {}
    assert report.format_lines()[-1] == "found: nothing wrong"


def test_a_speaker_without_a_usable_clip_is_found(ward: Path) -> None:
    assert find_silent_speakers(open_corpus("folder", ward)) == ["b", "n", "s"]
