"""A run folder: which run it belongs to, whether it may be written, and what is written there."""

import hashlib
import json
import tomllib
from pathlib import Path

from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.simulations.reports import render_pages
from sottovoce.simulations.results.path_names import folder_name
from sottovoce.simulations.results.prediction_table import write_predictions
from sottovoce.simulations.results.schema import PrivacyRecord, RunRecord, read_run, write_json
from sottovoce.simulations.runs.fold import FoldRun
from sottovoce.simulations.scenario.scenario import Scenario

CONFIG_FILE = "config.toml"
"""The settled scenario; running it again repeats the run."""

_FREE = ("workers", "engine")
"""Settings that change no result."""


def check_run_folder(scenario: Scenario, out: Path, *, resume: bool) -> None:
    """Make sure that the run folder is free, or the same run's.

    Args:
        scenario: Settled.
        out: The run folder.
        resume: Whether it may hold the same run.

    Raises:
        SettingError: It holds something else; says the way out.
    """
    config = out / CONFIG_FILE
    if out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file; --out names the folder to make")
    if config.exists():
        if not resume:
            raise SettingError(
                f"{out} holds a run; give --resume to go on with it, or another --out"
            )
        if not is_same_scenario(out, scenario):
            raise SettingError(f"{out} holds a run of another scenario; give another --out")
        return
    # A run that was killed before it began may have left a hidden, half-written file.
    if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise SettingError(f"{out} is not empty and holds no run; give another --out")


def is_same_scenario(folder: Path, scenario: Scenario) -> bool:
    """Check whether a folder holds a run of this scenario, but for what changes no result."""
    try:
        config = (folder / CONFIG_FILE).read_bytes().decode(errors="replace")
    except OSError:
        return False
    return hash_settings(config) == hash_settings(scenario.to_toml())


def name_run(scenario: Scenario) -> str:
    """Name a run by its settings, for ledgers and devices: 16 hexadecimal digits."""
    return _shorten(hash_settings(scenario.to_toml()))


def read_run_name(out: Path) -> str:
    """Read a run's name, as :func:`name_run` made it, from the settings in its folder.

    Args:
        out: The run folder.

    Raises:
        SettingError: The folder holds no settled scenario.
    """
    path = out / CONFIG_FILE
    try:
        return _shorten(hash_settings(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} cannot be read ({error}); give the folder of a run") from error


def _shorten(digits: str) -> str:
    """As much of a hash as names a run."""
    return digits[:16]


def hash_settings(config: str) -> str:
    r"""Hash a scenario's settings less those that change no result.

    The hash names the run; no draw depends on it. Order and spelling of the file do not matter.

    Args:
        config: The text of a scenario's file.

    Returns:
        SHA-256, 64 hexadecimal digits; empty where the text is no TOML.

    Example:
        >>> hash_settings("seed = 1\nworkers = 2") == hash_settings("workers = 1\nseed = 1")
        True
    """
    try:
        settings = tomllib.loads(config)
    except tomllib.TOMLDecodeError:
        return ""
    decisive = {name: value for name, value in settings.items() if name not in _FREE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def checkpoint_folder(out: Path, fold: str) -> Path:
    """Name the folder of a fold's server and devices, within a run folder."""
    return out / "checkpoints" / folder_name(fold)


def ledger_folder(out: Path, fold: str) -> Path:
    """Name the folder of a fold's archived ledgers, within a run folder."""
    return out / "ledgers" / folder_name(fold)


def write_scenario(out: Path, scenario: Scenario) -> None:
    """Write the settled scenario, which repeats the run."""
    replace_file(out / CONFIG_FILE, scenario.to_toml().encode())


def write_results(
    out: Path, run: RunRecord, privacy: PrivacyRecord, fold_run: FoldRun, predictions: bytes
) -> None:
    """Write all that a finished run leaves: predictions, both records, the model, the pages.

    Args:
        out: The run folder.
        run: Content of run.json.
        privacy: Content of privacy.json.
        fold_run: The fold whose model is exported.
        predictions: The table whose hash ``run`` records.
    """
    write_predictions(out, predictions)
    write_json(out / "privacy.json", privacy)
    write_json(out / "run.json", run)
    export_model(out, fold_run, run)
    render_pages(out)


def read_audited_epsilon(out: Path) -> float | None:
    """Read the lower bound on epsilon that an audit measured before the run was resumed.

    A resumed run is as private as it was. None where there was no audit, or no run yet.
    """
    try:
        audit = read_run(out)["privacy"].get("audit")
    except SottovoceError:  # there is none, or none that can be read: it is written anew
        return None
    return audit["epsilon_lower"] if audit else None


def export_model(out: Path, fold_run: FoldRun, run: RunRecord) -> None:
    """Export the model of a fold, with its card.

    Args:
        out: The run folder.
        fold_run: The fold, whose test figures are in the run.
        run: Content of run.json, for the card.
    """
    # Here, because it brings in Matplotlib: a second before the first round of every run.
    from sottovoce.simulations.reports.model_card import render_card

    fold_run.load_model().save(
        out / "model",
        card=render_card(run).encode(),
        fold=fold_run.spec.fold.name,
        trained_without=tuple(fold_run.spec.fold.test),
    )
