"""What other harnesses cost counts all that they start, and what they lack is said."""

import subprocess
import sys

import pytest

from sottovoce.shared.errors import EngineError
from sottovoce.simulations.benchmarks import ray_engine
from sottovoce.simulations.benchmarks.subprocesses import capture_stdout

_BUSY = """
import sys, time
while time.process_time() < 0.4: pass
print("done", flush=True)
sys.stdin.read()
"""
_PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted by Linux' clocks")
def test_cpu_of_a_childs_child_counts_also_once_it_is_gone() -> None:
    known: dict[int, float] = {}
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, _BUSY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        before = ray_engine.process_tree_cpu_s({})
        assert child.stdout
        assert child.stdout.readline() == "done\n"
        there = ray_engine.process_tree_cpu_s(known)
        child.communicate("")

    assert len(known) >= 2
    assert 0.3 <= there - before < 3
    assert ray_engine.process_tree_cpu_s(known) >= there


def test_what_a_harness_lacks_is_one_line() -> None:
    broken = [sys.executable, "-c", "raise OSError('no index')"]
    with pytest.raises(EngineError, match="pfl cannot be installed: OSError: no index"):
        capture_stdout(broken, 30, "pfl cannot be installed")

    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(EngineError, match=r"pfl failed: it took over 0\.5 s"):
        capture_stdout(slow, 0.5, "pfl failed")
