"""What the documents say is true: links, commands, targets, settings, examples."""

import doctest
import itertools
import os
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sottovoce import __version__
from sottovoce.cli import corpora, main, reproduce, simulate
from sottovoce.server.aggregation.server_optimizer import AggregationSettings
from sottovoce.server.planning.public_pretraining import ProjectionSettings
from sottovoce.shared.features import registry
from sottovoce.shared.models.losses import Loss
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind
from sottovoce.simulations.corpora import TITLES, speaker_splits
from sottovoce.simulations.results import schema
from sottovoce.simulations.scenario import scenario

HOUSE = Path(__file__).resolve().parent.parent
ROOMS = ("shared", "client", "server", "simulations")
PAGES = sorted(
    path.relative_to(HOUSE)
    for path in (*HOUSE.glob("*.md"), *(HOUSE / "docs").rglob("*.md"))
    if "node_modules" not in path.parts
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_MAKE = re.compile(r"(?:^|`|\$ )make ([a-z][a-z-]*)", re.MULTILINE)
_MODULE = re.compile(r"python -m (sottovoce[\w.]+)")
_ROW = re.compile(r"^\| `([a-z_.]+)` \|(.+)\|$", re.MULTILINE)


def text(page: Path) -> str:
    """A page of the documentation."""
    return (HOUSE / page).read_text(encoding="utf-8")


def commands(markdown: str) -> Iterator[str]:
    """Every sottovoce command in a fenced block, continued lines joined, prompts taken off."""
    for _, block in _FENCE.findall(markdown):
        for line in block.replace("\\\n", " ").splitlines():
            words = re.sub(r"^(\$ )?([A-Z_]+=\S+ )*(\.venv/bin/)?", "", line.strip())
            if words.startswith("sottovoce "):
                yield words.split(" #")[0].strip()


def missing(page: Path, markdown: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    bare = _FENCE.sub("", markdown)
    broken = []
    for link in _LINK.findall(bare):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", name):
            continue
        target = (HOUSE / page).parent / name if name else HOUSE / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    assert missing(page, text(page)) == []


def test_a_broken_link_would_be_found() -> None:
    page = Path("README.md")

    assert missing(page, "[x](docs/no-such.md), [y](https://example.org), [z](#no-such)") == [
        "docs/no-such.md",
        "#no-such",
    ]


def documented() -> list[Any]:
    """Every documented command with its page."""
    found = {command: page for page in PAGES for command in commands(text(page))}
    return [pytest.param(command, id=f"{page}: {command[:70]}") for command, page in found.items()]


def checked(command: str) -> None:
    """Parse a command as the console would, and refuse names that do not exist."""
    arguments = main.build_parser().parse_args(shlex.split(command)[1:])
    own_file = str(getattr(arguments, "scenario", None)).endswith(".toml")
    if arguments.run is simulate.run_simulate_command and not own_file:
        settled = simulate.build_scenario(arguments)
        folds = re.fullmatch(r"\d+fold", settled.protocol)
        assert not settled.protocol or folds or settled.protocol in speaker_splits.protocol_names()
        assert {settled.corpus, *dict(settled.public)} <= set(TITLES)
        assert set(settled.encoder.split("+")) <= set(registry.extractor_names())
    if arguments.run is corpora.run_corpora_command:
        assert arguments.name is None or arguments.name in TITLES
    if arguments.run is reproduce.run_reproduce_command:
        module = import_module(reproduce.module_name(arguments.name))
        with pytest.raises(SystemExit) as ended:
            module.main([*arguments.options, "--help"])
        assert ended.value.code == 0


@pytest.mark.parametrize("command", documented())
def test_documented_commands_are_understood(command: str) -> None:
    checked(command)


@pytest.mark.parametrize(
    "command",
    [
        "sottovoce simulate no-such-scenario",
        "sottovoce simulate demo --no-such-option",
        "sottovoce simulate --corpus ravdess --protocol no-such",
        "sottovoce no-such-command",
        "sottovoce corpora check no-such",
    ],
)
def test_wrong_commands_would_be_found(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, AssertionError, scenario.SettingError)):
        checked(command)


def targets() -> set[str]:
    """What make can make."""
    return set(re.findall(r"^([a-z-]+):", text(Path("Makefile")), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_documented_targets_and_modules_exist(page: Path) -> None:
    assert set(_MAKE.findall(text(page))) <= targets()
    assert [name for name in _MODULE.findall(text(page)) if find_spec(name) is None] == []


def test_every_target_explains_itself() -> None:
    explained = set(re.findall(r"^([a-z-]+):.*## \S", text(Path("Makefile")), re.MULTILINE))

    assert targets() == explained


def test_ci_and_hooks_use_targets_that_exist() -> None:
    for name in (".ci/run", ".pre-commit-config.yaml"):
        assert set(re.findall(r"\bmake ([a-z-]+)", text(Path(name)))) <= targets() | {"said"}
    assert os.access(HOUSE / ".ci" / "run", os.X_OK)


def console() -> dict[str, Any]:
    """Every command of the console with its parser."""
    action = next(a for a in main.build_parser()._actions if hasattr(a, "choices") and a.choices)
    return dict(action.choices or {})


@pytest.mark.parametrize("name", sorted(console()))
def test_help_shows_an_example_that_works(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([name, "--help"])

    shown = capsys.readouterr().out
    assert ended.value.code == 0
    example = shown.split("example:\n")[1].strip()
    assert example.startswith(f"sottovoce {name} ")
    folders = itertools.count()
    checked(re.sub(r"\bDIR\b", lambda _: f"dir{next(folders)}", example))


def test_every_command_is_in_the_readme() -> None:
    used = {command.split()[1] for command in commands(text(Path("README.md")))}

    assert set(console()) <= used


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_examples_import_what_exists(page: Path) -> None:
    for language, block in _FENCE.findall(text(page)):
        if language == "python":
            compile(block, str(page), "exec")
            for module, names in re.findall(r"^from (sottovoce\S*) import (.+)$", block, re.M):
                found = import_module(module)
                assert all(hasattr(found, name.strip()) for name in names.split(","))


def setting(recipe: scenario.Recipe, name: str) -> object:
    """A recipe's setting by its dotted name."""
    value: Any = recipe
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_documented_recipes_are_the_code_s() -> None:
    recipes = (
        scenario.UTTERANCE_RECIPE,
        scenario.USER_RECIPE,
        scenario.BOTH_RECIPE,
        scenario.NON_PRIVATE_RECIPE,
        scenario.END_TO_END_RECIPE,
    )
    rounds = (
        scenario.UTTERANCE_ROUNDS,
        scenario.USER_ROUNDS,
        scenario.UTTERANCE_ROUNDS,
        scenario.NON_PRIVATE_ROUNDS,
        scenario.END_TO_END_ROUNDS,
    )
    table = text(Path("docs/recipes.md")).split("## The settings")[1].split("\n## ")[0]
    rows = {
        name: [cell.strip() for cell in cells.split("|")] for name, cells in _ROW.findall(table)
    }

    assert rows.pop("rounds")[:-1] == [str(number) for number in rounds]
    for name, cells in rows.items():
        for recipe, cell in zip(recipes, cells, strict=False):
            assert cell in ("—", f"{setting(recipe, name)}"), f"{name} is {cell} in the document"
    documented_names = {name.split(".")[-1] for name in rows}
    parts = (
        scenario.Recipe,
        scenario.UserLevelSettings,
        ProjectionSettings,
        AggregationSettings,
        Loss,
    )
    known = {name for part in parts for name in part.__slots__}
    assert known - documented_names - {"projection", "aggregation", "user", "loss"} == set()


def keys(shape: Any) -> Iterator[str]:
    """All keys of a schema."""
    if isinstance(shape, list):
        yield from keys(shape[0])
    if isinstance(shape, dict):
        for name, inner in shape.items():
            yield name.removesuffix("?")
            yield from keys(inner)


def test_the_run_folder_s_keys_are_documented() -> None:
    page = text(Path("docs/run-folder.md"))

    for name in {*keys(schema._RUN), *keys(schema._PRIVACY)} - {"*"}:
        assert re.search(rf"[`\"]{name}[`\"?]", page), f"{name} is not documented"


def test_every_kind_of_release_is_documented() -> None:
    for page in ("README.md", "docs/privacy.md"):
        for kind in ReleaseKind:
            assert f"`{kind.value}`" in text(Path(page)), f"{page} lacks {kind.value}"
    for name in Release.__slots__:
        assert f"`{name}`" in text(Path("docs/privacy.md"))


def test_what_two_utterances_cost_is_as_documented() -> None:
    mu = accountant.gaussian_mu(8.0, 1e-5)

    for together, shown in ((2, 19.1), (3, 33.1), (5, 69.4)):
        release = Release(
            kind=ReleaseKind.GRADIENT,
            mechanism=Mechanism.GAUSSIAN,
            run="",
            round=1,
            noise_multiplier=1 / (together * mu),
            sensitivity=1.0,
        )
        assert accountant.compute_epsilon([release], 1e-5, fast=True) == pytest.approx(
            shown, abs=0.06
        )
        assert f"{shown:g}" in text(Path("docs/privacy.md"))


def test_the_changelog_has_this_version() -> None:
    page = text(Path("CHANGELOG.md"))

    assert re.search(rf"^## (Unreleased|\[?{re.escape(__version__)})", page, re.MULTILINE)


def test_pictures_are_real_and_small() -> None:
    pictures = list((HOUSE / "docs" / "images").glob("*.png"))

    assert pictures
    for picture in pictures:
        head = picture.read_bytes()[:8]
        assert head == b"\x89PNG\r\n\x1a\n"
        assert picture.stat().st_size < 300_000
        assert any(f"images/{picture.name}" in text(page) for page in PAGES)


def modules() -> list[str]:
    """Every module with an example in a docstring."""
    paths = (path for room in ROOMS for path in sorted((HOUSE / room).rglob("*.py")))
    with_examples = (path for path in paths if ">>> " in path.read_text(encoding="utf-8"))
    names = (path.relative_to(HOUSE).with_suffix("").as_posix() for path in with_examples)
    return [f"sottovoce.{name.replace('/', '.')}".removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = import_module(name)

    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)

    assert tried > 0
    assert failed == 0
