"""Tries a mutant against the tests that reach its lines, in a process of its own.

Python, torch and the other libraries are loaded once; each trial is a fork that imports this
project from a copy in which one module is changed. Which tests reach which lines is measured once,
by coverage with a context for each test.
"""

import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import coverage
import pytest

MOST_SECONDS = 25.0
"""Tests that a mutant is tried against take no longer than this, the likeliest first."""

TESTS = (
    "tests/shared/privacy",
    "tests/shared/secure_aggregation",
    "tests/shared/protocol",
    "tests/shared/test_atomic_files.py",
    "tests/shared/test_crypto.py",
    "tests/shared/test_folder_claims.py",
    "tests/shared/test_validation.py",
    "tests/shared/features/test_whisper_weights.py",
    "tests/client/device",
    "tests/client/federation",
    "tests/client/personalisation",
    "tests/client/training",
    "tests/server/aggregation",
    "tests/server/federation",
    "tests/server/planning/test_demo_job.py",
    "tests/server/planning/test_noise_calibration.py",
    "tests/simulations/engines/test_released_sums.py",
    "tests/simulations/population/test_run.py",
    "tests/simulations/verification",
    "tests/fuzzing/test_fuzz_ledger.py",
    "tests/fuzzing/test_fuzz_secure_aggregation.py",
    "tests/fuzzing/test_fuzz_vault.py",
    "tests/cli/test_device.py",
    "tests/test_power_cuts.py",
)
"""What mutants are tried against; a mutant that other tests would notice counts as alive."""

_LIBRARIES = (
    "cryptography.hazmat.primitives.ciphers.aead",
    "dp_accounting.pld",
    "flwr.app",
    "mpmath",
    "msgspec",
    "numpy",
    "opacus.optimizers",
    "safetensors.torch",
    "scipy.stats",
    "torch",
)

_BROKEN = 70
"""Exit status of a trial that failed by itself."""

_DURATION = re.compile(r"^([0-9.]+)s (?:call|setup|teardown)\s+(.+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        status: ``killed``, ``alive``, ``timeout`` (killed by never ending) or ``unreached``.
        killer: The test that failed first; ``import`` where none could even be collected.
        seconds: How long the trial took.
        tests: How many tests it was tried against.
    """

    status: str
    killer: str = ""
    seconds: float = 0.0
    tests: int = 0


def copy_tree(home: Path, tree: Path) -> None:
    """Copy what belongs to the checkout, whatever else lies in it."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, cwd=home, check=True, capture_output=True, text=True).stdout
    shutil.rmtree(tree, ignore_errors=True)
    for name in filter(None, names.split("\0")):
        if (home / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(home / name, tree / name)


class Reach:
    """Which tests reach which lines, and how long each takes.

    Args:
        folder: Where the measurement is kept.
        home: The checkout as it is now; lines may have moved since.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self._measured, self._home = folder / "measured", home
        self._data = coverage.CoverageData(basename=str(folder / "coverage.db"))
        self._data.read()
        self._durations: dict[str, float] = json.loads((folder / "durations.json").read_text())

    @staticmethod
    def measure(folder: Path, tree: Path, tests: Sequence[str]) -> None:
        """Run the tests once, each in a coverage context of its own; they must pass."""
        folder.mkdir(parents=True, exist_ok=True)
        # A measurement that is cut off leaves none, for half of one would hide tests.
        (folder / "durations.json").unlink(missing_ok=True)
        settings = folder / "coverage.rc"
        rooms = "client,server,shared,simulations"
        settings.write_text(f"[run]\nsource = {rooms}\nparallel = true\nrelative_files = true\n")
        # Three, of which -q takes one: else durations below 5 ms are left out.
        words = [sys.executable, "-m", "pytest", "-q", "-vvv", "-p", "no:cacheprovider"]
        words += ["--durations=0", "--cov", f"--cov-config={settings}", "--cov-context=test"]
        words += ["--cov-report=", "-m", "not slow", *tests]
        facts = {"PYTHONPATH": str(tree), "COVERAGE_FILE": str(folder / "coverage.db")}
        done = subprocess.run(
            words, cwd=tree, env=os.environ | facts, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"the tests fail without any mutant:\n{done.stdout[-4000:]}")
        durations: dict[str, float] = {}
        for seconds, name in _DURATION.findall(done.stdout):
            durations[name.strip()] = durations.get(name.strip(), 0.0) + float(seconds)
        (folder / "durations.json").write_text(json.dumps(durations))
        shutil.rmtree(folder / "measured", ignore_errors=True)
        shutil.copytree(tree, folder / "measured")

    def find_tests(self, path: str, lines: tuple[int, int]) -> list[str]:
        """Tests that reach lines of a module: of its own file first, then the quick files."""
        own = f"test_{Path(path).stem}.py"
        new = self._new_tests(path)
        if not (self._measured / path).exists():  # a module that is new since
            tests = sorted((self._home / "tests").rglob(own))
            return list(dict.fromkeys([*(self._name(one) for one in tests), *new]))
        contexts, old = self._data.contexts_by_lineno(path), self._measured_lines(path)
        there = {old.get(line, 0) for line in range(lines[0], lines[1] + 1)}
        reached = [contexts.get(line, ()) for line in there]
        found = _names(reached)
        # A line that runs when the module is imported is reached by no test, and seen by whichever
        # stands beside one that reaches the module.
        if not found or any("" in some for some in reached):
            files = {name.split("::")[0] for name in _names(contexts.values())}
            found = {name for name in self._durations if name.split("::")[0] in files}
        # What a fixture made, others of the file's tests look at.
        files = {name.split("::")[0] for some in reached for name in some if "|setup" in name}
        lookers = {name for name in self._durations if name.split("::")[0] in files} - found
        by_file: dict[str, list[str]] = {}
        for name in [*sorted(found), *sorted(lookers)]:
            by_file.setdefault(name.split("::")[0], []).append(name)

        near = Path("tests", path).parent

        def place(file: str) -> tuple[bool, bool, float]:
            # After the module's own file those of its folder, or of the one above.
            is_far = not {near, near.parent} & set(Path(file).parents[:2])
            return not file.endswith(own), is_far, self._time(by_file[file])

        chosen: list[str] = []
        files_in_order = sorted(by_file, key=place)
        for group in (found, lookers):
            for name in [one for file in files_in_order for one in by_file[file] if one in group]:
                if self._time(chosen) + self._time([name]) <= MOST_SECONDS:
                    chosen.append(name)
        return [*chosen, *new]

    def _new_tests(self, path: str) -> list[str]:
        """Files of tests that are new since, and import the module."""
        module = f"sottovoce.{path.removesuffix('.py').replace('/', '.')}"
        known = {name.split("::")[0] for name in self._durations}
        places = [self._home / one for one in TESTS]
        files = [
            file
            for place in places
            for file in ([place] if place.is_file() else sorted(place.rglob("test_*.py")))
        ]
        fresh = [one for one in files if self._name(one) not in known]
        return [self._name(one) for one in fresh if module in one.read_text()]

    def _name(self, path: Path) -> str:
        return path.relative_to(self._home).as_posix()

    def _measured_lines(self, path: str) -> dict[int, int]:
        """Where each of a module's lines, or the one it took the place of, was when measured."""
        old, new = ((home / path).read_text().splitlines() for home in (self._measured, self._home))
        found = {}
        matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
        for _, first, last, start, end in matcher.get_opcodes():
            for line in range(start, end):
                found[line + 1] = min(first + line - start, max(last - 1, first)) + 1
        return found

    def _time(self, names: Iterable[str]) -> float:
        return sum(self._durations.get(name, 0.0) for name in names)

    def limit(self, names: Sequence[str]) -> float:
        """Seconds after which a trial of these tests counts as one that never ends."""
        return 60.0 + 5 * self._time(names)


def _names(contexts: Iterable[Iterable[str]]) -> set[str]:
    return {name.rsplit("|", 1)[0] for some in contexts for name in some if name}


class _Chosen:
    """Runs some tests only, in the order in which they were named; says which failed first."""

    def __init__(self, names: Sequence[str], report: int) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._report = report

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        places = {one: self._place(one.nodeid) for one in items}
        found = [one for one in items if places[one] is not None]
        items[:] = sorted(found, key=lambda one: places[one] or 0)

    def _place(self, name: str) -> int | None:
        """Of a test that is named, with or without its parameters, or whose file is."""
        ways = (name, name.split("[")[0], name.split("::")[0])
        return next((self._places[way] for way in ways if way in self._places), None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self._report, f"{report.nodeid}\n".encode())


def preload() -> None:
    """Load the libraries that every trial needs; nothing of this project."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _LIBRARIES:
            import_module(name)


def run_trial(
    tree: Path, path: str, mutated: bytes, names: Sequence[str], *, limit_s: float
) -> Outcome:
    """Put a mutated module in its place in the copy, run some tests, and put the old one back."""
    if not names:
        return Outcome(status="unreached")
    module = tree / path
    original, facts = module.read_bytes(), module.stat()
    start = time.monotonic()
    try:
        module.write_bytes(mutated)
        status, killer = _run(tree, names, limit_s)
    finally:
        module.write_bytes(original)
        os.utime(module, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    seconds = round(time.monotonic() - start, 1)
    return Outcome(status=status, killer=killer, seconds=seconds, tests=len(names))


def require_passing(tree: Path, killer: str, names: Sequence[str]) -> None:
    """Refuse a kill by a test that fails without any mutant, too: it would kill them all.

    Args:
        tree: The copy, unchanged.
        killer: The test that failed first, or ``import``.
        names: What the mutant was tried against.
    """
    wanted = names if killer == "import" else [killer]
    status, _ = _run(tree, wanted, limit_s=600.0, only_collect=killer == "import")
    if status != "alive":
        raise SystemExit(f"{killer} fails without any mutant; mend it first")


def _run(
    tree: Path, names: Sequence[str], limit_s: float, *, only_collect: bool = False
) -> tuple[str, str]:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        _child(tree, names, write, only_collect=only_collect)
    os.close(write)
    status = _wait(child, limit_s)
    with os.fdopen(read) as report:
        killer = report.readline().strip()
    if status is None:
        return "timeout", killer
    if status == pytest.ExitCode.OK:
        return "alive", ""
    if status in (pytest.ExitCode.NO_TESTS_COLLECTED, pytest.ExitCode.USAGE_ERROR, _BROKEN):
        raise SystemExit(f"{names[0]} could not be tried: see {tree.parent / 'last.log'}")
    return "killed", killer or "import"


def _wait(child: int, limit_s: float) -> int | None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _child(tree: Path, names: Sequence[str], report: int, *, only_collect: bool) -> None:
    """Never returns."""
    status = _BROKEN
    try:
        os.setsid()
        os.chdir(tree)
        sys.path[0] = str(tree)
        os.environ["PYTHONPATH"] = str(tree)
        # A changed module must not be read from another's compiled file.
        sys.dont_write_bytecode = True
        silent = os.open(tree.parent / "last.log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        files = list(dict.fromkeys(name.split("::")[0] for name in names))
        words = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:cov", *files]
        words += ["--collect-only"] if only_collect else []
        status = int(pytest.main(words, plugins=[_Chosen(names, report)]))
    except BaseException:  # noqa: BLE001  (nothing may get out of the child)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
