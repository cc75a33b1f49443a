"""Scenarios from TOML: by file, or by the name of a preset."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sottovoce.server.planning.recipe import default_recipe
from sottovoce.shared import codec, validation
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.simulations.scenario.file_settings import ScenarioSettings
from sottovoce.simulations.scenario.scenario import Scenario, settle_scenario

__all__ = [
    "RENAMED_SETTINGS",
    "Scenario",
    "load_scenario",
    "load_tables",
    "parse_scenario",
    "parse_tables",
    "scenario_from_tables",
    "vary_scenario",
]


def parse_scenario(text: str, *, source: str) -> Scenario:
    """Read a scenario from TOML.

    Raises:
        SettingError: Not TOML, an unknown key, or a value that makes no sense.
    """
    return scenario_from_tables(parse_tables(text, source=source), source=source)


def parse_tables(text: str, *, source: str) -> dict[str, Any]:
    """Read TOML's tables, of which nothing is checked but that no number is beyond use."""
    return codec.decode_toml(text, dict[str, Any], name=source)


def scenario_from_tables(record: Mapping[str, Any], *, source: str) -> Scenario:
    """Make a scenario of TOML's tables; errors as in :func:`parse_scenario`."""
    for path, table in _walk_tables(record):
        _refuse_renamed(table, path, source)
    if "corpus" not in record:
        raise SettingError(
            f'{source}: the scenario names no corpus; add a line such as corpus = "synthetic"'
        )
    whole = dict(record) | {"recipe": _complete_recipe(record)}
    settings = codec.convert_settings(whole, ScenarioSettings, name=source)
    try:
        return settle_scenario(settings)
    except SottovoceError as error:
        raise SettingError(f"{source}: {error}".removeprefix(": ")) from error


def load_scenario(name: str) -> Scenario:
    """Load a scenario by file or by the name of a preset.

    Raises:
        SettingError: There is none.
    """
    return parse_scenario(_scenario_text(name), source=name)


def load_tables(name: str) -> dict[str, Any]:
    """Load a scenario's file as TOML's tables, unchecked; errors as in :func:`load_scenario`."""
    return parse_tables(_scenario_text(name), source=name)


def vary_scenario(
    base: Scenario | None, settings: Mapping[str, Any], *, model: str | None = None
) -> Scenario:
    """Replace some of a scenario's settings, and fill in their consequences.

    Args:
        base: The scenario; None begins with the defaults.
        settings: By their names in a scenario's file.
        model: Kind of the shared model; None is the scenario's.

    Raises:
        SettingError: An unknown setting, one that makes no sense, or no corpus.

    >>> vary_scenario(load_scenario("demo"), {"epsilon": 4.0}).privacy.epsilon
    4.0
    """
    changes = {name: _to_table(value) for name, value in settings.items()}
    for name in changes:
        validation.require_one_of(ScenarioSettings.__slots__, setting=name)
    if isinstance(settings.get("public"), tuple | list):
        changes["public"] = [_public_table(entry) for entry in settings["public"]]
    if base is None and "corpus" not in changes:
        raise SettingError("say what to simulate: a scenario such as demo, or a corpus")
    record = base.to_tables() if base else {}
    if model or (base and _has_other_recipe(record, record | changes)):
        # Recipe, encoder and rounds follow the model and the unit, unless they were asked for.
        for name in ("recipe", "encoder", "rounds"):
            record.pop(name, None)
    record = {name: value for name, value in (record | changes).items() if value is not None}
    if model:
        record["recipe"] = {**record.get("recipe", {}), "model": model}
    return scenario_from_tables(record, source="")


def _to_table(value: object) -> Any:  # noqa: ANN401  (whatever a caller gives)
    """A setting as TOML would hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return list(value) if isinstance(value, tuple) else value


def _public_table(entry: object) -> object:
    """A public corpus as its table; a pair is name and folder."""
    if isinstance(entry, tuple | list) and len(entry) == 2:
        return {"name": entry[0], "data": entry[1]}
    return _to_table(entry)


def _scenario_text(name: str) -> str:
    """The text of a scenario's file, or of a preset."""
    path = Path(name)
    if path.suffix == ".toml":
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SettingError(f"the scenario {name} cannot be read: {error}") from error
    presets = resources.files("sottovoce.simulations.scenario.presets")
    known = sorted(entry.name[:-5] for entry in presets.iterdir() if entry.name.endswith(".toml"))
    if name not in known:
        raise SettingError(
            f"there is no scenario {name!r}{validation.suggest_name(name, known)}; give a .toml "
            f"file or one of {', '.join(known)}"
        )
    return (presets / f"{name}.toml").read_text(encoding="utf-8")


def _complete_recipe(record: Mapping[str, Any]) -> object:
    """The usual recipe of the unit and the model, and over it the settings that are named."""
    named = record.get("recipe", {})
    if not isinstance(named, Mapping):
        return named  # refused with its path, like any other value of a wrong kind
    model = named.get("model")
    usual = default_recipe(
        unit=_unit_of(record),
        model=model if isinstance(model, str) else None,
        secure=record.get("secure") is True,
    )
    return _merge_tables(asdict(usual), named)


def _unit_of(record: Mapping[str, Any]) -> str:
    """Name of the unit that a scenario's file asks for."""
    return str(record.get("unit", "utterance"))


def _has_other_recipe(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two scenarios promise such that their usual recipes differ."""
    usual = [
        default_recipe(unit=_unit_of(record), secure=record.get("secure") is True)
        for record in (one, other)
    ]
    return _unit_of(one) != _unit_of(other) or usual[0] != usual[1]


def _merge_tables(usual: dict[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Tables with what is named in place of what is usual."""
    merged = dict(usual)
    for name, value in named.items():
        inner = usual.get(name)
        if isinstance(inner, dict) and isinstance(value, Mapping):
            merged[name] = _merge_tables(inner, value)
        else:
            merged[name] = value
    return merged


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


def _walk_tables(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every table that has had other names, by its path."""
    yield "scenario", record
    for name in ("population", "recipe"):
        table = record.get(name)
        if not isinstance(table, Mapping):
            continue
        yield name, table
        yield from (
            (f"{name}.{key}", inner) for key, inner in table.items() if isinstance(inner, Mapping)
        )


def _refuse_renamed(values: Mapping[str, Any], where: str, source: str) -> None:
    """Refuse settings that are called otherwise now.

    Raises:
        SettingError: There is one; says what it is called.
    """
    renamed = {old: new for old, new in RENAMED_SETTINGS.get(where, {}).items() if old in values}
    if renamed:
        names = ", ".join(f"{old} is called {new} now" for old, new in renamed.items())
        said = f"{source}: {where} has settings of an earlier release: {names}; rename them"
        raise SettingError(said.removeprefix(": "))
