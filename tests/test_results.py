"""Pages of results are what their figures say: each is written anew from the JSON beside it."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from mutants_page import format_page as format_mutants

from sottovoce.cli import main, reproduce
from sottovoce.shared.features.version import FEATURE_VERSION
from sottovoce.simulations.benchmarks import runtime
from sottovoce.simulations.benchmarks.__main__ import format_page
from sottovoce.simulations.experiments.generalisation import padding

HOUSE = Path(__file__).resolve().parent.parent
RESULTS = HOUSE / "docs" / "results"
EXPERIMENTS = {
    "accuracy": "accuracy",
    "audit": "audit",
    "banded": "correlated-noise",
    "cross-corpus": "cross-corpus",
    "default-model": "default-model",
    "fairness": "fairness",
    "heads": "heads",
    "losses": "losses",
    "padding": "padding",
    "personal": "personalisation",
    "population": "population",
    "secure": "secure-utterance",
    "streaming": "streaming",
    "sweep": "sweep",
    "web": "web",
}
"""Pages and the experiments that write them."""


def _write_page(experiment: str, out: Path, runs: Path) -> None:
    """Let an experiment write its page from its JSON, on a machine that has none of its runs."""
    folders = {
        "default-model": "--corpora",
        "streaming": "--corpora",
        "population": "--run",
        "sweep": "--sweep",
        "web": "--site",
    }
    folder = folders.get(experiment, "--runs")
    words = ["reproduce", experiment, "--table", "--out", str(out), folder, str(runs)]
    assert main.main(words) == 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_page_is_what_its_figures_say_and_nothing_is_lost(name: str, tmp_path: Path) -> None:
    out = tmp_path / "results"
    out.mkdir()
    for figures in RESULTS.glob("*.json"):
        shutil.copy(figures, out)

    _write_page(EXPERIMENTS[name], out, tmp_path / "runs")

    assert (out / f"{name}.md").read_text() == (RESULTS / f"{name}.md").read_text()
    assert (out / f"{name}.json").read_bytes() == (RESULTS / f"{name}.json").read_bytes()


@pytest.mark.parametrize("version", [1, FEATURE_VERSION, None])
def test_figures_of_earlier_features_are_told_from_those_of_today(
    tmp_path: Path, version: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads((RESULTS / "padding.json").read_text())[padding.TRANSFER_RUN]
    earlier = found | {"uar": dict.fromkeys(padding.MEANS, 0.1234), "feature_version": version}
    if version is None:
        earlier = {}
    (tmp_path / "earlier.json").write_text(json.dumps({padding.TRANSFER_RUN: earlier}))
    out = tmp_path / "results"
    out.mkdir()
    shutil.copy(RESULTS / "padding.json", out)
    words = ["reproduce", "padding", "--table", "--out", str(out)]

    status = main.main([*words, "--earlier", str(tmp_path / "earlier.json")])

    page = (out / "padding.md").read_text() if status == 0 else ""
    assert ("| version 1 | 0.123 | 0.123 | 0.123 |" in page) == (version == 1)
    assert (status == 0) == (version == 1)
    assert ("feature_version in " in capsys.readouterr().err) == (version != 1)


def test_the_page_of_benchmarks_is_what_its_figures_say() -> None:
    found = json.loads((RESULTS / "benchmarks.json").read_text())

    assert format_page(found) == (RESULTS / "benchmarks.md").read_text()


def test_the_page_of_the_runtime_is_what_its_figures_say() -> None:
    found = json.loads((RESULTS / "runtime.json").read_text())

    assert runtime.format_page(found) == (RESULTS / "runtime.md").read_text()


def test_the_page_of_mutants_is_what_its_figures_say() -> None:
    found = json.loads((RESULTS / "mutants.json").read_text())

    assert format_mutants(found) == (RESULTS / "mutants.md").read_text()


def test_the_page_of_ablations_is_what_its_figures_say(tmp_path: Path) -> None:
    out = tmp_path / "results"
    out.mkdir()
    shutil.copy(RESULTS / "ablation.json", out)

    assert main.main(["ablate", "losses", "--table", "--out", str(out), "--runs", str(out)]) == 0

    assert (out / "ablation.md").read_text() == (RESULTS / "ablation.md").read_text()
    assert (out / "ablation.json").read_bytes() == (RESULTS / "ablation.json").read_bytes()


def test_every_page_is_checked() -> None:
    apart = {"README", "ablation", "benchmarks", "runtime", "mutants"}
    pages = {path.stem for path in RESULTS.glob("*.md")} - apart

    assert pages == set(EXPERIMENTS)


def test_every_experiment_has_its_page() -> None:
    assert set(reproduce.EXPERIMENTS) == set(EXPERIMENTS.values())
    for name in reproduce.EXPERIMENTS:
        module = import_module(reproduce.module_name(name))
        assert f"sottovoce reproduce {name} " in (module.__doc__ or "")


def test_an_experiment_explains_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["reproduce", "heads", "--help"])

    assert ended.value.code == 0
    assert "usage: sottovoce reproduce heads " in capsys.readouterr().out
