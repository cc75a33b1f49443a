"""Settings, sweeps, plans and jobs: whatever a file holds, it is read or refused."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from builders import make_job, make_plan
from hypothesis import given
from hypothesis import strategies as st
from mutations import FUZZ, extreme_values, mutated_bytes, mutated_json

from sottovoce.server.federation.training_job import Job
from sottovoce.shared.errors import MessageError, ModelError, SettingError
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.corpora.synthetic.synthetic_corpus import open_synthetic
from sottovoce.simulations.scenario import loading
from sottovoce.simulations.sweeps.grid import Sweep, parse_axes

DEMO = loading.load_scenario("demo")
POPULATION = loading.load_scenario("population")
TABLES = [scenario.to_tables() for scenario in (DEMO, POPULATION)]
TEXTS = [scenario.to_toml().encode() for scenario in (DEMO, POPULATION)]
SWEEP = {"epsilon": [1, 2], "unit": ["user"], "recipe": {"clip_norm": [0.5], "steps": [1]}}
PLAN = json.loads(make_plan().to_json())


@FUZZ
@given(data=mutated_bytes(*TEXTS))
def test_any_text_is_a_scenario_or_a_settings_error(data: bytes) -> None:
    with contextlib.suppress(SettingError):
        loading.parse_scenario(data.decode(errors="replace"), source="x").to_toml()


@FUZZ
@given(tables=st.one_of(*map(mutated_json, TABLES)))
def test_any_tables_are_a_scenario_or_a_settings_error(tables: Any) -> None:
    if isinstance(tables, dict):
        with contextlib.suppress(SettingError):
            scenario = loading.scenario_from_tables(tables, source="x")
            assert loading.parse_scenario(scenario.to_toml(), source="x") == scenario


@FUZZ
@given(
    name=st.sampled_from([*TABLES[0], "population", "recipes", "\x1b[2J"]), value=extreme_values()
)
def test_any_setting_of_a_call_is_taken_or_refused_in_few_words(name: str, value: Any) -> None:
    said = ""
    try:
        loading.vary_scenario(DEMO, {name: value})
    except SettingError as refused:
        said = str(refused)
    assert len(said) < 1_500


@FUZZ
@given(table=mutated_json(SWEEP))
def test_any_table_is_a_sweep_or_a_settings_error(table: Any) -> None:
    if isinstance(table, dict):
        with contextlib.suppress(SettingError):
            axes = parse_axes(table)
            Sweep(base={"corpus": "synthetic"}, axes=axes)


@FUZZ
@given(text=st.text(max_size=40) | mutated_bytes(b"speakers=3,clips=4,seed=7").map(str))
def test_any_options_are_a_small_corpus_or_a_settings_error(text: str) -> None:
    with contextlib.suppress(SettingError):
        assert len(open_synthetic(text).clips) <= 100_000


@FUZZ
@given(record=mutated_json(PLAN))
def test_any_json_is_a_plan_or_a_message_error(record: Any) -> None:
    with contextlib.suppress(MessageError):
        Plan.from_json(json.dumps(record)).to_json()


@FUZZ
@given(data=mutated_bytes(make_plan().to_json().encode()))
def test_any_text_is_a_plan_or_a_message_error(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        Plan.from_json(data.decode(errors="replace"))


@pytest.fixture(scope="module")
def job_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job on the disk, whose files examples write anew."""
    folder = tmp_path_factory.mktemp("job")
    make_job().save(folder)
    return folder


@FUZZ
@given(data=st.data())
def test_any_file_is_a_job_or_a_model_error(job_folder: Path, data: st.DataObject) -> None:
    valid = (job_folder / "valid.json") if (job_folder / "valid.json").exists() else None
    text = (valid or job_folder / "job.json").read_text()
    (job_folder / "valid.json").write_text(text)
    record = json.loads(text)
    changed = data.draw(mutated_json(record) | st.just(record))
    (job_folder / "job.json").write_text(json.dumps(changed))

    with contextlib.suppress(ModelError):
        Job.load(job_folder)
