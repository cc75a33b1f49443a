"""Fills the reference of the site from the code's own types, while MkDocs builds it.

A line ``<!-- generated: NAME -->`` of a page is replaced by what ``GENERATORS[NAME]`` returns:
commands from the parser, settings from the dataclasses, schemas from the records that check files.
The API has a page for each package; changelog and contributors' guide come from the root.
"""

import argparse
import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import indent
from typing import Any, get_args, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sottovoce.cli.main import build_parser
from sottovoce.shared.features.acoustic.catalogue import format_catalogue
from sottovoce.shared.privacy.scheme import PrivacyScheme
from sottovoce.shared.privacy.schemes import find_scheme, unit_names
from sottovoce.simulations.results import schema
from sottovoce.simulations.scenario.file_settings import ScenarioSettings
from sottovoce.simulations.scenario.loading import vary_scenario

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shared", "client", "server", "simulations")
INTERNAL = ("simulations.benchmarks", "simulations.experiments")
"""Packages whose modules are programs, not an interface."""
REPOSITORY_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "`utterance`": {"unit": "utterance"},
    "`user`": {"unit": "user"},
    "`both`": {"unit": "both"},
    "`none`": {"unit": "none"},
    "`utterance`, secure sums": {"unit": "utterance", "secure": True},
    "`both`, secure sums": {"unit": "both", "secure": True},
    "end to end": {"unit": "none", "model": "cnn-attention"},
}
"""Headings of the table of usual settings, and what each stands for."""
_MARKER = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)


def on_startup(*, command: str, dirty: bool) -> None:
    """Copy the code to where mkdocstrings finds it under the names that it is imported by.

    Before plugins are configured: mkdocstrings leaves out a search path that is not there.
    """
    del command, dirty
    view = ROOT / "build" / "docs" / "sottovoce"
    shutil.rmtree(view, ignore_errors=True)
    only_code = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "sottovoce", view, ignore=only_code)
    for folder in PACKAGES:
        shutil.copytree(ROOT / folder, view / folder, ignore=only_code)
    for path in view.rglob("*.py"):
        path.write_text(mark_examples(path.read_text(encoding="utf-8")), encoding="utf-8")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the API's packages to the navigation."""
    _extend_navigation(config.nav)
    return config


def mark_examples(code: str) -> str:
    """Put doctests into a section "Examples:", where mkdocstrings shows them as code."""
    code = re.sub(r"^( +)Example:$", r"\1Examples:", code, flags=re.MULTILINE)
    bare = re.compile(r'\n\n( +)(>>> (?:.|\n)*?)(?=\n\n|\n *""")')
    return bare.sub(lambda m: f"\n\n{m[1]}Examples:\n{indent(m[1] + m[2], '    ')}", code)


def _extend_navigation(nav: list[dict[str, Any]]) -> None:
    """Add the packages below the API's page, grouped by top-level package."""
    reference = next(entry["Reference"] for entry in nav if "Reference" in entry)
    api = next(entry for entry in reference if isinstance(entry, dict) and "API" in entry)
    api["API"] = [api["API"]] if isinstance(api["API"], str) else api["API"][:1]
    for top in PACKAGES:
        inner = [name for name in list_packages() if name.split(".")[0] == top]
        api["API"].append({top: [{name: f"reference/api/{name}.md"} for name in inner]})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files that lie nowhere else."""
    for package in list_packages():
        uri = f"reference/api/{package}.md"
        files.append(File.generated(config, uri, content=format_package(package)))
    for name, content in schema.build_schemas().items():
        uri = f"reference/schemas/{name}.schema.json"
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        files.append(File.generated(config, uri, content=text))
    for name in REPOSITORY_PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](../")
        files.append(File.generated(config, f"project/{name.lower()}", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is generated in the place of its marker."""
    del page, config, files
    return _MARKER.sub(lambda found: GENERATORS[found[1]](), markdown)


# Commands


def format_commands() -> str:
    """Every command: what it does, how it is called, its options and an example."""
    return "\n".join(_format_parser(*pair) for pair in walk_commands(build_parser(), "sottovoce"))


def walk_commands(
    parser: argparse.ArgumentParser, name: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command that does something, with its parser."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield name, parser
    for group in groups:
        for word, inner in group.choices.items():
            yield from walk_commands(inner, f"{name} {word}")


def _format_parser(name: str, parser: argparse.ArgumentParser) -> str:
    """One command as a section."""
    usage = re.sub(r"\s+", " ", parser.format_usage()).removeprefix("usage: ").strip()
    lines = [f"## {name}", "", parser.description or "", ""]
    lines += ["```text", *_wrap_usage(usage), "```", ""]
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        actions = [a for a in actions if a.dest != "help"]
        if actions:
            lines += ["", f"| {group.title} | meaning |", "|---|---|"]
            lines += [f"| {_option(a)} | {_cell(a.help or '')} |" for a in actions]
    epilog = (parser.epilog or "").strip()
    if epilog:
        title, _, example = epilog.partition("\n")
        lines += ["", title.capitalize(), "", "```bash", _dedent(example), "```", ""]
    return "\n".join(lines) + "\n"


def _wrap_usage(usage: str) -> list[str]:
    """A usage in lines of at most 80 characters, broken between options."""
    lines = [""]
    for part in re.findall(r"\[[^\]]*\]|\S+", usage):
        if len(lines[-1]) + len(part) > 79:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return lines


def _option(action: argparse.Action) -> str:
    """The words of an option, and what it takes."""
    words = ", ".join(action.option_strings)
    if action.nargs == 0:
        return f"`{words}`"
    choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else ""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    takes = metavar or choices or (action.dest.upper() if words else action.dest)
    return f"`{words} {takes}`" if words else f"`{takes}`"


def _dedent(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def _cell(text: str) -> str:
    """A text as a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("%%", "%")


# Settings


def format_settings() -> str:
    """Every setting of a scenario, table by table, from the dataclasses and their docstrings."""
    lines: list[str] = []
    for table, kind in walk_settings(ScenarioSettings):
        lines += [f"## {f'[{table}]' if table else 'The scenario'}", ""]
        lines += [_summary(kind), "", "| setting | type | default | meaning |", "|---|---|---|---|"]
        described = describe_fields(kind)
        for entry in dataclasses.fields(kind):
            if not _settings_class(_hints(kind)[entry.name]):
                cells = (f"`{entry.name}`", _type_name(kind, entry), _default(entry))
                lines.append(f"| {' | '.join(cells)} | {_cell(described.get(entry.name, ''))} |")
        lines.append("")
    return "\n".join(lines)


def format_recipes() -> str:
    """The usual recipe of each privacy unit, one column each."""
    recipes = {name: dict(_leaves(_settled(**how))) for name, how in RECIPES.items()}
    rows = [name for name in next(iter(recipes.values())) if name.startswith(("recipe.", "rounds"))]
    lines = [f"| setting | {' | '.join(recipes)} |", "|---|" + "---|" * len(recipes)]
    for name in rows:
        cells = " | ".join(f"{recipe[name]}" for recipe in recipes.values())
        lines.append(f"| `{name.removeprefix('recipe.')}` | {cells} |")
    return "\n".join(lines) + "\n"


def _settled(*, unit: str, model: str | None = None, secure: bool = False) -> ScenarioSettings:
    """The scenario that these choices alone make."""
    chosen = {"corpus": "synthetic", "unit": unit, "secure": secure}
    return vary_scenario(None, chosen, model=model).to_settings()


def walk_settings(kind: type, table: str = "") -> Iterator[tuple[str, type]]:
    """Yield the tables of a scenario's file with the dataclass of each."""
    yield table, kind
    for name, hint in _hints(kind).items():
        inner = _settings_class(hint)
        if inner:
            yield from walk_settings(inner, f"{table}.{name}" if table else name)


def describe_fields(kind: type) -> dict[str, str]:
    """What the docstring's section "Attributes" says of each field."""
    section = (kind.__doc__ or "").partition("Attributes:\n")[2].split("\n\n")[0]
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {9,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _hints(kind: type) -> dict[str, Any]:
    """Types of a dataclass's fields."""
    hints = get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(kind)}


def _settings_class(hint: object) -> type | None:
    """The dataclass of settings that a type is, or may be."""
    for option in (hint, *get_args(hint)):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option
    return None


def _summary(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _type_name(kind: type, entry: dataclasses.Field[Any]) -> str:
    hint = _hints(kind)[entry.name]
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if entry.name == "public":
        return "tables `[[public]]` of `name` and `data`"
    return plain.get(hint, "list of texts" if "tuple" in str(hint) else str(hint))


def _default(entry: dataclasses.Field[Any]) -> str:
    if entry.default is dataclasses.MISSING:
        return "required"
    value = entry.default
    if value in ((), "", None):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Settings by their dotted names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            inner = getattr(value, entry.name)
            yield from _leaves(inner, f"{name}.{entry.name}" if name else entry.name)
    else:
        yield name, value


# JSON Schemas


def format_schemas() -> str:
    """Every schema as a section with a link to its file."""
    lines = []
    for name, content in schema.build_schemas().items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        lines += [f"## {name}.json", "", f"[{name}.schema.json](schemas/{name}.schema.json)", ""]
        lines += [f'??? note "{name}.schema.json"', ""]
        lines += [f"    {line}" for line in ("```json", *text.splitlines(), "```")]
        lines.append("")
    return "\n".join(lines)


# API


def list_packages() -> list[str]:
    """Packages with modules of their own, by their dotted names."""
    names = []
    for top in PACKAGES:
        for folder in sorted({path.parent for path in (ROOT / top).rglob("*.py")}):
            name = folder.relative_to(ROOT).as_posix().replace("/", ".")
            if list_modules(name) and name not in INTERNAL:
                names.append(name)
    return names


def list_modules(package: str) -> list[str]:
    """Public modules of a package, by their dotted names."""
    paths = sorted((ROOT / package.replace(".", "/")).glob("*.py"))
    stems = (path.stem for path in paths if not path.stem.startswith("_"))
    return [f"sottovoce.{package}.{stem}" for stem in stems]


def format_package(package: str) -> str:
    """The page of one package: its modules, each with its public names."""
    # Guides and concepts come first in the search.
    lines = ["---", "search:", "  boost: 0.2", "---", ""]
    lines += [f"# sottovoce.{package}", "", package_summary(package), ""]
    for module in list_modules(package):
        lines += [f"::: {module}", ""]
    return "\n".join(lines)


def package_summary(package: str) -> str:
    """The first paragraph of a package's docstring."""
    text = (ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    found = re.match(r'r?"""(.*?)(?:\n\n|""")', text, re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def format_api() -> str:
    """A table of all packages."""
    rows = [
        f"| [`sottovoce.{name}`](api/{name}.md) | {_cell(package_summary(name))} |"
        for name in list_packages()
    ]
    return "\n".join(["| package | what it is |", "|---|---|", *rows]) + "\n"


# Adversaries


def format_adversaries() -> str:
    """A table of adversaries for every unit of privacy, from the schemes themselves."""
    sections = []
    for title, scheme in list_schemes():
        rows = [
            f"| {one.adversary} | {one.holds} | {one.assumption} |" for one in scheme.adversaries()
        ]
        head = ["| adversary | what holds | assuming |", "|---|---|---|"]
        sections += [f"## {title}", "", *head, *rows, ""]
    return "\n".join(sections)


def list_schemes() -> Iterator[tuple[str, PrivacyScheme]]:
    """Yield every scheme, under the option that chooses it."""
    for unit in unit_names():
        for secure in (False, True):
            scheme = find_scheme(unit, secure=secure)
            if scheme:
                yield f"`--unit {unit}{' --secure-aggregation' if secure else ''}`", scheme


GENERATORS: Mapping[str, Callable[[], str]] = {
    "adversaries": format_adversaries,
    "api": format_api,
    "commands": format_commands,
    "descriptors": format_catalogue,
    "recipes": format_recipes,
    "schemas": format_schemas,
    "settings": format_settings,
}
