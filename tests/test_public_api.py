"""The public face: six names, loaded when used, each with an example that the tests run."""

import doctest
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import sottovoce

HOUSE = Path(__file__).resolve().parent.parent
NAMES = ("Device", "OnnxRecogniser", "Recogniser", "UserDevice", "simulate", "verify")
HEAVY = {"torch", "numpy", "flwr", "opacus", "scipy", "dp_accounting"}


def test_importing_the_package_brings_in_no_library() -> None:
    program = f"import sys, sottovoce\nsys.exit(' '.join({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert done.stderr.strip() == ""


def test_the_face_is_six_names() -> None:
    assert set(sottovoce.__all__) == {*NAMES, "__version__"}
    assert set(NAMES) <= set(dir(sottovoce))
    assert all(callable(getattr(sottovoce, name)) for name in NAMES)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        sottovoce.nothing_like_it  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("example_folder")
def test_every_public_name_has_an_example_that_works(name: str) -> None:
    public = getattr(sottovoce, name)
    found = doctest.DocTestFinder().find(public, name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)

    for one in found:
        one.globs = dict(vars(import_module(public.__module__)))
        runner.run(one)

    assert runner.tries > 0
    assert runner.failures == 0


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("folder", ["run", "run/model"])
def test_a_recogniser_opens_a_run_or_its_model(
    tiny_run: Any, kind: Callable[[Path], Any], folder: str
) -> None:
    recogniser = sottovoce.Recogniser.open(kind(tiny_run.folder.parent / folder))
    recording = tiny_run.users / "s03_00.wav"

    assert recogniser.predict(kind(recording)).emotion in {None, "angry", "neutral"}


def test_a_misspelled_setting_is_refused_and_the_right_one_suggested() -> None:
    with pytest.raises(sottovoce.shared.errors.SettingError, match="did you mean epsilon"):
        sottovoce.simulate(corpus="synthetic", epsilom=4.0)
    with pytest.raises(sottovoce.shared.errors.SettingError, match="epsilon is '4'"):
        sottovoce.simulate(corpus="synthetic", epsilon="4")


def packages() -> list[str]:
    """Every package of the house."""
    folders = [
        path.parent.relative_to(HOUSE)
        for room in ("shared", "client", "server", "simulations", "sottovoce")
        for path in sorted((HOUSE / room).rglob("__init__.py"))
    ]
    names = [".".join(folder.parts) for folder in folders]
    return [name if name.startswith("sottovoce") else f"sottovoce.{name}" for name in names]


@pytest.mark.parametrize("name", packages())
def test_every_package_says_what_it_offers(name: str) -> None:
    package = import_module(name)

    for offered in package.__all__:
        assert hasattr(package, offered) or find_spec(f"{name}.{offered}")
