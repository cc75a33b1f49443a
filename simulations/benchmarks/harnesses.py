"""Comparison of other harnesses with the local engine and a plain loop, interleaved.

``python -m sottovoce.simulations.benchmarks.harnesses`` prints what each costs as JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

import torch

from sottovoce.shared.errors import SottovoceError
from sottovoce.shared.printable import print_error, print_json_text
from sottovoce.simulations.benchmarks.local_engine import run_on_engine
from sottovoce.simulations.benchmarks.pfl import prepare_environment, run_on_pfl
from sottovoce.simulations.benchmarks.plain_loop import run_plain_loop
from sottovoce.simulations.benchmarks.ray_engine import run_on_ray
from sottovoce.simulations.benchmarks.workloads import SMALL
from sottovoce.simulations.engines.worker_process import retain_freed_memory


def compare_harnesses(repeats: int, *, pfl: bool = True) -> dict[str, dict[str, float]]:
    """Measure the CPU time of a client's round in each harness.

    Args:
        repeats: How often each runs.
        pfl: Whether apple/pfl-research is measured too; it is installed if it is not there.

    Raises:
        EngineError: Ray failed, or pfl cannot be installed.
    """
    if pfl:
        prepare_environment()
    found: dict[str, list[float]] = {"plain loop": [], "local engine": [], "ray engine": []}
    if pfl:
        found["pfl"] = []
    for _ in range(repeats):
        found["plain loop"].append(statistics.median(run_plain_loop(SMALL)))
        found["local engine"].append(
            statistics.median(run_on_engine(SMALL, workers=1).ms_per_client(0))
        )
        if pfl:
            found["pfl"].append(statistics.median(run_on_pfl(SMALL)))
        found["ray engine"].append(statistics.median(run_on_ray(SMALL)))
    loop = found["plain loop"]
    return {
        name: {
            "cpu_ms_a_client": statistics.median(costs),
            "least": min(costs),
            "most": max(costs),
            # Ratios of runs that were made one after the other: drift of the machine cancels.
            "to_loop": statistics.median(a / b for a, b in zip(costs, loop, strict=True)),
        }
        for name, costs in found.items()
    }


def measure_peak_memory() -> dict[str, float]:
    """Measure the peak memory of a process for the small work, in MiB, each in its own."""
    works = {
        "plain loop": "run_plain_loop(SMALL)",
        "local engine": "run_on_engine(SMALL, workers=1)",
    }
    # A process that imports what this module does.
    return {name: _peak(f"from {__name__} import *; {work}") for name, work in works.items()}


def _peak(program: str) -> float:
    """MiB that a program came to hold."""
    program += "; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    words = [sys.executable, "-c", program]
    # Linux counts in KiB, macOS in bytes.
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return int(printed.splitlines()[-1]) / (1024 if sys.platform == "linux" else 2**20)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each")
    parser.add_argument("--no-pfl", action="store_true", help="leave out apple/pfl-research")
    arguments = parser.parse_args(argv)
    # pfl's process has one thread too: harnesses are compared, not schedulers.
    torch.set_num_threads(1)
    retain_freed_memory()
    try:
        found = compare_harnesses(arguments.runs, pfl=not arguments.no_pfl)
    except SottovoceError as error:
        print_error(error)
        return 1
    print_json_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
