"""Rooms import one way, and heavy libraries come in through known doors."""

import ast
import tomllib
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
}
"""Which rooms a room may import."""

AUDIO = ("shared/audio.py", "shared/features/*.py")
SIMULATIONS = ("simulations/*.py",)
DOORS: Mapping[str, tuple[str, ...]] = {
    "flwr": (
        "client/app.py",
        "server/app.py",
        "server/crowd.py",
        "server/strategy.py",
        "server/talking.py",
        "shared/records.py",
        "shared/wire.py",
        "simulations/engines/*.py",
    ),
    "ray": ("simulations/engines/ray.py", "simulations/engines/cluster.py"),
    # The second accountant that recounts a run is Opacus' own; it trains nothing.
    "opacus": ("client/training/steps.py", "simulations/witness.py"),
    "dp_accounting": ("shared/privacy/accountant.py",),
    "torchaudio": AUDIO,
    "soundfile": AUDIO,
    "cryptography": ("shared/crypto.py",),
    # A device needs none of these.
    "jinja2": SIMULATIONS,
    "matplotlib": SIMULATIONS,
    "pandas": (),
    "rich": SIMULATIONS,
    "scipy": SIMULATIONS,
    "sklearn": (),
    "tomli_w": SIMULATIONS,
}
"""Through which files a library comes in; ``*`` crosses folders."""


def breaches(house: Path) -> list[str]:
    """Every import that breaks an arrow or misses its door, as ``file:line: what``."""
    return [
        f"{file.relative_to(house)}:{line}: {fault}"
        for room in ARROWS
        for file in sorted((house / room).rglob("*.py"))
        for line, module in _imports(file)
        for fault in _faults(file.relative_to(house).as_posix(), module)
    ]


def _faults(file: str, module: str) -> Iterator[str]:
    """What is wrong with one import."""
    top, _, rest = module.partition(".")
    room = file.partition("/")[0]
    if not top:
        yield f"imports {module}, which is relative; write {PACKAGE}.{room}..."
    elif top in ARROWS:
        yield f"imports {module} without {PACKAGE}., which makes it a second module"
    elif top == PACKAGE and rest.partition(".")[0] in ARROWS:
        if rest.partition(".")[0] not in ARROWS[room]:
            yield f"imports {module}; {room} may import {', '.join(sorted(ARROWS[room]))}"
    elif top == PACKAGE and rest.partition(".")[0] == "cli":
        yield f"imports {module}; the command line imports rooms, never the other way"
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


def test_no_import_breaks_an_arrow_or_misses_its_door() -> None:
    assert breaches(HOUSE) == []


def test_the_house_is_all_there() -> None:
    """An empty house would break nothing."""
    for room in ARROWS:
        assert len(list((HOUSE / room).rglob("*.py"))) > 5
    for library, doors in DOORS.items():
        for door in doors:
            assert any(HOUSE.glob(door.replace("*.py", "**/*.py"))), (library, door)


def test_a_wheel_holds_every_folder() -> None:
    """setuptools is told names one by one; one that is forgotten is missed only once installed."""
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))
    packed = project["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(file.parent.relative_to(HOUSE).parts)
        for room in (*ARROWS, PACKAGE)
        for file in (HOUSE / room).rglob("*.py")
    }
    assert sorted(packed) == sorted(
        folder if folder == PACKAGE else f"{PACKAGE}.{folder}" for folder in folders
    )


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("client/x.py", "from sottovoce.server.job import Job", "client may import"),
        ("client/x.py", "import sottovoce.server.job as j", "client may import"),
        ("client/x.py", "from sottovoce import server", "client may import"),
        ("server/x.py", "from sottovoce.client import vault", "server may import"),
        ("shared/x.py", "from sottovoce.client.device import Device", "shared may import shared"),
        ("shared/deep/er/x.py", "import sottovoce.simulations", "shared may import shared"),
        ("server/x.py", "def f():\n    from sottovoce.simulations import world", "may import"),
        ("client/x.py", "if 0:\n    import sottovoce.server", "may import"),
        ("client/x.py", "import importlib as i; i.import_module('sottovoce.server')", "may import"),
        ("client/x.py", "__import__('opacus')", "doors are client/training/steps.py"),
        ("client/x.py", "import flwr.app", "its doors are"),
        ("server/round.py", "from flwr.app import Message", "its doors are"),
        ("simulations/world.py", "import flwr", "its doors are"),
        ("simulations/engines/local.py", "import ray", "its doors are"),
        ("server/x.py", "import opacus.optimizers", "its doors are"),
        ("shared/privacy/ledger.py", "import dp_accounting", "its doors are"),
        ("shared/quality.py", "import soundfile", "its doors are"),
        ("client/x.py", "from torchaudio import functional", "its doors are"),
        ("client/vault.py", "from cryptography import x509", "its doors are"),
        ("shared/metrics.py", "import scipy.stats", "its doors are simulations"),
        ("server/x.py", "from matplotlib import pyplot", "its doors are simulations"),
        ("client/x.py", "from . import device", "relative"),
        ("client/x.py", "from ..shared import seeds", "relative"),
        ("client/x.py", "from shared import seeds", "second module"),
        ("simulations/x.py", "from sottovoce.cli import main", "command line"),
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
        ("client/x.py", "from sottovoce.shared import seeds"),
        ("client/x.py", "from sottovoce import __version__"),
        ("server/strategy.py", "from flwr.serverapp import Grid"),
        ("simulations/engines/deep/x.py", "import flwr"),
        ("simulations/deep/x.py", "import scipy; from sottovoce.server import job"),
        ("client/x.py", "import numpy, torch, flwr_like, opacusish"),
        ("client/x.py", "'import flwr'  # import flwr"),
    ],
)
def test_what_is_allowed_is_not_a_breach(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")

    assert breaches(tmp_path) == []
