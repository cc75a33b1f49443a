"""Benchmarks that run in a process of their own."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sottovoce.shared.errors import EngineError

_NOTHING: Mapping[str, str] = MappingProxyType({})


def capture_stdout(
    command: Sequence[str],
    timeout_s: float,
    failure: str,
    environment: Mapping[str, str] = _NOTHING,
) -> str:
    """Run a program and return its output.

    Args:
        command: The program and its arguments.
        timeout_s: How long it may take.
        failure: Beginning of the message of a failure.
        environment: Variables besides this process's own.

    Raises:
        EngineError: It failed, or took too long.
    """
    try:
        done = subprocess.run(
            command,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{failure}: it took over {timeout_s:g} s") from error
    if done.returncode:
        # The last line that speaks of an error: the rest is a traceback.
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or [
            done.stderr
        ]
        raise EngineError(f"{failure}: {lines[-1][-300:]}")
    return done.stdout
