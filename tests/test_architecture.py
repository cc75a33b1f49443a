"""Rooms import one way, heavy libraries come in through known doors, and folders stay small."""

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parent.parent
PACKAGE = "sottovoce"

ARROWS: Mapping[str, frozenset[str]] = {
    "shared": frozenset({"shared"}),
    "client": frozenset({"shared", "client"}),
    "server": frozenset({"shared", "server"}),
    "simulations": frozenset({"shared", "client", "server", "simulations"}),
    "sottovoce": frozenset({"shared", "client", "server", "simulations", "cli"}),
}
"""Which rooms a room may import; the command line, in ``sottovoce/cli``, may import them all."""

PENDING_IMPORTS: Mapping[str, str] = {}
"""Imports against the arrows that are still there; none may be added."""

MAX_MODULES = 14
"""Most modules of a folder."""

PAGES = ("simulations/reports/*.py", "simulations/sweeps/page.py")
DOORS: Mapping[str, tuple[str, ...]] = {
    "flwr": (
        "client/app.py",
        "server/app.py",
        "server/federation/device_channel.py",
        "shared/protocol/flower_records.py",
        "simulations/engines/*.py",
    ),
    "ray": ("simulations/engines/ray.py", "simulations/engines/ray_cluster.py"),
    # The second accountant that verifies a run is Opacus' own; it trains nothing.
    "opacus": ("client/training/dp_sgd.py", "simulations/verification/second_accountant.py"),
    "dp_accounting": ("shared/privacy/accounting/*.py",),
    "torchaudio": ("shared/features/*.py",),
    "soundfile": ("shared/audio/decoding.py", "shared/features/*.py"),
    "onnx": (
        "shared/exported/encoder_graph.py",
        "shared/exported/graph_writer.py",
        "shared/exported/model_graph.py",
        "shared/exported/package_reader.py",
    ),
    "onnxruntime": (
        "shared/audio/speech_detector.py",
        "shared/exported/exported_model.py",
        "shared/features/fingerprint.py",
    ),
    # The local service of a device: nobody else speaks HTTP.
    "fastapi": ("client/service/*.py",),
    "starlette": ("client/service/*.py",),
    "pydantic": ("client/service/*.py",),
    "uvicorn": ("client/service/server.py",),
    "cryptography": ("shared/crypto.py",),
    "mpmath": ("shared/privacy/gaussian_noise.py",),
    "msgspec": ("shared/codec.py", "simulations/results/schema.py"),
    # A device needs none of these.
    "jinja2": PAGES,
    "matplotlib": PAGES,
    "pandas": (),
    "rich": ("sottovoce/cli/progress_bar.py",),
    "scipy": ("simulations/audit/bounds/*.py", "simulations/corpora/synthetic/*.py"),
    "sklearn": (),
    "tomli_w": ("simulations/scenario/scenario.py", "simulations/sweeps/runner.py"),
}
"""Through which files a library comes in; ``*`` crosses folders."""


def breaches(house: Path) -> list[str]:
    """Every import that breaks an arrow or misses its door, as ``file:line: what``."""
    return [
        f"{file.relative_to(house)}:{line}: {fault}"
        for room in ARROWS
        for file in sorted((house / room).rglob("*.py"))
        for line, module in _imports(file)
        if PENDING_IMPORTS.get(file.relative_to(house).as_posix()) != module
        for fault in _faults(file.relative_to(house).as_posix(), module)
    ]


def _faults(file: str, module: str) -> Iterator[str]:
    """What is wrong with one import."""
    top, _, rest = module.partition(".")
    room = file.partition("/")[0]
    if not top:
        yield f"imports {module}, which is relative; write {PACKAGE}.{room}..."
    elif top == PACKAGE:
        imported = rest.partition(".")[0]
        if imported in {*ARROWS, "cli"} - ARROWS[room]:
            yield f"imports {module}; {room} may import {', '.join(sorted(ARROWS[room]))}"
    elif top in ARROWS:
        yield f"imports {module} without {PACKAGE}., which makes it a second module"
    elif top in DOORS and not any(fnmatch(file, door) for door in DOORS[top]):
        yield f"imports {module}; its doors are {', '.join(DOORS[top]) or 'none'}"


def _imports(file: Path) -> Iterator[tuple[int, str]]:
    """All that a file imports, also inside functions, under a name, or by ``import_module``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield node.lineno, module
            if module == PACKAGE:  # from sottovoce import server
                yield from ((node.lineno, f"{PACKAGE}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, name) for name in _imported_by_name(node))


def _imported_by_name(call: ast.Call) -> Iterator[str]:
    """The module of an ``import_module("...")`` or ``__import__("...")``."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else None
    called = call.func.id if isinstance(call.func, ast.Name) else called
    if called in ("import_module", "__import__") and call.args:
        argument = call.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value


def modules(house: Path) -> dict[str, Path]:
    """Every module by the name that it is imported by."""
    files = (file for room in ARROWS for file in (house / room).rglob("*.py"))
    return {_module_name(file.relative_to(house)): file for file in files}


def _module_name(file: Path) -> str:
    name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    return name if name.partition(".")[0] == PACKAGE else f"{PACKAGE}.{name}"


def crowded_folders(house: Path) -> list[str]:
    """Folders with too many modules."""
    sizes = Counter(
        file.parent.relative_to(house).as_posix()
        for room in ARROWS
        for file in (house / room).rglob("*.py")
        if file.name != "__init__.py"
    )
    return [f"{folder}: {size}" for folder, size in sizes.items() if size > MAX_MODULES]


def test_no_import_breaks_an_arrow_or_misses_its_door() -> None:
    assert breaches(HOUSE) == []


def test_what_is_pending_is_still_there() -> None:
    """What was put right leaves the list, so that it cannot come back."""
    for file, module in PENDING_IMPORTS.items():
        assert module in {name for _, name in _imports(HOUSE / file)}


def test_no_folder_is_crowded() -> None:
    assert crowded_folders(HOUSE) == []


def test_a_crowded_folder_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "client" / "device"
    folder.mkdir(parents=True)
    for number in range(MAX_MODULES):
        (folder / f"m{number}.py").touch()
    (folder / "__init__.py").touch()
    assert crowded_folders(tmp_path) == []

    (folder / "one_more.py").touch()

    assert crowded_folders(tmp_path) == [f"client/device: {MAX_MODULES + 1}"]


def test_the_house_is_all_there() -> None:
    """An empty house would break nothing."""
    for room in ARROWS:
        assert len(list((HOUSE / room).rglob("*.py"))) > 5
    assert len(modules(HOUSE)) > 150
    for library, doors in DOORS.items():
        for door in doors:
            assert any(HOUSE.glob(door.replace("*.py", "**/*.py"))), (library, door)


def test_a_wheel_holds_every_folder() -> None:
    """setuptools is told names one by one; one that is forgotten is missed only once installed."""
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))
    packed = project["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(file.parent.relative_to(HOUSE).parts)
        for room in ARROWS
        for file in (HOUSE / room).rglob("*.py")
    }
    assert sorted(packed) == sorted(
        folder if folder.partition(".")[0] == PACKAGE else f"{PACKAGE}.{folder}"
        for folder in folders
    )


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        (
            "client/x.py",
            "from sottovoce.server.federation.training_job import Job",
            "client may import",
        ),
        (
            "client/x.py",
            "import sottovoce.server.federation.training_job as j",
            "client may import",
        ),
        ("client/x.py", "from sottovoce import server", "client may import"),
        ("server/x.py", "from sottovoce.client import device", "server may import"),
        (
            "shared/x.py",
            "from sottovoce.client.device.device import Device",
            "shared may import shared",
        ),
        ("shared/deep/er/x.py", "import sottovoce.simulations", "shared may import shared"),
        ("server/x.py", "def f():\n    from sottovoce.simulations import runs", "may import"),
        ("client/x.py", "if 0:\n    import sottovoce.server", "may import"),
        ("client/x.py", "import importlib as i; i.import_module('sottovoce.server')", "may import"),
        ("client/x.py", "__import__('opacus')", "doors are client/training/dp_sgd.py"),
        ("client/x.py", "import flwr.app", "its doors are"),
        ("shared/protocol/messages.py", "from flwr.app import RecordDict", "its doors are"),
        ("server/federation/coordinator.py", "from flwr.serverapp import Grid", "its doors are"),
        ("server/aggregation/server_optimizer.py", "from flwr.app import Message", "its doors are"),
        ("simulations/runs/fold.py", "import flwr", "its doors are"),
        ("simulations/engines/local.py", "import ray", "its doors are"),
        ("server/x.py", "import opacus.optimizers", "its doors are"),
        ("shared/privacy/ledger.py", "import dp_accounting", "its doors are"),
        ("shared/audio/quality.py", "import soundfile", "its doors are"),
        ("client/x.py", "from torchaudio import functional", "its doors are"),
        ("client/device/vault.py", "from cryptography import x509", "its doors are"),
        ("simulations/evaluation/metrics.py", "import scipy.stats", "its doors are simulations"),
        ("simulations/runs/progress.py", "import rich", "its doors are sottovoce/cli"),
        ("sottovoce/cli/sweep.py", "import matplotlib", "its doors are simulations"),
        ("server/x.py", "from matplotlib import pyplot", "its doors are simulations"),
        ("client/x.py", "from . import device", "relative"),
        ("client/x.py", "from ..shared import seeding", "relative"),
        ("client/x.py", "from shared import seeding", "second module"),
        ("simulations/x.py", "from sottovoce.cli.main import main", "simulations may import"),
    ],
)
def test_a_breach_is_seen(tmp_path: Path, file: str, line: str, fault: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")

    found = breaches(tmp_path)

    assert len(found) == 1
    assert found[0].startswith(file)
    assert fault in found[0]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("client/x.py", "from sottovoce.shared import seeding"),
        ("client/x.py", "from sottovoce import __version__"),
        ("server/federation/device_channel.py", "from flwr.serverapp import Grid"),
        ("simulations/engines/deep/x.py", "import flwr"),
        ("simulations/corpora/synthetic/x.py", "import scipy; from sottovoce.server import app"),
        ("sottovoce/cli/x.py", "from sottovoce.cli import main; from sottovoce.client import app"),
        ("client/x.py", "import numpy, torch, flwr_like, opacusish"),
        ("client/x.py", "'import flwr'  # import flwr"),
    ],
)
def test_what_is_allowed_is_not_a_breach(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")

    assert breaches(tmp_path) == []
