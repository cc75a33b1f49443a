"""Measure all benches and write docs/results/benchmarks.json and benchmarks.md."""

import argparse
import json
import math
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.models.parameters import count_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.printable import print_lines
from sottovoce.simulations.benchmarks.harnesses import compare_harnesses, measure_peak_memory
from sottovoce.simulations.benchmarks.head_benchmarks import measure_sizes
from sottovoce.simulations.benchmarks.local_engine import compare_workers
from sottovoce.simulations.benchmarks.microbenchmarks import (
    DEVICE_PRIVATE_STEP,
    ISOLATED_PRIVATE_STEP,
    NON_PRIVATE_STEP,
    PYTORCH_STEP,
    SIMULATED_PRIVATE_STEP,
    UTTERANCES,
    Benchmark,
    list_benchmarks,
)
from sottovoce.simulations.benchmarks.workloads import SMALL
from sottovoce.simulations.engines.worker_process import retain_freed_memory

_MIN_TIMED_MS = 10.0
"""Quicker work is called several times in a row: a step of a small head after something large
measures cold caches."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run all benchmarks and write their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--repeats", type=int, default=15, help="measured calls of each bench")
    parser.add_argument("--runs", type=int, default=5, help="runs of each engine")
    parser.add_argument("--no-pfl", action="store_true", help="leave out apple/pfl-research")
    parser.add_argument(
        "--only", default="", help="measure only what has this in its name; the rest stays as it is"
    )
    arguments = parser.parse_args(argv)
    # One thread: times of several depend on what else the machine does.
    torch.set_num_threads(1)
    retain_freed_memory()  # as a simulation's processes do
    with tempfile.TemporaryDirectory() as folder:
        works = dict(list_benchmarks(Path(folder)))
        chosen = {name: work for name, work in works.items() if arguments.only in name}
        times = _measure(chosen, arguments.repeats)
        counted = measure_sizes(Path(folder))
    found = _summarise(times, arguments.repeats)
    if arguments.only:
        earlier = json.loads((arguments.out / "benchmarks.json").read_text())
        result = _merge(earlier, found, list(works))
    else:
        on_engines = {
            "parameters": count_parameters(build_network(SMALL.spec, 0)),
            "harnesses": compare_harnesses(arguments.runs, pfl=not arguments.no_pfl),
            "peak_mib": measure_peak_memory(),
            **compare_workers(arguments.runs),
        }
        result = found | {"bytes": counted, "engines": on_engines}
    arguments.out.mkdir(parents=True, exist_ok=True)
    replace_text(arguments.out / "benchmarks.json", json.dumps(result, indent=1) + "\n")
    replace_text(arguments.out / "benchmarks.md", format_page(result))
    print_lines(*format_page(result).splitlines())
    return 0


def _summarise(times: Mapping[str, Sequence[float]], repeats: int) -> dict[str, Any]:
    """Figures of what was measured, and of the machine."""
    return {
        "machine": f"{platform.machine()}, one thread, Python {platform.python_version()}",
        "torch": torch.__version__,
        "repeats": repeats,
        # KiB on Linux, where results are made.
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "median_ms": {name: statistics.median(found) for name, found in times.items()},
        "spread_ms": {name: [min(found), max(found)] for name, found in times.items()},
        "private_to_plain": _ratios(times, DEVICE_PRIVATE_STEP),
        "isolated_to_plain": _ratios(times, ISOLATED_PRIVATE_STEP),
        "simulated_to_plain": _ratios(times, SIMULATED_PRIVATE_STEP),
        "simulated_to_own": _ratios(times, SIMULATED_PRIVATE_STEP, NON_PRIVATE_STEP),
    }


def _merge(
    earlier: Mapping[str, Any], found: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """Put new figures in the place of earlier ones, in the order of these names."""
    result = dict(earlier)
    for key, value in found.items():
        if isinstance(value, dict):
            both = earlier.get(key, {}) | value
            order = {name: place for place, name in enumerate(names)}
            result[key] = dict(sorted(both.items(), key=lambda one: order.get(one[0], 0)))
    return result


def _measure(works: Mapping[str, Benchmark], repeats: int) -> dict[str, list[float]]:
    """CPU milliseconds of a call, all benches interleaved."""
    calls = {}
    for name, work in works.items():
        work()  # whatever is made once
        # As many calls as fill the minimum; the clock's resolution would dominate a single one.
        calls[name] = max(1, math.ceil(_MIN_TIMED_MS / _cpu_ms(work, 1)))
    times: dict[str, list[float]] = {name: [] for name in works}
    # Interleaved: a machine that slows down for a while slows all of them alike.
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(_cpu_ms(work, calls[name]))
    return times


def _cpu_ms(work: Benchmark, calls: int) -> float:
    """CPU milliseconds of one of several calls in a row."""
    started = time.process_time()
    for _ in range(calls):
        work()
    # The floor keeps ratios finite where the clock saw no time pass.
    return max(1e3 * (time.process_time() - started) / calls, 1e-3)


def _ratios(
    times: Mapping[str, Sequence[float]], kind: str, to: str = PYTORCH_STEP
) -> dict[str, float]:
    """Of a ``kind`` of step and of another, the median of pairs that were measured in turn."""
    models = [
        name.removeprefix(to)
        for name in times
        if name.startswith(to) and kind + name.removeprefix(to) in times
    ]
    return {
        model: statistics.median(
            own / other for own, other in zip(times[kind + model], times[to + model], strict=True)
        )
        for model in models
    }


def format_page(found: Mapping[str, Any]) -> str:
    """Format the page from the content of benchmarks.json."""
    lines = ["# Benchmarks", "", f"`make bench`, on {found['machine']}. CPU time of one call, "]
    lines[-1] += f"median of {found['repeats']} interleaved (least to most)."
    lines += ["", "| what | ms |", "|---|---|"]
    for name, median in found["median_ms"].items():
        least, most = found["spread_ms"][name]
        lines.append(f"| {name} | {median:.2f} ({least:.2f} to {most:.2f}) |")
    columns = {
        "in a simulation, to PyTorch's": found["simulated_to_plain"],
        "with a device's noise, to PyTorch's": found["private_to_plain"],
        "on a device, to PyTorch's": found["isolated_to_plain"],
        "in a simulation, to ours without privacy": found["simulated_to_own"],
    }
    lines += ["", "What a private step costs (median of pairs):", ""]
    lines += [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for model in found["private_to_plain"]:
        lines.append(f"| {model} | {' | '.join(f'{c[model]:.2f}' for c in columns.values())} |")
    lines += ["", "A device's noise comes from a key of the operating system's and is rounded "]
    lines[-1] += "exactly; a simulation's comes from a seed. A device also computes each of its "
    lines[-1] += f"{UTTERANCES} clips by itself, so that none of them rounds another's last bits, "
    lines[-1] += "which forgoes a batch's speed. Heads on frozen features (linear, mlp) step in "
    lines[-1] += "closed form without privacy too, where PyTorch's step pays for autograd."
    lines += ["", "| what | bytes |", "|---|---|"]
    lines += [f"| {name} | {size:,} |" for name, size in found["bytes"].items()]
    return "\n".join(lines) + "\n" + _engines_page(found["engines"])


def _engines_page(found: Mapping[str, Any]) -> str:
    """What harnesses cost, as a table."""
    about = (
        f"The same work, interleaved: {found['parameters']:,} parameters, 100 users, 20 a round, "
        "three full-batch steps. CPU of a client's round, all processes of a harness counted. The "
        "loop bounds updates and noises their sum, and has no messages, ledgers or checkpoints; "
        "pfl neither bounds nor noises. The Ray engine's devices lie in folders, sealed and synced."
    )
    lines = ["", "## Harnesses", "", about, ""]
    lines += ["| harness | ms (least to most) | to the loop, median of pairs |", "|---|---|---|"]
    for name, cost in found["harnesses"].items():
        range_ms = f"{cost['cpu_ms_a_client']:.2f} ({cost['least']:.2f} to {cost['most']:.2f})"
        lines.append(f"| {name} | {range_ms} | {cost['to_loop']:.2f} |")
    speed = found["two_workers_speed"]
    lines += ["", f"Two workers on cnn-attention, by the clock: **{speed:.2f}** times one's speed."]
    memory = ", ".join(f"{name} {size:,.0f} MiB" for name, size in found["peak_mib"].items())
    lines += ["", f"Most memory on the same work, libraries included: {memory}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
