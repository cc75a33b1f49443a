"""Flower's own programs as child processes, and the app bundle made from this repository."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sottovoce.shared.errors import EngineError, SettingError

_ENVIRONMENT: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",  # processes, not threads, share the cores
}
COMMAND_TIMEOUT_S: Final = 120.0
"""Longest time that one Flower command may take."""

_FAB_FOLDERS: Final = ("sottovoce/", "client/", "server/", "shared/")


def build_fab(app: Path, folder: Path) -> Path:
    """Build the bundle (FAB) that devices would be sent, and check its content.

    Returns:
        The bundle's file, in ``folder``.

    Raises:
        EngineError: Flower cannot build it, or it holds what a device must not be sent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run_command(["flwr", "build", "--app", str(app.resolve())], folder / "flwr", folder)
    # The folder may have bundles of earlier builds.
    bundle = max(folder.glob("*.fab"), key=lambda path: path.stat().st_mtime)
    with zipfile.ZipFile(bundle) as file:
        strangers = [name for name in file.namelist() if not _belongs_in_fab(name)]
    if strangers:
        raise EngineError(
            f"the bundle holds {', '.join(strangers[:5])}, which no device needs; narrow "
            "fab-include in pyproject.toml"
        )
    return bundle


def _belongs_in_fab(name: str) -> bool:
    """Whether a file is code of the rooms that the apps are made of, or Flower's own."""
    if name in ("pyproject.toml", ".info/CONTENT", "README.md", "LICENSE"):
        return True
    return name.startswith(_FAB_FOLDERS) and name.endswith(".py")


def process_environment(home: Path) -> dict[str, str]:
    """Make a process's environment: its own Flower home, this Python's programs first.

    Args:
        home: The process's Flower home.
    """
    programs = str(Path(sys.executable).parent)
    path = programs + os.pathsep + os.environ.get("PATH", "")
    return os.environ | _ENVIRONMENT | {"FLWR_HOME": str(home), "PATH": path}


def run_command(arguments: Sequence[str], home: Path, folder: Path) -> str:
    """Run one of Flower's commands to its end, and return its output.

    Args:
        arguments: The command.
        home: Its Flower home.
        folder: Where it runs.

    Raises:
        EngineError: It failed, or took too long.
    """
    try:
        done = subprocess.run(
            [program_path(arguments[0]), *arguments[1:]],
            env=process_environment(home),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{' '.join(arguments[:2])} took over {COMMAND_TIMEOUT_S:g} s") from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise EngineError(f"{' '.join(arguments[:2])} failed: {said[-800:]}")
    return done.stdout


def program_path(name: str) -> str:
    """Find one of Flower's programs, beside the running Python.

    Raises:
        SettingError: It is not installed.
    """
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise SettingError(f"{path} is missing; install Sottovoce into this Python: make setup")
    return str(path)
