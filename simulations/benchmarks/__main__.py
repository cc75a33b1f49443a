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

from sottovoce.simulations.benchmarks.benches import benches, sizes

_WARM = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--repeats", type=int, default=15, help="measured calls of each bench")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        times = _measure(Path(folder), arguments.repeats)
        counted = sizes(Path(folder))
    result = {
        "machine": f"{platform.machine()}, one thread, Python {platform.python_version()}",
        "torch": torch.__version__,
        "repeats": arguments.repeats,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "median_ms": {name: statistics.median(found) for name, found in times.items()},
        "spread_ms": {name: [min(found), max(found)] for name, found in times.items()},
        "private_to_plain": _ratios(times),
        "bytes": counted,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "benchmarks.json").write_text(json.dumps(result, indent=1) + "\n")
    page = _page(times, _ratios(times), str(result["machine"]))
    page += "".join(
        ["\n| what | bytes |\n|---|---|\n", *(f"| {n} | {b:,} |\n" for n, b in counted.items())]
    )
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


def _ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Median over turns of private to plain, in pairs."""
    models = [name.removeprefix("step plain: ") for name in times if "step plain" in name]
    return {
        model: statistics.median(
            private / plain
            for private, plain in zip(
                times[f"step private: {model}"], times[f"step plain: {model}"], strict=True
            )
            if plain
        )
        for model in models
    }


def _page(times: dict[str, list[float]], ratios: dict[str, float], machine: str) -> str:
    """The page."""
    lines = ["# Benchmarks", "", f"`make bench`, on {machine}. CPU time of one call, median of "]
    lines[-1] += f"{len(next(iter(times.values())))} taken in turns (least to most)."
    lines += ["", "| what | ms |", "|---|---|"]
    for name, found in times.items():
        shown = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        lines.append(f"| {name} | {shown} |")
    lines += ["", "| a private step costs, against a plain one | times |", "|---|---|"]
    lines += [f"| {model} | {ratio:.2f} |" for model, ratio in ratios.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
