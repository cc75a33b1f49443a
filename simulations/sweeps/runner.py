"""Runs a sweep in one or more processes; finished runs are reused.

The sweep's folder::

    sweep.toml   what is swept over
    runs/NAME/   a run folder each
    sweep.json   every run's figures, and their mean and standard deviation over seeds
    sweep.html   curves and a table, in one file that loads nothing
"""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import tomli_w
import torch

from sottovoce.shared import validation
from sottovoce.shared.atomic_files import replace_file, replace_text
from sottovoce.shared.errors import EngineError, SettingError, SottovoceError
from sottovoce.shared.folder_claims import claim_folder
from sottovoce.simulations import engines
from sottovoce.simulations.data.loading import OnMessage, OnProgress
from sottovoce.simulations.data.pretraining import warm_cache
from sottovoce.simulations.engines.worker_process import initialise_worker
from sottovoce.simulations.results.schema import SweepRecord, read_run, write_json
from sottovoce.simulations.runs.run_folder import is_same_scenario
from sottovoce.simulations.runs.simulation import simulate
from sottovoce.simulations.scenario.settings import MAX_WORKERS
from sottovoce.simulations.sweeps.grid import Sweep, SweepRun
from sottovoce.simulations.sweeps.table import summarise_runs

SETTINGS_FILE: Final = "sweep.toml"


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    workers: int = 1,
    address: str | None = None,
    resume: bool = False,
    on_message: OnMessage = lambda _line: None,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> SweepRecord:
    """Run every scenario of a sweep.

    Args:
        sweep: Which runs.
        out: The sweep's folder; must be new or empty, unless resumed.
        workers: Runs at a time, each in a process with one torch thread.
        address: Of the Ray cluster that every run is on; see ``simulation.simulate``.
        resume: Whether to go on with a sweep: finished runs are kept, an interrupted one goes on
            from its last round. Settings may have been added or taken away.
        on_message: Takes a line about what was found.
        on_progress: Takes (what, done, total).

    Returns:
        Content of sweep.json.

    Raises:
        SottovoceError: Bad input, said before the first run; or a run that failed, by name. What
            was finished is kept.
    """
    started = time.monotonic()
    validation.require_count(1, MAX_WORKERS, workers=workers)
    torch.set_num_threads(1)
    with claim_folder(out):
        _check_folder(out, resume=resume)
        points = sweep.expand_runs()
        for point in points:
            engines.check_address(point.scenario.run.engine, address)
        axes = {axis.setting: list(axis.values) for axis in sweep.axes}
        settled = {**sweep.base, "sweep": axes}
        replace_file(out / SETTINGS_FILE, tomli_w.dumps(settled).encode())
        left = [point for point in points if not _finished(point, out)]
        done = len(points) - len(left)
        if done:
            on_message(f"{done} of {len(points)} runs were finished before")
        on_progress("runs", done, len(points))
        if left:
            _prepare(left, on_message, on_progress)
            for point in _all_run(left, out, workers=workers, address=address):
                done += 1
                on_message(_line(point, out, done, len(points), started, len(left)))
                on_progress("runs", done, len(points))
        runs = [(point, read_run(_folder(out, point))) for point in points]
        summary = summarise_runs(sweep, runs, wall_s=time.monotonic() - started, computed=len(left))
        write_json(out / "sweep.json", summary)
        # Here, because it brings in Matplotlib.
        from sottovoce.simulations.sweeps.page import render_page

        replace_text(out / "sweep.html", render_page(summary))
        return summary


def _check_folder(out: Path, *, resume: bool) -> None:
    """Make sure that the folder is free, or a sweep's."""
    if out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file; --out names the folder to make")
    if (out / SETTINGS_FILE).exists():
        if not resume:
            raise SettingError(
                f"{out} holds a sweep; give --resume to go on with it, or another --out"
            )
        return
    if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise SettingError(f"{out} is not empty and holds no sweep; give another --out")


def _folder(out: Path, point: SweepRun) -> Path:
    """A run's folder."""
    return out / "runs" / point.name


def _finished(point: SweepRun, out: Path) -> bool:
    """Whether a run is there, whole, and is this one."""
    folder = _folder(out, point)
    if not (folder / "privacy.html").is_file():  # a run's last file
        return False
    try:
        read_run(folder)
    except SottovoceError:
        return False
    return is_same_scenario(folder, point.scenario)


def _prepare(points: Sequence[SweepRun], on_message: OnMessage, on_progress: OnProgress) -> None:
    """Compute features and pretrain once, before workers would do so at the same time."""
    printed: set[str] = set()

    def once(line: str) -> None:
        if line not in printed:
            printed.add(line)
            on_message(line)

    warmed: set[tuple[str, bool]] = set()
    for point in points:
        kind = (point.scenario.data.encoder, point.scenario.data.enrolment.subtracts_user_mean)
        if kind not in warmed:
            warmed.add(kind)
            warm_cache(point.scenario, once, on_progress)


def _all_run(
    points: Sequence[SweepRun], out: Path, *, workers: int, address: str | None
) -> Iterator[SweepRun]:
    """Run all; each as it is finished."""
    if workers == 1 or len(points) == 1:
        for point in points:
            with _named(point):
                _run(point, out, address)
            yield point
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(points)), spawn, initializer=initialise_worker)
    try:
        waiting = {pool.submit(_run, point, out, address): point for point in points}
        for future in as_completed(waiting):
            with _named(waiting[future]):
                future.result()
            yield waiting[future]
    except BaseException:
        _kill_workers(pool)  # a run may be killed at any moment: it goes on from its last round
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _kill_workers(pool: ProcessPoolExecutor) -> None:
    """End the workers now."""
    for process in list((pool._processes or {}).values()):
        process.kill()


def _run(point: SweepRun, out: Path, address: str | None) -> None:
    """One run, from where it is."""
    simulate(point.scenario, _folder(out, point), resume=True, address=address)


@contextmanager
def _named(point: SweepRun) -> Iterator[None]:
    """Say which run failed."""
    try:
        yield
    except BrokenProcessPool as error:
        raise EngineError(
            "a worker of the sweep died, perhaps for want of memory; run again with --resume and "
            "fewer --workers: finished runs are kept"
        ) from error
    except SottovoceError as error:
        raise type(error)(f"the run {point.name}: {error}") from error


def _line(point: SweepRun, out: Path, done: int, total: int, started: float, left: int) -> str:
    """What a finished run reached, and how long the others may take."""
    uar = read_run(_folder(out, point))["accuracy"]["uar"]
    here = done - (total - left)
    minutes = (time.monotonic() - started) / here * (total - done) / 60
    return f"{point.name}: UAR {uar:.3f} ({done} of {total}, about {minutes:.0f} min left)"
