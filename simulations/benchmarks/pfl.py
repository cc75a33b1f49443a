"""Benchmark of the same work on apple/pfl-research, in an environment of its own.

pfl 0.6 needs an older dp-accounting than our accountant, so it cannot be installed
beside Sottovoce. Its environment holds only pfl and what it lacks; torch and NumPy are ours, so
both are measured on the same arithmetic.
"""

import json
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Final

from sottovoce.shared.atomic_files import replace_text
from sottovoce.simulations.benchmarks.subprocesses import capture_stdout
from sottovoce.simulations.benchmarks.workloads import Workload

FOLDER: Final = Path("build") / "pfl"
_PFL: Final = "pfl==0.6.0"
_INSTALL_S, _RUN_S = 600.0, 300.0
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1"}


def run_on_pfl(work: Workload, *, folder: Path = FOLDER, seed: int = 5) -> list[float]:
    """Measure one run on pfl: CPU milliseconds per client, of every round but the first.

    Args:
        work: A workload of vectors, on a small head.
        folder: pfl's environment; made if it is not there.
        seed: Decides data and cohorts.

    Raises:
        EngineError: pfl cannot be installed, or failed.
    """
    parameters = {
        "inputs": work.spec.inputs,
        "hidden": work.spec.hidden,
        "classes": work.spec.classes,
        "users": work.users,
        "cohort": round(work.users * work.user_sampling_rate),
        "clips": work.clips_per_user,
        "steps": work.steps,
        "rounds": work.rounds,
        "seed": seed,
    }
    script = Path(__file__).with_name("pfl_worker.py")
    words = [
        prepare_environment(folder),
        "-P",
        str(script),
        json.dumps(parameters),
    ]  # -P: not our own pfl.py
    printed = capture_stdout(words, _RUN_S, "pfl failed", _ONE_THREAD)
    return [float(number) for number in json.loads(printed.splitlines()[-1])]


def prepare_environment(folder: Path = FOLDER) -> str:
    """Prepare pfl's environment and return its Python.

    Raises:
        EngineError: pfl cannot be installed.
    """
    python = folder / "bin" / "python"
    done = folder / "installed"
    # The marker is written last: an environment that was interrupted is made again.
    if done.exists() and python.exists():
        return str(python)
    # clear: leftovers of an interrupted installation must not be imported.
    venv.create(folder, with_pip=True, clear=True)
    variables = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", "venv", variables))
    ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # A .pth file adds our packages behind pfl's own, which win where both have one.
    replace_text(own / "of-sottovoce.pth", "\n".join(ours) + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    capture_stdout(
        [*install, _PFL],
        _INSTALL_S,
        f"{_PFL} cannot be installed into {folder}; it needs a package index: leave pfl out with "
        "--no-pfl, or try again",
    )
    done.touch()
    return str(python)
