"""Whole runs over a population of 500: repeatable, resumable, accounted for, no file a user."""

import json
import os
import shutil
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.cli import main, simulate
from sottovoce.server.federation import checkpoint
from sottovoce.shared.errors import SettingError
from sottovoce.simulations.population.fold import PopulationFoldRun
from sottovoce.simulations.population.run import memory_growth_mb
from sottovoce.simulations.results.schema import read_privacy, read_run
from sottovoce.simulations.scenario import loading
from sottovoce.simulations.scenario.scenario import Scenario
from sottovoce.simulations.verification.recompute import verify_run

USERS, HELD_OUT, ROUNDS = 500, 6, 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, read_scenario: Any) -> Path:
    """One private run, started as a user starts it."""
    home = tmp_path_factory.mktemp("population")
    (home / "population.toml").write_text(read_scenario().to_toml())
    status = main.main(
        ["simulate", str(home / "population.toml"), "--out", str(home / "r"), "--quiet"]
    )
    assert status == 0
    return home / "r"


def _rows(database: Path) -> list[tuple[int, int, bytes]]:
    """Every line of every ledger."""
    with sqlite3.connect(database) as opened:
        return opened.execute("SELECT user, n, line FROM lines ORDER BY user, n").fetchall()


def _result(
    fold_run: PopulationFoldRun,
) -> tuple[dict[str, Any], list[Any], bytes, list[dict[str, Any]]]:
    """All that a run came to, but for times and memory."""
    weights = checkpoint.load_released_model(fold_run.spec.folder / "server")[0]
    archive = fold_run.spec.folder.parent.parent / "ledgers" / "held-out.server.jsonl"
    sums = archive.read_bytes() if archive.exists() else b""
    rounds = [
        {key: row[key] for key in row if key not in ("rss_mb", "seconds", "process")}
        for row in fold_run.round_outcomes()
    ]
    return weights, _rows(fold_run.database), sums, rounds


def _same(one: Any, other: Any) -> None:
    """Two results, bit for bit."""
    for name in one[0]:
        assert torch.equal(one[0][name], other[0][name])
    assert one[1:] == other[1:]


def test_every_round_is_accounted_for(finished: Path) -> None:
    run = read_run(finished)
    population = run["population"]
    assert [row["round"] for row in population["rounds"]] == list(range(ROUNDS + 1))
    for row in population["rounds"]:
        missing = row["unavailable"] + row["dropped"] + row["late"] + row["refused"]
        assert row["sampled"] == missing + row["used"]
        assert row["newcomers"] <= row["sampled"]
        assert row["rss_mb"] > 0
    assert sum(row["unavailable"] for row in population["rounds"]) > 0
    assert (run["clients"], population["registered"], run["engine"]) == (USERS, USERS, "local")
    assert len(run["accuracy"]["per_speaker"]) == HELD_OUT
    assert len(run["accuracy"]["by_round"]) == ROUNDS
    assert "says nothing about real voices" in population["voices"]


def test_nothing_on_disk_goes_by_user(finished: Path) -> None:
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert not any("user-" in path.name for path in files)
    assert len(files) < 40
    assert {path.name for path in (finished / "ledgers").iterdir()} == {
        "population.sqlite",
        "held-out.server.jsonl",
    }


def test_everyone_pays_for_the_whole_run_in_one_line(finished: Path) -> None:
    """Those whom the founding cohort missed as well: who was in it is a secret."""
    privacy = read_privacy(finished)
    (account,) = privacy["folds"][0]["clients"].values()
    asked = {user for user, _, _ in _rows(finished / "ledgers" / "population.sqlite")}
    contributors = {user for user in asked if user < USERS}

    assert account["devices_with_equal_ledgers"] == len(contributors)
    assert read_run(finished)["population"]["asked"] == len(contributors)
    gradient = [one for one in account["releases"] if one["kind"] == "gradient"]
    assert [(one["steps"], one["sample_rate"]) for one in gradient] == [(ROUNDS, 0.04)]
    server = privacy["folds"][0]["server"]
    assert 0.99 * 2 < account["epsilon"] <= 2.0
    assert (account["composition"], server["composition"]) == ("renyi-filter", "fixed-plan")
    assert account["renyi_order"] == privacy["renyi_order"]
    assert "Renyi filter of order" in privacy["statement"]
    assert server["epsilon"] < account["epsilon"], "its plan is fixed, a device cannot know that"


def test_the_ledgers_agree_and_a_changed_line_shows(finished: Path, tmp_path: Path) -> None:
    assert verify_run(finished).is_consistent
    shutil.copytree(finished, tmp_path / "r")
    with sqlite3.connect(tmp_path / "r" / "ledgers" / "population.sqlite") as database:
        database.execute("DROP TRIGGER lines_remain")
        last = database.execute("SELECT MAX(user) FROM lines WHERE user < 500").fetchone()[0]
        database.execute("DELETE FROM lines WHERE user = ? AND n = 2", (last,))
    found = verify_run(tmp_path / "r")

    assert not found.is_consistent
    assert "lines were dropped" in "\n".join(found.report_lines())


def test_a_population_that_is_larger_than_it_says_shows(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "r")
    privacy = json.loads((tmp_path / "r" / "privacy.json").read_text())
    for account in privacy["folds"][0]["clients"].values():
        account["devices_with_equal_ledgers"] -= 1
    (tmp_path / "r" / "privacy.json").write_text(json.dumps(privacy))
    assert "devices are said to have the ledger of" in "\n".join(
        verify_run(tmp_path / "r").report_lines()
    )


def _devices_uncounted(_folder: Path, privacy: dict[str, Any]) -> None:
    """No entry says for how many devices it stands."""
    for account in privacy["folds"][0]["clients"].values():
        del account["devices_with_equal_ledgers"]


def _all_but_the_servers(folder: Path, privacy: dict[str, Any]) -> None:
    """No device is accounted for, and their ledgers are gone."""
    privacy["folds"][0]["clients"] = {}
    (folder / "ledgers" / "population.sqlite").unlink()


def _no_population(_folder: Path, privacy: dict[str, Any]) -> None:
    """What says that there was a population is gone."""
    del privacy["folds"][0]["registered"]


def _fewer_users(_folder: Path, privacy: dict[str, Any]) -> None:
    """There were fewer users than registered."""
    privacy["folds"][0]["registered"] = USERS - 1


def _nobody(_folder: Path, privacy: dict[str, Any]) -> None:
    """An account of somebody who is not in the population."""
    (account,) = privacy["folds"][0]["clients"].values()
    privacy["folds"][0]["clients"] = {"ada": account}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_all_but_the_servers, "privacy.json counts 0 devices with a ledger, run.json"),
        (_devices_uncounted, "privacy.json counts 0 devices with a ledger, run.json"),
        (_no_population, "do not all have a population"),
        (_fewer_users, "users registered, run.json"),
        (_nobody, "ada is no name in a population"),
    ],
)
def test_a_population_that_is_not_accounted_for_shows(
    finished: Path, tmp_path: Path, change: Any, words: str
) -> None:
    folder = tmp_path / "r"
    shutil.copytree(finished, folder)
    privacy = json.loads((folder / "privacy.json").read_text())
    change(folder, privacy)
    (folder / "privacy.json").write_text(json.dumps(privacy))

    found = verify_run(folder)
    assert not found.is_consistent
    assert words in "\n".join(found.report_lines())


def test_an_audit_says_what_it_attacks_instead(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["audit", str(finished), "--quiet"]) == 2
    assert "run the same unit and recipe without a population" in capsys.readouterr().err


def test_a_run_goes_on_only_with_its_own_scenario(
    finished: Path, read_scenario: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.toml").write_text(
        read_scenario(more="available_hours_per_day = 12.0").to_toml()
    )
    words = ["simulate", str(tmp_path / "other.toml"), "--out", str(finished), "--resume"]
    assert main.main([*words, "--quiet"]) == 2
    assert "another scenario" in capsys.readouterr().err


def test_the_number_of_workers_changes_nothing(make_fold_run: Any, tmp_path: Path) -> None:
    results = []
    for workers in (1, 3):
        fold_run = make_fold_run(tmp_path / str(workers), workers=workers)
        fold_run.run()
        results.append(_result(fold_run))
    _same(*results)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["user", "none"])
def test_killed_and_resumed_it_is_the_same_run(
    make_fold_run: Any, tmp_path: Path, unit: str
) -> None:
    """Kill -9 at any moment: whatever the disk holds then, the end is the same, bit for bit."""
    straight, began = make_fold_run(tmp_path / "straight", unit=unit), time.monotonic()
    straight.run()
    whole = time.monotonic() - began
    fold_run = make_fold_run(tmp_path / "killed", unit=unit)
    kills = 0
    for share in (0.05, 0.15, 0.3, 0.45, 0.6):
        kills += _killed_after(fold_run, share * whole)
    fold_run = make_fold_run(tmp_path / "killed", unit=unit)
    fold_run.run()

    assert kills >= 2, "a run that nothing interrupted shows nothing"
    _same(_result(straight), _result(fold_run))


def _killed_after(fold_run: PopulationFoldRun, seconds: float) -> bool:
    """Run a fold in a child that is killed; whether it was still at it."""
    child = os.fork()
    if child == 0:  # pragma: no cover  (it is killed)
        torch.set_num_threads(1)
        fold_run.run()
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_run_without_a_promise_promises_nothing(make_fold_run: Any, tmp_path: Path) -> None:
    fold_run = make_fold_run(tmp_path / "open", unit="none", rounds=2)
    fold_run.run()

    assert fold_run.server_ledger() is None
    assert len(fold_run.ledger_groups) > 1, "devices differ by how many rounds they joined"
    assert all(
        release.mechanism.value in ("none", "encryption")
        for group in fold_run.ledger_groups
        for release in group.ledger.releases
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"unit": "utterance"}, "over a population unit is 'utterance'"),
        ({"unit": "user", "secure": True}, "secure True"),
        ({"engine": "ray"}, "engine must be local"),
        ({"baselines": ("central",)}, "there are no baselines"),
        ({"user_delta": 0.01}, "it must be below 0.002"),
        ({"corpus": "ravdess"}, "it must be synthetic"),
    ],
)
def test_what_cannot_be_simulated_over_a_population_is_refused(
    read_scenario: Any, change: dict[str, Any], says: str
) -> None:
    usual: Scenario = read_scenario()
    with pytest.raises(SettingError, match=says):
        loading.vary_scenario(usual, change)


def test_two_rates_are_refused(read_scenario: Any) -> None:
    usual: Scenario = read_scenario()
    user = replace(usual.recipe.user, user_sampling_rate=0.5)
    with pytest.raises(
        SettingError, match=r"user_sampling_rate is 0.5; .* here 0.04: leave it out"
    ):
        replace(usual, recipe=replace(usual.recipe, user=user))


def test_a_table_that_lacks_users_is_refused(read_scenario: Any) -> None:
    text = read_scenario().to_toml().replace("users = 500\n", "")
    with pytest.raises(SettingError, match="population lacks users"):
        loading.parse_scenario(text, source="x")


def test_a_scenario_without_a_population_is_written_as_ever() -> None:
    """Its name is a hash of these lines: another line would make every run another run."""
    assert "population" not in loading.vary_scenario(None, {"corpus": "synthetic"}).to_toml()


def test_the_settled_scenario_repeats_the_run(read_scenario: Any) -> None:
    usual = read_scenario(more="available_hours_per_day = 7.5")
    assert loading.parse_scenario(usual.to_toml(), source="x") == usual


def test_growth_is_counted_after_the_third_round_of_one_process() -> None:
    def row(number: int, mb: float, process: int = 1) -> dict[str, float]:
        return {"round": number, "rss_mb": mb, "process": process}

    rows = [row(0, 100), row(1, 300), row(2, 350), row(3, 360), row(4, 361), row(5, 363)]
    assert memory_growth_mb(rows) == pytest.approx(1.5)
    assert memory_growth_mb([*rows[:4], row(4, 90, 2), row(5, 92, 2)]) == pytest.approx(2.0)
    assert memory_growth_mb(rows[:4]) is None


def test_the_command_line_makes_a_population_of_a_corpus_of_voices() -> None:
    words = ["simulate", "--corpus", "synthetic", "--unit", "user", "--users", "1000"]
    parser = main.build_parser()
    delta = ["--user-delta", "1e-5"]
    made = simulate.build_scenario(parser.parse_args([*words, "--cohort", "10", *delta]))
    assert (made.population.users, made.population.cohort) == (1000, 10)
    assert made.privacy.user_delta == 1e-5
    with pytest.raises(SettingError, match="both --users and --cohort"):
        simulate.build_scenario(parser.parse_args([*words, *delta]))
    preset = simulate.build_scenario(
        parser.parse_args(["simulate", "population", "--cohort", "500"])
    )
    assert (preset.population.users, preset.population.cohort) == (1_000_000, 500)
