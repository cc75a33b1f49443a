"""Scenarios from TOML: by file, or by the name of one that comes along."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.simulations.population.settings import PopulationSettings
from sottovoce.simulations.scenario import Recipe, Scenario, settle


def read(text: str, *, source: str) -> Scenario:
    """A scenario from TOML.

    Raises:
        SettingError: Not TOML, an unknown key, or a value that makes no sense.
    """
    try:
        record = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{source} is not TOML: {error}") from error
    return scenario_of(record, source=source)


def scenario_of(record: Mapping[str, Any], *, source: str) -> Scenario:
    """A scenario from TOML's tables; errors as in :func:`read`."""
    try:
        return _build(record)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise SettingError(f"{source}: {error}") from error
    except SottovoceError as error:
        raise SettingError(f"{source}: {error}") from error


def find(name: str) -> Scenario:
    """A scenario by file or by the name of one that comes along.

    Raises:
        SettingError: There is none.
    """
    return read(_text(name), source=name)


def table_of(name: str) -> dict[str, Any]:
    """A scenario's file as TOML's tables, unchecked; errors as in :func:`find`."""
    try:
        return tomllib.loads(_text(name))
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{name} is not TOML: {error}") from error


def _text(name: str) -> str:
    """What a scenario's file holds, or one that comes along."""
    path = Path(name)
    if path.suffix == ".toml":
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"the scenario {name} cannot be read: {error}") from error
    shelf = resources.files("sottovoce.simulations.scenarios")
    known = sorted(entry.name[:-5] for entry in shelf.iterdir() if entry.name.endswith(".toml"))
    if name not in known:
        raise SettingError(
            f"there is no scenario {name!r}; give a .toml file or one of {', '.join(known)}"
        )
    return (shelf / f"{name}.toml").read_text(encoding="utf-8")


def _build(record: Mapping[str, Any]) -> Scenario:
    """A scenario from TOML's tables."""
    values = dict(record)
    public = tuple(_corpus(entry) for entry in _list(values, "public"))
    baselines = tuple(str(name) for name in _list(values, "baselines"))
    recipe = _table(values.pop("recipe", {}), "recipe")
    crowd = values.pop("population", None)
    settings = _settings(Scenario, values, "scenario")
    if crowd is not None:
        settings["population"] = _population(_table(crowd, "population"))
    if "corpus" not in settings:
        raise SettingError('the scenario names no corpus; add a line such as corpus = "synthetic"')
    scenario = Scenario(public=public, baselines=baselines, **settings)
    scenario = settle(scenario, model=recipe.get("model"))
    return replace(scenario, recipe=_override(scenario.recipe, recipe))


def _list(values: dict[str, Any], name: str) -> list[Any]:
    """A list taken out of a table; empty where there is none."""
    found = values.pop(name, [])
    if not isinstance(found, list):
        raise SettingError(f"{name} is {found!r}; it must be a list")
    return found


def _table(value: object, where: str) -> Mapping[str, Any]:
    """A value that must be a table."""
    if not isinstance(value, Mapping):
        raise SettingError(f"{where} is {value!r}; it must be a table, [{where}]")
    return value


def _corpus(entry: object) -> tuple[str, str]:
    """Name and data of one public corpus."""
    table = _table(entry, "public")
    if not set(table) <= {"name", "data"} or "name" not in table:
        raise SettingError(f"public has {', '.join(table) or 'nothing'}; it needs name and data")
    return str(table["name"]), str(table.get("data", ""))


def _population(values: Mapping[str, Any]) -> PopulationSettings:
    """The table ``[population]``."""
    settings = _settings(PopulationSettings, values, "population")
    missing = sorted({"users", "cohort"} - set(settings))
    if missing:
        raise SettingError(f"population lacks {' and '.join(missing)}; both are needed")
    return PopulationSettings(**settings)


def _override(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A recipe with some of its settings replaced."""
    plain = {name: value for name, value in values.items() if name not in _PARTS}
    changed = _settings(Recipe, plain, "recipe")
    for name in _PARTS:
        if name in values:
            part, where = getattr(recipe, name), f"recipe.{name}"
            changed[name] = replace(
                part, **_settings(type(part), _table(values[name], where), where)
            )
    return replace(recipe, **changed)


_PARTS = ("front", "aggregation", "user", "loss")
_KINDS: Mapping[object, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _settings(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings that mean something and are of their kind; whole numbers may stand for others.

    Raises:
        SettingError: A misspelled setting, which must not be the default, or one of another kind.
    """
    types = {entry.name: entry.type for entry in fields(kind)}
    unknown = sorted(set(values) - set(types))
    if unknown:
        raise SettingError(
            f"{where} has unknown settings {', '.join(unknown)}; known: {', '.join(sorted(types))}"
        )
    settings = dict(values)
    for name, value in values.items():
        wanted = types[name]
        if wanted is float and type(value) is int:
            settings[name] = float(value)
        elif type(value) is not wanted:
            raise SettingError(f"{where}.{name} is {value!r}; it must be {_KINDS[wanted]}")
    return settings
