"""Measure all benches and write docs/results/benchmarks.json and benchmarks.md."""

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sottovoce.simulations.benchmarks.benches import PLAIN, PRIVATE, SIMULATED, benches, sizes
from sottovoce.simulations.benchmarks.engines import engines

_WARM = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--repeats", type=int, default=15, help="measured calls of each bench")
    parser.add_argument("--turns", type=int, default=5, help="runs of each engine")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        times = _measure(Path(folder), arguments.repeats)
        counted = sizes(Path(folder))
    on_engines = engines(arguments.turns)
    result = {
        "machine": f"{platform.machine()}, one thread, Python {platform.python_version()}",
        "torch": torch.__version__,
        "repeats": arguments.repeats,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "median_ms": {name: statistics.median(found) for name, found in times.items()},
        "spread_ms": {name: [min(found), max(found)] for name, found in times.items()},
        "private_to_plain": _ratios(times, PRIVATE),
        "simulated_to_plain": _ratios(times, SIMULATED),
        "bytes": counted,
        "engines": on_engines,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "benchmarks.json").write_text(json.dumps(result, indent=1) + "\n")
    page = _page(times, str(result["machine"]))
    page += "".join(
        ["\n| what | bytes |\n|---|---|\n", *(f"| {n} | {b:,} |\n" for n, b in counted.items())]
    )
    page += _engines_page(on_engines)
    (arguments.out / "benchmarks.md").write_text(page)
    sys.stdout.write(page)
    return 0


def _measure(folder: Path, repeats: int) -> dict[str, list[float]]:
    """CPU milliseconds of every call, all benches taking turns."""
    works = dict(benches(folder))
    for work in works.values():
        for _ in range(_WARM):
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            started = time.process_time()
            work()
            times[name].append(1e3 * (time.process_time() - started))
    return times


def _ratios(times: dict[str, list[float]], kind: str) -> dict[str, float]:
    """Of the medians of a ``kind`` of step and of the plain one, which took turns."""
    models = [name.removeprefix(PLAIN) for name in times if name.startswith(PLAIN)]
    return {
        model: statistics.median(times[kind + model]) / statistics.median(times[PLAIN + model])
        for model in models
    }


def _page(times: dict[str, list[float]], machine: str) -> str:
    """The page."""
    lines = ["# Benchmarks", "", f"`make bench`, on {machine}. CPU time of one call, median of "]
    lines[-1] += f"{len(next(iter(times.values())))} taken in turns (least to most)."
    lines += ["", "| what | ms |", "|---|---|"]
    for name, found in times.items():
        shown = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        lines.append(f"| {name} | {shown} |")
    simulated, private = _ratios(times, SIMULATED), _ratios(times, PRIVATE)
    lines += ["", "A private step costs, against a plain one (ratio of medians):", ""]
    lines += ["| model | in a simulation, times | on a device, times |", "|---|---|---|"]
    lines += [f"| {model} | {simulated[model]:.2f} | {private[model]:.2f} |" for model in private]
    lines += ["", "The two differ in their noise alone: a device's comes from the operating "]
    lines[-1] += "system's entropy, a simulation's from a seed."
    return "\n".join(lines) + "\n"


def _engines_page(found: dict[str, float]) -> str:
    """What engines cost, as a table."""
    about = (
        f"Local engine against a plain PyTorch loop, in turns: {found['parameters']:,} parameters, "
        "100 users, each joins a round with a chance of a fifth, three full-batch steps. The loop "
        "keeps no vault, no ledger and no messages. Workers on cnn-attention, by the clock."
    )
    lines = [
        "",
        "## Engines",
        "",
        about,
        "",
        "| what | |",
        "|---|---|",
        f"| local engine, CPU a client and round | {found['local_cpu_ms_a_client']:.2f} ms |",
        f"| plain loop | {found['loop_cpu_ms_a_client']:.2f} ms |",
        f"| ratio | {found['local_to_loop']:.2f} |",
        f"| two workers, times one worker's speed | {found['two_workers_speed']:.2f} |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
