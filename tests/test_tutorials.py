"""Tutorials and the README do what they say: their blocks are run, in order, in an empty folder.

Blocks marked ``bash`` and ``python`` are run as they stand; blocks of Python share their names, as
in one session. Blocks marked ``text`` show output or what cannot be run here.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/start/researcher.md",
    "docs/start/app-developer.md",
    "docs/start/operator.md",
    "docs/guides/devices.md",
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block that is run."""
    text = (HOUSE / page).read_text(encoding="utf-8")
    return [pair for pair in _BLOCK.findall(text) if pair[0] in ("bash", "python")]


def environment(folder: Path) -> dict[str, str]:
    """What commands find: ``sottovoce`` and ``python`` are those of this test."""
    tools = folder / "bin"
    tools.mkdir()
    for name, words in (("python", ""), ("sottovoce", " -m sottovoce.cli")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n', encoding="utf-8")
        tool.chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(HOUSE)}


DRIVER = """
import json, subprocess, sys
names = {"__name__": "__main__"}
for number, (language, text) in enumerate(json.loads(sys.argv[1]), 1):
    print(f"-- block {number}", flush=True)
    if language == "bash":
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)
    else:
        exec(compile(text, f"block {number}", "exec"), names)
"""


def run_blocks(pairs: list[tuple[str, str]], folder: Path) -> str:
    """Run blocks in an empty folder, all Python in one session; returns what they print."""
    work = folder / "work"
    work.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(pairs)],
        cwd=work,
        env=environment(folder),
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page: str, tmp_path: Path) -> None:
    printed = run_blocks(blocks(page), tmp_path)

    assert len(blocks(page)) > 2
    if "sottovoce verify" in str(blocks(page)):
        assert "all ledgers agree with privacy.json" in printed
    if page == "docs/start/researcher.md":
        check_that_the_demo_teaches(tmp_path / "work" / "runs" / "demo")


def check_that_the_demo_teaches(folder: Path) -> None:
    """The first thing that anybody runs: the curve rises under privacy, and heads help."""
    run = json.loads((folder / "run.json").read_text())
    first, *_, last = (one["uar"] for one in run["accuracy"]["by_round"])

    assert last - first >= 0.15
    assert run["calibration"]["after"]["nll"] <= run["calibration"]["before"]["nll"]
    assert run["privacy"]["utterance"]["epsilon_max"] <= 8
    assert len(list((folder / "samples").glob("*.wav"))) == 3


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_blocks([("python", "one = 1\n"), ("python", "print(one / 0)\n")], tmp_path)


def test_blocks_are_found() -> None:
    assert ("bash", "sottovoce verify runs/demo\n") in blocks("docs/start/researcher.md")
