"""Pages of results are what their figures say: each is written anew from the JSON beside it."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from sottovoce.simulations.benchmarks.__main__ import page

HOUSE = Path(__file__).resolve().parent.parent
RESULTS = HOUSE / "docs" / "results"
MADE_BY = {
    "accuracy": "results",
    "audit": "audits",
    "banded": "banded",
    "heads": "heads",
    "losses": "losses",
    "personal": "personal",
    "population": "population",
    "sweep": "sweeps",
}
"""Pages and the scripts that write them."""


def _written(script: str, out: Path, runs: Path) -> None:
    """Let a script write its page of what is kept, on a machine that has none of its runs."""
    spec = importlib.util.spec_from_file_location(script, HOUSE / "scripts" / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    here = {"population": "--run", "sweeps": "--sweep"}.get(script, "--runs")
    assert module.main(["--table", "--out", str(out), here, str(runs)]) == 0


@pytest.mark.parametrize("name", MADE_BY)
def test_a_page_is_what_its_figures_say_and_nothing_is_lost(name: str, tmp_path: Path) -> None:
    out = tmp_path / "results"
    out.mkdir()
    for kept in RESULTS.glob("*.json"):
        shutil.copy(kept, out)

    _written(MADE_BY[name], out, tmp_path / "runs")

    assert (out / f"{name}.md").read_text() == (RESULTS / f"{name}.md").read_text()
    assert (out / f"{name}.json").read_bytes() == (RESULTS / f"{name}.json").read_bytes()


def test_the_page_of_benchmarks_is_what_its_figures_say() -> None:
    found = json.loads((RESULTS / "benchmarks.json").read_text())

    assert page(found) == (RESULTS / "benchmarks.md").read_text()


def test_every_page_is_checked() -> None:
    pages = {path.stem for path in RESULTS.glob("*.md")} - {"README", "benchmarks"}

    assert pages == set(MADE_BY)
