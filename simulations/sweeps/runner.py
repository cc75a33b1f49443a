"""All runs of a sweep, in one or more processes; what was finished is kept.

The sweep's folder::

    sweep.toml   what is swept over
    runs/NAME/   a run folder each
    sweep.json   every run's figures, and their mean and spread over seeds
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

from sottovoce.server.checkpoint import replace_file
from sottovoce.shared import check
from sottovoce.shared.errors import EngineError, SettingError, SottovoceError
from sottovoce.simulations import engines
from sottovoce.simulations.engines.threads import begin_worker
from sottovoce.simulations.hearing import Progress, Tell
from sottovoce.simulations.pipeline import prepare, same_scenario, simulate
from sottovoce.simulations.runfile import Json, read_run, write_json, write_text
from sottovoce.simulations.sweeps.grid import Point, Sweep
from sottovoce.simulations.sweeps.table import gather

SETTLED: Final = "sweep.toml"


def sweep(
    plan: Sweep,
    out: Path,
    *,
    workers: int = 1,
    address: str | None = None,
    resume: bool = False,
    tell: Tell = lambda _line: None,
    progress: Progress = lambda _what, _done, _total: None,
) -> Json:
    """Run a sweep.

    Args:
        plan: Which runs.
        out: The sweep's folder; must be new or empty, unless resumed.
        workers: Runs at a time, each in a process with one torch thread.
        address: Of the Ray cluster that every run is on; see ``pipeline.simulate``.
        resume: Whether to go on with a sweep: finished runs are kept, an interrupted one goes on
            from its last round. Settings may have been added or taken away.
        tell: Takes a line about what was found.
        progress: Takes (what, done, total).

    Returns:
        Content of sweep.json.

    Raises:
        SottovoceError: Bad input, said before the first run; or a run that failed, by name. What
            was finished is kept.
    """
    started = time.monotonic()
    check.at_least(1, workers=workers)
    torch.set_num_threads(1)
    _check_folder(out, resume=resume)
    points = plan.points()
    for point in points:
        engines.check_address(point.scenario.engine, address)
    axes = {axis.setting: list(axis.values) for axis in plan.axes}
    settled = {**plan.base, "sweep": axes}
    replace_file(out / SETTLED, tomli_w.dumps(settled).encode())
    left = [point for point in points if not _finished(point, out)]
    done = len(points) - len(left)
    if done:
        tell(f"{done} of {len(points)} runs were finished before")
    progress("runs", done, len(points))
    if left:
        _prepare(left, tell, progress)
        for point in _all_run(left, out, workers=workers, address=address):
            done += 1
            tell(_line(point, out, done, len(points), started, len(left)))
            progress("runs", done, len(points))
    runs = [(point, read_run(_folder(out, point))) for point in points]
    told = gather(plan, runs, wall_s=time.monotonic() - started, computed=len(left))
    write_json(out / "sweep.json", told)
    # Here, because it brings in Matplotlib.
    from sottovoce.simulations.sweeps.page import page

    write_text(out / "sweep.html", page(told))
    return told


def _check_folder(out: Path, *, resume: bool) -> None:
    """Make sure that the folder is free, or a sweep's."""
    if out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file; --out names the folder to make")
    if (out / SETTLED).exists():
        if not resume:
            raise SettingError(
                f"{out} holds a sweep; give --resume to go on with it, or another --out"
            )
        return
    if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise SettingError(f"{out} is not empty and holds no sweep; give another --out")


def _folder(out: Path, point: Point) -> Path:
    """A run's folder."""
    return out / "runs" / point.name


def _finished(point: Point, out: Path) -> bool:
    """Whether a run is there, whole, and is this one."""
    folder = _folder(out, point)
    if not (folder / "privacy.html").is_file():  # a run's last file
        return False
    try:
        read_run(folder)
    except SottovoceError:
        return False
    return same_scenario(folder, point.scenario)


def _prepare(points: Sequence[Point], tell: Tell, progress: Progress) -> None:
    """Compute features and learn public material once, before workers would do so at once."""
    said: set[str] = set()

    def once(line: str) -> None:
        if line not in said:
            said.add(line)
            tell(line)

    heard: set[tuple[str, bool]] = set()
    for point in points:
        kind = (point.scenario.encoder, point.scenario.enrolment == "all")
        if kind not in heard:
            heard.add(kind)
            prepare(point.scenario, once, progress)


def _all_run(
    points: Sequence[Point], out: Path, *, workers: int, address: str | None
) -> Iterator[Point]:
    """Run all; each as it is finished."""
    if workers == 1 or len(points) == 1:
        for point in points:
            with _named(point):
                _run(point, out, address)
            yield point
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(points)), spawn, initializer=begin_worker)
    try:
        waiting = {pool.submit(_run, point, out, address): point for point in points}
        for future in as_completed(waiting):
            with _named(waiting[future]):
                future.result()
            yield waiting[future]
    except BaseException:
        _end(pool)  # a run may be killed at any moment: it goes on from its last round
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end(pool: ProcessPoolExecutor) -> None:
    """End the workers now."""
    for process in list((pool._processes or {}).values()):
        process.kill()


def _run(point: Point, out: Path, address: str | None) -> None:
    """One run, from where it is."""
    simulate(point.scenario, _folder(out, point), resume=True, address=address)


@contextmanager
def _named(point: Point) -> Iterator[None]:
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


def _line(point: Point, out: Path, done: int, total: int, started: float, left: int) -> str:
    """What a finished run reached, and how long the others may take."""
    uar = read_run(_folder(out, point))["accuracy"]["uar"]
    here = done - (total - left)
    minutes = (time.monotonic() - started) / here * (total - done) / 60
    return f"{point.name}: UAR {uar:.3f} ({done} of {total}, about {minutes:.0f} min left)"
