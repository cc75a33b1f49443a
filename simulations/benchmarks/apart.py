"""Benches that run in a process of their own."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sottovoce.shared.errors import EngineError

_NOTHING: Mapping[str, str] = MappingProxyType({})


def printed(
    words: Sequence[str], limit_s: float, wrong: str, surroundings: Mapping[str, str] = _NOTHING
) -> str:
    """What a program printed.

    Args:
        words: The program and its arguments.
        limit_s: How long it may take.
        wrong: What to say first where it failed.
        surroundings: What its environment has beside this process's own.

    Raises:
        EngineError: It failed, or took too long.
    """
    try:
        done = subprocess.run(
            words,
            env=os.environ | surroundings,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{wrong}: it took over {limit_s:g} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or [
            done.stderr
        ]
        raise EngineError(f"{wrong}: {lines[-1][-300:]}")
    return done.stdout
