"""Runs the fuzz tests for a set time: ``make fuzz``, or ``make fuzz SECONDS=600``.

Each file runs in a process of its own, in turn, with new random examples and more of them each
time, until the time is up. The first failure ends it, and shows the smallest example that fails.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).parent
FIRST_EXAMPLES, MOST_EXAMPLES = 200, 20_000
MAX_MEMORY_MB = 3_000
"""Peak of a test process, torch's libraries included: beyond it a reader is not bounded."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3_600, help="how long (3600)")
    parser.add_argument("names", nargs="*", help="parts of file names, such as wire; none runs all")
    arguments = parser.parse_args()
    files = [
        path
        for path in sorted(FOLDER.glob("test_fuzz_*.py"))
        if not arguments.names or any(name in path.name for name in arguments.names)
    ]
    if not files:
        print(f"no file of {FOLDER} has {' or '.join(arguments.names)} in its name")
        return 2
    end, examples = time.monotonic() + arguments.seconds, FIRST_EXAMPLES
    totals: Counter[str] = Counter()
    while time.monotonic() < end:
        for path in files:
            left = end - time.monotonic()
            if left <= 0:
                break
            status, took, memory_mb = _run(path, examples, left)
            totals[path.name] += examples
            line = (
                f"{path.name:<40} {examples:>6} examples a test {took:>7.0f} s {memory_mb:>6.0f} MB"
            )
            if status is None:
                print(f"{line}  time is up")
                break
            print(line, flush=True)
            if status or memory_mb > MAX_MEMORY_MB:
                print(f"FAILED: {path.name}; the lines above say how to repeat it")
                return 1
        examples = min(2 * examples, MOST_EXAMPLES)
    for name, count in sorted(totals.items()):
        print(f"{name:<40} {count:>9} examples a test in all")
    print("no foreign exception")
    return 0


def _run(path: Path, examples: int, seconds_left: float) -> tuple[int | None, float, float]:
    """Exit status (None where time ran out), seconds and peak memory in MB of one file's tests."""
    words = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    environment = os.environ | {"SOTTOVOCE_FUZZ_EXAMPLES": str(examples)}
    start = time.monotonic()
    process = subprocess.Popen(
        [*words, str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    timed_out = False
    try:
        output, _ = process.communicate(timeout=seconds_left)
    except subprocess.TimeoutExpired:
        timed_out = True
        process.kill()
        output, _ = process.communicate()
    # Linux keeps the largest peak of all children; one file's is at most that.
    import resource

    memory_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    if process.returncode and not timed_out:
        print(output)
    return None if timed_out else process.returncode, time.monotonic() - start, memory_mb


if __name__ == "__main__":
    sys.exit(main())
