"""Scenarios from TOML: by file, or by the name of a preset."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from sottovoce.server.planning.recipe import Recipe
from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.simulations.scenario.population import PopulationSettings
from sottovoce.simulations.scenario.scenario import Scenario, fill_defaults


def parse_scenario(text: str, *, source: str) -> Scenario:
    """A scenario from TOML.

    Raises:
        SettingError: Not TOML, an unknown key, or a value that makes no sense.
    """
    try:
        record = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{source} is not TOML: {error}") from error
    return scenario_from_tables(record, source=source)


def scenario_from_tables(record: Mapping[str, Any], *, source: str) -> Scenario:
    """A scenario from TOML's tables; errors as in :func:`parse_scenario`."""
    try:
        return _build(record)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise SettingError(f"{source}: {error}") from error
    except SottovoceError as error:
        raise SettingError(f"{source}: {error}") from error


def load_scenario(name: str) -> Scenario:
    """A scenario by file or by the name of a preset.

    Raises:
        SettingError: There is none.
    """
    return parse_scenario(_scenario_text(name), source=name)


def load_tables(name: str) -> dict[str, Any]:
    """A scenario's file as TOML's tables, unchecked; errors as in :func:`load_scenario`."""
    try:
        return tomllib.loads(_scenario_text(name))
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{name} is not TOML: {error}") from error


def vary_scenario(
    base: Scenario | None, settings: Mapping[str, Any], *, model: str | None = None
) -> Scenario:
    """A scenario with some of its settings replaced, and what follows from them filled in.

    Args:
        base: The scenario; None begins with the defaults.
        settings: By the names of a scenario's fields.
        model: Kind of the shared model; None is the scenario's.

    Raises:
        SettingError: An unknown setting, one that makes no sense, or no corpus.

    >>> vary_scenario(load_scenario("demo"), {"epsilon": 4.0}).epsilon
    4.0
    """
    changes = _check_changes(settings)
    if base is None:
        if "corpus" not in changes:
            raise SettingError("say what to simulate: a scenario such as demo, or a corpus")
        return fill_defaults(Scenario(**changes), model=model)
    changed = replace(base, **changes)
    if model or changed.unit != base.unit:
        # Encoder and rounds follow the model and the unit, unless they were asked for.
        follow: dict[str, Any] = {"encoder": "", "rounds": 0}
        derived = {name: none for name, none in follow.items() if not changes.get(name)}
        return fill_defaults(replace(changed, **derived), model=model)
    return changed


def _check_changes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario's settings that are known and of their kind; lists become tuples."""
    types = {entry.name: entry.type for entry in fields(Scenario)}
    for name in settings:
        validation.require_one_of(types, setting=name)
    plain = {name: value for name, value in settings.items() if types[name] in _TYPE_NAMES}
    changes = dict(settings) | _settings(Scenario, plain, "scenario")
    for name in ("public", "baselines"):
        if name in changes:
            changes[name] = tuple(changes[name])
    return changes


def _scenario_text(name: str) -> str:
    """The text of a scenario's file, or of a preset."""
    path = Path(name)
    if path.suffix == ".toml":
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"the scenario {name} cannot be read: {error}") from error
    presets = resources.files("sottovoce.simulations.scenario.presets")
    known = sorted(entry.name[:-5] for entry in presets.iterdir() if entry.name.endswith(".toml"))
    if name not in known:
        raise SettingError(
            f"there is no scenario {name!r}{validation.suggest_name(name, known)}; give a .toml "
            f"file or one of {', '.join(known)}"
        )
    return (presets / f"{name}.toml").read_text(encoding="utf-8")


def _build(record: Mapping[str, Any]) -> Scenario:
    """A scenario from TOML's tables."""
    values = dict(record)
    public = tuple(_corpus(entry) for entry in _list(values, "public"))
    baselines = tuple(str(name) for name in _list(values, "baselines"))
    recipe = _table(values.pop("recipe", {}), "recipe")
    population = values.pop("population", None)
    settings = _settings(Scenario, values, "scenario")
    if population is not None:
        settings["population"] = _population(_table(population, "population"))
    if "corpus" not in settings:
        raise SettingError('the scenario names no corpus; add a line such as corpus = "synthetic"')
    scenario = Scenario(public=public, baselines=baselines, **settings)
    scenario = fill_defaults(scenario, model=recipe.get("model"))
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
    _refuse_renamed(values, "recipe")
    plain = {name: value for name, value in values.items() if name not in _NESTED_TABLES}
    changed = _settings(Recipe, plain, "recipe")
    for name in _NESTED_TABLES:
        if name in values:
            part, where = getattr(recipe, name), f"recipe.{name}"
            changed[name] = replace(
                part, **_settings(type(part), _table(values[name], where), where)
            )
    return replace(recipe, **changed)


_NESTED_TABLES = ("projection", "aggregation", "shares", "user", "loss")
RENAMED_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "scenario": {"tuned_over": "tuning_runs", "head_clips": "labelled_clips_per_user"},
    "population": {
        "hours": "available_hours_per_day",
        "reply_s": "median_reply_s",
        "slow": "log_speed_std",
        "every_s": "round_interval_s",
    },
    "recipe": {
        "front": "projection",
        "warm_decay": "pretraining_weight_decay",
        "calibration_taken_back": "calibration_subtracted_share",
        "centre_share": "recipe.shares.centre",
        "normaliser_share": "recipe.shares.normaliser",
        "calibration_share": "recipe.shares.head_statistics",
    },
    "recipe.projection": {"emphasis": "discriminant_weight", "length": "row_norm"},
    "recipe.aggregation": {
        "second_moment": "second_moment_decay",
        "weight_noise": "max_weight_noise_std",
        "update_norm": "max_update_norm",
    },
    "recipe.user": {
        "cohort_rate": "user_sampling_rate",
        "spacing": "min_separation",
        "counts_share": "recipe.shares.label_counts",
        "centre_share": "recipe.shares.centre",
    },
}
"""By table, settings of earlier releases and what they are called now."""
_TYPE_NAMES: Mapping[object, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _refuse_renamed(values: Mapping[str, Any], where: str) -> None:
    """Refuse settings that are called otherwise now.

    Raises:
        SettingError: There is one; says what it is called.
    """
    renamed = {old: new for old, new in RENAMED_SETTINGS.get(where, {}).items() if old in values}
    if renamed:
        names = ", ".join(f"{old} is called {new} now" for old, new in renamed.items())
        raise SettingError(f"{where} has settings of an earlier release: {names}; rename them")


def _settings(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings that mean something and are of their kind; whole numbers may stand for others.

    Raises:
        SettingError: A misspelled setting, which must not be the default, or one of another kind.
    """
    _refuse_renamed(values, where)
    types = {entry.name: entry.type for entry in fields(kind)}
    unknown = sorted(set(values) - set(types))
    if unknown:
        raise SettingError(
            f"{where} has unknown settings {', '.join(unknown)}"
            f"{validation.suggest_name(unknown[0], types)}; known: {', '.join(sorted(types))}"
        )
    settings = dict(values)
    for name, value in values.items():
        wanted = types[name]
        if wanted is float and type(value) is int:
            settings[name] = float(value)
        elif type(value) is not wanted:
            raise SettingError(f"{where}.{name} is {value!r}; it must be {_TYPE_NAMES[wanted]}")
    return settings
