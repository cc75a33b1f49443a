"""Benchmark on Flower's Ray engine, with the CPU time of every process that Ray starts.

It runs in a process of its own, since Ray leaves threads and children to the interpreter's end.
"""

import dataclasses
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Final

from sottovoce.shared.models.spec import ModelSpec
from sottovoce.simulations.benchmarks.local_engine import RoundTimer
from sottovoce.simulations.benchmarks.subprocesses import capture_stdout
from sottovoce.simulations.benchmarks.workloads import Workload, prepare_workload

_RUN_S: Final = 600.0


def run_on_ray(work: Workload, *, workers: int = 1) -> list[float]:
    """Measure one run on Ray: CPU milliseconds per client, of every round but the first.

    Args:
        work: The workload.
        workers: How many actors run clients.

    Raises:
        EngineError: Ray is not installed, or failed.
    """
    words = [json.dumps(dataclasses.asdict(work)), str(workers)]
    printed = capture_stdout(
        [sys.executable, "-m", __name__, *words], _RUN_S, "the ray engine failed"
    )
    return [float(number) for number in json.loads(printed.splitlines()[-1])]


def process_tree_cpu_s(known: dict[int, float]) -> float:
    """Sum the CPU time of this process and all its descendants, in seconds.

    Args:
        known: CPU time of each when last seen; pass the same one at every call, so that those that
            ended still count.
    """
    for process in _descendants():
        try:  # Linux' name of the CPU clock of another process
            known[process] = time.clock_gettime((~process << 3) | 2)
        except OSError:  # it ended meanwhile
            continue
    return time.process_time() + sum(known.values())


def _descendants() -> set[int]:
    """All processes that descend from this one."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # A process's name may hold blanks and brackets: fields are counted from the last
            # bracket.
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(words[1])
    found = {int(Path("/proc/self").readlink().name)}
    # Closure over the parent relation: Ray starts processes that start others.
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {int(Path("/proc/self").readlink().name)}


def _measured(work: Workload, workers: int) -> list[float]:
    """The run, in this process."""
    from sottovoce.simulations.engines import ray

    clock = RoundTimer(partial(process_tree_cpu_s, {}))

    with tempfile.TemporaryDirectory() as folder:
        config = prepare_workload(Path(folder), work, "ray")
        ray.run_apps(devices=work.users, config=config, workers=workers, listener=clock)
    return clock.ms_per_client(0)


def _main(workload: str, workers: str) -> None:
    """Measure what ``on_ray`` asks for."""
    facts = json.loads(workload)
    work = Workload(**facts | {"spec": ModelSpec(**facts["spec"])})
    sys.stdout.write(json.dumps(_measured(work, int(workers))) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
