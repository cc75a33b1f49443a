"""What the documents say is true: links, commands, targets, settings, examples, the site."""

import doctest
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from code_measurements import DIALECT_TEXT

from sottovoce import __version__
from sottovoce.cli import corpora, main, reproduce, simulate
from sottovoce.server.planning import recipe
from sottovoce.shared.errors import SettingError
from sottovoce.shared.features import registry
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.guarantees.adversaries import Adversary
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind
from sottovoce.shared.privacy.schemes import unit_names
from sottovoce.simulations.corpora import TITLES, speaker_splits
from sottovoce.simulations.results.schema import build_schemas
from sottovoce.simulations.scenario import file_settings

HOUSE = Path(__file__).resolve().parent.parent
ROOMS = ("shared", "client", "server", "simulations", "sottovoce")
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
        if not target.exists() or (anchor and not has_anchor(target, anchor)):
            broken.append(link)
    return broken


def has_anchor(page: Path, anchor: str) -> bool:
    """Whether a page has a heading; where headings are generated, the site's build checks."""
    return "<!-- generated: " in page.read_text(encoding="utf-8") or anchor in anchors(page)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give to a page's headings."""
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
        settled = simulate.build_scenario(arguments).data
        folds = re.fullmatch(r"\d+fold|by:\w+", settled.protocol)
        assert not settled.protocol or folds or settled.protocol in speaker_splits.protocol_names()
        assert {settled.corpus, *dict(settled.public)} <= set(TITLES)
        assert set(settled.encoder.split("+")) <= set(registry.extractor_names())
    if arguments.run is corpora.run_check_command:
        assert arguments.name in TITLES
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
    with pytest.raises((SystemExit, AssertionError, SettingError)):
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
    page = text(Path("README.md"))

    assert [name for name in console() if f"`{name}`" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_examples_import_what_exists(page: Path) -> None:
    for language, block in _FENCE.findall(text(page)):
        if language == "python":
            compile(block, str(page), "exec")
            for module, names in re.findall(r"^from (sottovoce\S*) import (.+)$", block, re.M):
                found = import_module(module)
                assert all(hasattr(found, name.strip()) for name in names.split(","))


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The generator of the reference."""
    spec = spec_from_file_location("reference", HOUSE / "docs/hooks/generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_is_described(reference: ModuleType) -> None:
    tables = dict(reference.walk_settings(file_settings.ScenarioSettings))

    assert {"", "recipe", "recipe.user", "population"} <= set(tables)
    for table, kind in tables.items():
        names = {entry.name for entry in fields(kind)}
        assert names == set(reference.describe_fields(kind)), f"[{table}]"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_settings_that_are_named_exist(page: Path, reference: ModuleType) -> None:
    known = set()
    for table, kind in reference.walk_settings(file_settings.ScenarioSettings):
        known |= {f"{table}.{entry.name}".removeprefix("recipe.") for entry in fields(kind)}
    tables = "recipe|user|shares|aggregation|projection|loss|population"
    named = re.findall(rf"[ `](?:recipe\.)?((?:{tables})\.(?!sqlite)[a-z_]+)\b(?!\()", text(page))
    named = [name.removeprefix("recipe.") for name in named]

    # The first names what settings were called before, the other lines of code.
    apart = page.name in {"CHANGELOG.md", "mutants.md"}
    assert apart or [name for name in named if name not in known] == []


def test_the_usual_recipes_are_the_code_s(reference: ModuleType) -> None:
    table = reference.format_recipes()

    assert f"| `rounds` | {recipe.UTTERANCE_ROUNDS} | {recipe.USER_ROUNDS} |" in table
    assert f"| `clip_norm` | {recipe.UTTERANCE_RECIPE.clip_norm} |" in table


def test_every_unit_s_adversaries_are_on_their_page(reference: ModuleType) -> None:
    tables = reference.format_adversaries()

    assert "<!-- generated: adversaries -->" in text(Path("docs/concepts/adversaries.md"))
    assert "## `--unit user --secure-aggregation`" in tables
    for unit in unit_names():
        assert f"## `--unit {unit}`" in tables
    for adversary in Adversary:
        assert tables.count(f"| {adversary.value} |") == tables.count("## "), adversary


def test_every_command_is_in_the_reference(reference: ModuleType) -> None:
    page = reference.format_commands()

    for name in console():
        assert f"## sottovoce {name}" in page
    assert "`--secure-aggregation" in page


def keys(schema: Mapping[str, Any]) -> Iterator[str]:
    """Names of all properties of a JSON Schema, those of its definitions included."""
    for definition in (schema, *schema.get("$defs", {}).values()):
        yield from definition.get("properties", {})


def test_the_run_folder_s_keys_are_documented() -> None:
    page = text(Path("docs/reference/files.md"))
    schemas = build_schemas()

    assert {"run", "privacy", "audit"} <= set(schemas)
    names = {name for file in ("run", "privacy", "audit") for name in keys(schemas[file])}
    assert len(names) > 100
    assert [name for name in sorted(names) if not re.search(rf"[`\"]{name}[`\"?]", page)] == []


def test_schemas_say_which_keys_may_be_absent() -> None:
    run = build_schemas()["run"]["$defs"]["RunRecord"]

    assert "accuracy" in run["required"]
    assert "baselines" in set(run["properties"]) - set(run["required"])


def entries() -> dict[str, str]:
    """The glossary's entries with their texts."""
    parts = re.split(r"^### ", text(Path("docs/glossary.md")), flags=re.MULTILINE)[1:]
    pairs = (part.split("\n## ")[0].partition("\n") for part in parts)
    return {name.strip(): meaning.strip() for name, _, meaning in pairs}


def test_glossary_entries_say_where_the_field_uses_them() -> None:
    found = entries()

    assert len(found) > 40
    assert [name for name, meaning in found.items() if "](https://" not in meaning] == []


def test_no_dialect_in_the_glossary() -> None:
    assert [name for name in entries() if DIALECT_TEXT.search(name)] == []
    assert DIALECT_TEXT.search("What is told") is not None


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_dialect_in_headings(page: Path) -> None:
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text(page)), re.MULTILINE)

    assert headings, "every page has a title"
    assert [heading for heading in headings if DIALECT_TEXT.search(heading)] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_pages_are_short(page: Path) -> None:
    long = page.parent.name == "results" or page.name == "CHANGELOG.md"

    assert long or len(text(page).split()) < 2_100


def test_the_readme_is_one_screen() -> None:
    assert len(text(Path("README.md")).splitlines()) <= 150


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"[\w/-]+\.md", text(Path("mkdocs.yml")).split("\nnav:")[1]))

    pages = {page.relative_to("docs").as_posix() for page in PAGES if page.parts[0] == "docs"}
    assert pages - named == set()


LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]+\bsrc=[\"']?(https?:[^\"'\s>]+)"
    r"|<link[^>]+rel=[\"']?(?:stylesheet|preconnect|preload|icon)[^>]+href=[\"']?(https?:[^\"'\s>]+)"
)
"""What a browser loads from elsewhere while it shows a page; links are not loaded."""


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(HOUSE)}

    built = subprocess.run(
        words, cwd=HOUSE, env=environment, check=False, capture_output=True, text=True
    )

    assert built.returncode == 0, built.stderr[-3000:]
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        assert LOADED.findall(page.read_text(encoding="utf-8")) == []
    found = json.loads((tmp_path / "search" / "search_index.json").read_text())
    assert any(entry["title"] == "Noise multiplier" for entry in found["docs"])
    assert LOADED.search('<script src="https://unpkg.com/x.js">') is not None


def test_every_kind_of_release_is_documented() -> None:
    for page in ("README.md", "docs/concepts/releases.md", "docs/concepts/privacy.md"):
        for kind in ReleaseKind:
            assert f"`{kind.value}`" in text(Path(page)), f"{page} lacks {kind.value}"
    for name in Release.__slots__:
        assert f"`{name}`" in text(Path("docs/concepts/ledger.md"))


def test_what_two_utterances_cost_is_as_documented() -> None:
    mu = accounting.gaussian_mu(8.0, 1e-5)

    for together, shown in ((2, 19.1), (3, 33.1), (5, 69.4)):
        release = Release(
            kind=ReleaseKind.GRADIENT,
            mechanism=Mechanism.GAUSSIAN,
            run="",
            round=1,
            noise_multiplier=1 / (together * mu),
            sensitivity=1.0,
        )
        assert accounting.compute_epsilon([release], 1e-5, fast=True) == pytest.approx(
            shown, abs=0.06
        )
        for page in ("privacy", "accounting"):
            assert f"{shown:g}" in text(Path(f"docs/concepts/{page}.md"))


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
    dotted = (name.replace("/", ".").removesuffix(".__init__") for name in names)
    return [f"sottovoce.{name.removeprefix('sottovoce.')}" for name in dotted]


@pytest.mark.parametrize("name", modules())
@pytest.mark.usefixtures("example_folder")
def test_docstring_examples_work(name: str) -> None:
    module = import_module(name)

    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)

    assert tried > 0
    assert failed == 0
