"""``sottovoce`` commands of experiments, each in a process of its own."""

import subprocess
import sys
from collections.abc import Sequence


def run_command(words: Sequence[str]) -> int:
    """Run a command of ``sottovoce``; returns its exit status.

    Args:
        words: The command as it is typed, ``sottovoce`` first.
    """
    # This Python's module, not the program on PATH, which may be another version.
    done = subprocess.run([sys.executable, "-m", "sottovoce.cli", *words[1:]], check=False)
    return done.returncode
