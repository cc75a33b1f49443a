"""Fixtures that every room's tests may use."""

import json
import math
import os
import shutil
import struct
import warnings
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Workers of the suite share the cores, and so do the processes that tests start. Whoever starts
# torch reads it once, when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
with warnings.catch_warnings():  # Flower brings a typer that click 8.3 warns about
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.app  # noqa: F401

_BESIDE = Path(__file__).resolve().parent.parent.parent / "shared" / "corpora"


# A loaded machine is no fault of what is tested.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")

_MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108  (pytest makes a folder of its own in it)
_MEMORY_NEEDED = 4 * 2**30


def pytest_configure() -> None:
    """Keep temporary files in memory, where there is plenty.

    Tests sync tens of thousands of small files, and would wait for a disk most of their time. Set
    ``PYTEST_DEBUG_TEMPROOT`` or ``--basetemp`` to have them elsewhere.
    """
    if os.access(_MEMORY_FOLDER, os.W_OK):
        found = os.statvfs(_MEMORY_FOLDER)
        runs_programs = not found.f_flag & os.ST_NOEXEC
        if runs_programs and found.f_bavail * found.f_frsize > _MEMORY_NEEDED:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY_FOLDER))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first, so that none of them is what all other workers wait for in the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def corpora_dir() -> Path:
    """The folder of real corpora; the test is skipped, saying so, where there is none."""
    folder = Path(os.environ.get("SOTTOVOCE_CORPORA", _BESIDE))
    if not folder.is_dir():
        pytest.skip("no real corpora: neither ../shared/corpora nor $SOTTOVOCE_CORPORA exists")
    return folder


WriteWav = Callable[..., None]
MakeCorpus = Callable[..., Path]
_PITCH = {"neutral": 0.0, "angry": 0.5, "happy": 1.0, "sad": -0.5}
"""How far a hum's pitch lies above the speaker's own, in octaves; other labels by their place."""


@pytest.fixture(scope="session")
def write_wav() -> WriteWav:
    """Writes a hum as 16-bit WAV, with nothing but the standard library."""

    def write(
        path: Path,
        *,
        hertz: float = 120.0,
        seconds: float = 0.5,
        rate: int = 16_000,
        channels: int = 1,
        level: float = 0.3,
    ) -> None:
        times = [index / rate for index in range(int(seconds * rate))]
        # A few harmonics under a syllable's envelope: voiced enough for every descriptor.
        samples = [
            level
            * math.sin(math.pi * (4 * t % 1))
            * sum(math.sin(2 * math.pi * hertz * k * t) / k for k in (1, 2, 3))
            / 2
            for t in times
        ]
        words = [max(-32767, min(32767, int(32767 * s))) for s in samples for _ in range(channels)]
        with wave.open(str(path), "wb") as file:
            file.setparams((channels, 2, rate, 0, "NONE", ""))
            file.writeframes(struct.pack(f"<{len(words)}h", *words))

    return write


@pytest.fixture(scope="session")
def make_corpus(write_wav: WriteWav) -> MakeCorpus:
    """Writes a manifest corpus of hums; its path is the folder."""

    def make(
        folder: Path,
        *,
        speakers: int = 4,
        clips: int = 8,
        labels: Sequence[str] = ("angry", "neutral"),
        rates: Sequence[int] = (16_000,),
        hertz: float = 90.0,
    ) -> Path:
        folder.mkdir(parents=True)
        rows = ["path,speaker,emotion"]
        for person in range(speakers):
            for number in range(clips):
                label = labels[number % len(labels)]
                shift = _PITCH.get(label, labels.index(label) / len(labels))
                name = f"s{person:02d}_{number:02d}.wav"
                pitch = hertz * 2 ** (shift + person / speakers) + number
                write_wav(folder / name, hertz=pitch, rate=rates[(person + number) % len(rates)])
                rows.append(f"{name},s{person:02d},{label}")
        (folder / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        return folder

    return make


@dataclass(frozen=True)
class TinyRun:
    """A finished run on hums, and what it was made of; copy it before touching it."""

    folder: Path
    scenario: Path
    users: Path
    public: Path


MakeScenario = Callable[..., Path]


@pytest.fixture(scope="session")
def make_scenario() -> MakeScenario:
    """Writes a scenario over two manifest corpora that runs in a second or two."""

    def make(path: Path, users: Path, public: Path, **changes: object) -> Path:
        usual = {
            "encoder": "descriptors",
            "protocol": "holdout",
            "rounds": 2,
            "labelled_clips_per_user": 2,
        }
        settings = {"corpus": "folder", "data": str(users)} | usual | changes
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        lines += ["[[public]]", 'name = "folder"', f"data = {json.dumps(str(public))}"]
        path.write_text(
            "\n".join([*lines, "[recipe.projection]", "dims = 8", ""]), encoding="utf-8"
        )
        return path

    return make


@pytest.fixture(scope="session")
def tiny_run(
    tmp_path_factory: pytest.TempPathFactory, make_corpus: MakeCorpus, make_scenario: MakeScenario
) -> TinyRun:
    """One private run, started as a user starts it."""
    from sottovoce.cli import main

    home = tmp_path_factory.mktemp("tiny")
    users = make_corpus(home / "users")
    public = make_corpus(home / "public", speakers=6, clips=5, hertz=97.3)
    scenario = make_scenario(home / "tiny.toml", users, public)
    assert main.main(["simulate", str(scenario), "--out", str(home / "run"), "--quiet"]) == 0
    return TinyRun(home / "run", scenario, users, public)


@pytest.fixture(scope="session")
def exported_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of made-up weights, exported."""
    from builders import build_whisper_package

    from sottovoce.shared.exported.export import export_model
    from sottovoce.shared.exported.graph_writer import WeightType

    folder = tmp_path_factory.mktemp("exported")
    export_model(build_whisper_package(), folder, weights=WeightType.INT8, card=b"# Card\n")
    return folder


@pytest.fixture
def example_folder(
    tiny_run: TinyRun, exported_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working folder of an example: a finished run, an exported model, a scenario, a sound."""
    shutil.copytree(tiny_run.folder, tmp_path / "runs" / "demo")
    shutil.copytree(exported_model, tmp_path / "exported")
    shutil.copy(tiny_run.scenario, tmp_path / "scenario.toml")
    shutil.copy(tiny_run.users / "s03_00.wav", tmp_path / "hello.wav")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the user's own feature cache."""
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("cache"))
        patch.setenv("SOTTOVOCE_CACHE", cache)
        patch.setenv("SOTTOVOCE_TEST_CACHE", cache)  # stays where a test has a cache of its own
        yield
