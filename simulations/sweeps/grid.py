"""Which runs a sweep is made of: a scenario, and the settings that vary.

Settings are named as in a scenario's file, those of the recipe with dots: ``epsilon``,
``recipe.clip_norm``, ``recipe.aggregation.max_weight_noise_std``.
"""

import itertools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any, Final

from sottovoce.shared.errors import SettingError
from sottovoce.shared.validation import format_value, suggest_name
from sottovoce.simulations.data import run_plan
from sottovoce.simulations.data.loading import check_encoder
from sottovoce.simulations.results.path_names import folder_name
from sottovoce.simulations.scenario.file_settings import ScenarioSettings
from sottovoce.simulations.scenario.loading import scenario_from_tables
from sottovoce.simulations.scenario.scenario import Scenario

SettingValue = str | int | float | bool
SEED: Final = "seed"
_FIXED: Final = ("corpus", "data", "public", "protocol", "workers", "engine", "baselines", "recipe")
"""What a sweep cannot vary: runs on other speakers are not one curve."""
_MAX_RUNS: Final = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A setting and the values that it takes.

    Attributes:
        setting: Its name in a scenario's file; dots lead into the recipe.
        values: One or more, each once.
    """

    setting: str
    values: tuple[SettingValue, ...]

    def __post_init__(self) -> None:
        known = [entry.name for entry in fields(ScenarioSettings) if entry.name not in _FIXED]
        if self.setting not in known and not self.setting.startswith("recipe."):
            raise SettingError(
                f"a sweep cannot vary {format_value(self.setting)}"
                f"{suggest_name(self.setting, known)}; it varies {', '.join(sorted(known))}, or "
                "a setting of the recipe such as recipe.clip_norm"
            )
        if not self.values:
            raise SettingError(f"{self.setting} has no values to sweep over; give at least one")
        if len({repr(value) for value in self.values}) < len(self.values):
            raise SettingError(f"{self.setting} has a value twice: {list(self.values)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: Fit for a folder, unique in its sweep.
        settings: Value of each axis; None where it means nothing, as epsilon without a promise.
        scenario: What is run.
    """

    name: str
    settings: Mapping[str, SettingValue | None]
    scenario: Scenario


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A base scenario and the settings that vary.

    Attributes:
        base: The scenario as tables of TOML.
        axes: What varies; every combination is run.
    """

    base: Mapping[str, Any]
    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if not self.axes:
            raise SettingError("say what to sweep over, such as --epsilons 1,2,4,8 --seeds 0,1,2")
        names = [axis.setting for axis in self.axes]
        if len(set(names)) < len(names):
            raise SettingError(f"a sweep varies each setting once, not {', '.join(names)}")
        runs = 1
        for axis in self.axes:
            runs *= len(axis.values)
        if runs > _MAX_RUNS:
            raise SettingError(f"these are {runs} runs; a sweep holds at most {_MAX_RUNS}")

    def expand_runs(self) -> tuple[SweepRun, ...]:
        """Every run, all settings of the first seed first; none is there twice.

        Raises:
            SettingError: A run that cannot be: its settings make no sense, or its budget is too
                small. Said before anything is computed, with the run's name.
        """
        axes = sorted(self.axes, key=lambda axis: axis.setting != SEED)
        found: dict[str, SweepRun] = {}
        for values in itertools.product(*(axis.values for axis in axes)):
            chosen = dict(zip((axis.setting for axis in axes), values, strict=True))
            point = self._make_run({axis.setting: chosen[axis.setting] for axis in self.axes})
            found.setdefault(point.name, point)
        return tuple(found.values())

    def _make_run(self, settings: Mapping[str, SettingValue]) -> SweepRun:
        """The run with these settings."""
        record = deepcopy(dict(self.base))
        for setting, value in settings.items():
            _put(record, setting, value)
        name = _name(settings)
        scenario = scenario_from_tables(record, source=f"the run {name}")
        if "epsilon" in settings and not scenario.privacy_scheme.promised:
            del record["epsilon"]
            scenario = scenario_from_tables(record, source=f"the run {name}")
            settings = {**settings, "epsilon": None}  # type: ignore[dict-item]
            name = _name(settings)
        try:
            check_encoder(scenario.data.encoder, scenario.recipe)
            run_plan.check_budget(scenario.plan_settings, scenario.privacy)
        except SettingError as error:
            raise SettingError(f"the run {name}: {error}") from error
        return SweepRun(name=name, settings=settings, scenario=scenario)


def _put(record: dict[str, Any], setting: str, value: SettingValue) -> None:
    """Set a value in tables of TOML, by its dotted name."""
    *tables, last = setting.split(".")
    for table in tables:
        inner = record.setdefault(table, {})
        if not isinstance(inner, dict):
            raise SettingError(f"{table} is {inner!r}; it must be a table to vary {setting}")
        record = inner
    record[last] = value


def _name(settings: Mapping[str, SettingValue | None]) -> str:
    """Settings as a folder's name."""
    return folder_name(
        "-".join(
            f"{setting.rpartition('.')[2]}_{value}"
            for setting, value in settings.items()
            if value is not None
        )
        or "run"
    )


def parse_axes(table: Mapping[str, Any]) -> tuple[Axis, ...]:
    """Axes from the table ``[sweep]`` of a file.

    Raises:
        SettingError: A value that is no list of texts, numbers or truth values.
    """
    return tuple(
        axis
        for setting, values in _flat(table)
        for axis in [Axis(setting=setting, values=_values(setting, values))]
    )


def _flat(table: Mapping[str, Any], path: str = "") -> Sequence[tuple[str, Any]]:
    """Tables within tables by dotted names."""
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{path}{name}.")
        else:
            found.append((f"{path}{name}", value))
    return found


def _values(setting: str, values: object) -> tuple[SettingValue, ...]:
    """A list of plain values."""
    plain = isinstance(values, list) and all(isinstance(v, str | int | float) for v in values)
    if not isinstance(values, list) or not plain:
        raise SettingError(f"sweep.{setting} is {values!r}; it must be a list of plain values")
    return tuple(values)
