"""A run from wav files to a run folder: what it survives, what it repeats, what it refuses."""

import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sottovoce.shared.errors import (
    EngineError,
    FolderInUseError,
    LedgerError,
    ModelError,
    PrivacyError,
    SottovoceError,
)
from sottovoce.simulations.devices.database import DeviceDatabase
from sottovoce.simulations.devices.in_memory import DatabaseVault
from sottovoce.simulations.results.schema import read_privacy, read_run
from sottovoce.simulations.runs import run_folder, simulation
from sottovoce.simulations.scenario import loading
from sottovoce.simulations.verification.recompute import verify_run

pytestmark = pytest.mark.usefixtures("_no_pages")


@pytest.fixture
def _no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are held to their contracts elsewhere."""
    monkeypatch.setattr(run_folder, "render_pages", lambda _folder: [])


@pytest.fixture
def copied(tiny_run: Any, tmp_path: Path) -> Path:
    """The finished run, to be damaged."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "copy"))


def _run(scenario: Path, out: Path, **how: Any) -> dict[str, Any]:
    """A run's result but for its timing."""
    return _comparable(simulation.simulate(loading.load_scenario(str(scenario)), out, **how))


def _comparable(run: dict[str, Any]) -> dict[str, Any]:
    """What two runs must agree in, through JSON's eyes."""
    content: dict[str, Any] = json.loads(json.dumps(run))
    return {key: value for key, value in content.items() if key != "timing"}


def _ledgers(run: Path) -> dict[str, bytes]:
    """Every kept ledger, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted((run / "ledgers").rglob("*.jsonl"))}


# --- the same again ---------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_another(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    first = _comparable(json.loads((tiny_run.folder / "run.json").read_text()))

    _run(tiny_run.scenario, tmp_path / "again")
    again = _comparable(json.loads((tmp_path / "again" / "run.json").read_text()))

    assert again == first
    assert _ledgers(tmp_path / "again") == _ledgers(tiny_run.folder)
    files = ("privacy.json", "model/model.json", "model/model.safetensors")
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tiny_run.folder / name).read_bytes()

    other = make_scenario(tmp_path / "other.toml", tiny_run.users, tiny_run.public, seed=1)
    _run(other, tmp_path / "other")
    model = "model/model.safetensors"
    assert (tmp_path / "other" / model).read_bytes() != (tiny_run.folder / model).read_bytes()


def test_the_settled_scenario_repeats_the_run(tiny_run: Any, tmp_path: Path) -> None:
    again = _run(tiny_run.folder / "config.toml", tmp_path / "again")

    assert again["accuracy"] == _comparable(read_run(tiny_run.folder))["accuracy"]
    assert (tmp_path / "again" / "config.toml").read_bytes() == (
        tiny_run.folder / "config.toml"
    ).read_bytes()


def test_what_was_promised_was_kept(tiny_run: Any) -> None:
    privacy = read_privacy(tiny_run.folder)
    clients = privacy["folds"][0]["clients"]

    assert set(clients) == {"s00", "s01", "s02"}
    for account in clients.values():
        assert 0.99 * privacy["epsilon"] < account["epsilon"] <= privacy["epsilon"]
        assert [release["kind"] for release in account["releases"]] == [
            "label-counts",
            "centre",
            "normaliser",
            "gradient",
            "gradient",
            "head-statistics",
            "sealed-head",
        ]


@pytest.mark.parametrize(("unit", "servers"), [("user", 1), ("both", 1), ("none", 0)])
def test_every_unit_runs_and_its_ledgers_agree(
    tiny_run: Any, make_scenario: Any, tmp_path: Path, unit: str, servers: int
) -> None:
    scenario = make_scenario(tmp_path / "s.toml", tiny_run.users, tiny_run.public, unit=unit)
    run = _run(scenario, tmp_path / "run")
    privacy = read_privacy(tmp_path / "run")

    assert verify_run(tmp_path / "run").is_consistent
    assert sum("server" in fold for fold in privacy["folds"]) == servers
    promised = {"user": {"user"}, "both": {"user", "utterance"}, "none": set()}[unit]
    assert promised == {"user", "utterance"} & set(run["privacy"])
    for name in promised:
        most = {"user": "epsilon", "utterance": "epsilon_max"}[name]
        assert 0.99 * privacy["epsilon"] < run["privacy"][name][most] <= privacy["epsilon"]
    delta = {"user": 1e-3, "both": 1e-5, "none": None}[unit]
    assert privacy["delta"] == delta
    assert _run(tmp_path / "run" / "config.toml", tmp_path / "again") == run


def test_runs_that_settings_were_chosen_by_are_charged_for(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    scenario = make_scenario(
        tmp_path / "s.toml", tiny_run.users, tiny_run.public, unit="both", tuning_runs=3
    )
    run = _run(scenario, tmp_path / "run")
    tuned = read_privacy(tmp_path / "run")["tuned"]
    once = read_privacy(tiny_run.folder)

    assert "tuned" not in once
    assert any("not counted here" in line for line in once["assumptions"])
    assert tuned["runs"] == 3
    for unit in ("utterance", "user"):
        assert 8.0 * 1.5 < tuned[unit] < 8.0 * 3, "more than once, and composed better than added"
    assert run["privacy"]["epsilon"] == 8.0


@pytest.mark.parametrize("adaptive", [False, True])
def test_secure_sums_run_whole_and_repeat(
    tiny_run: Any, make_scenario: Any, tmp_path: Path, adaptive: bool
) -> None:
    scenario = make_scenario(
        tmp_path / "s.toml", tiny_run.users, tiny_run.public, unit="user", secure=True
    )
    with scenario.open("a") as file:  # of three devices none can be spared
        file.write("[recipe.user]\ndropout = 0\ncorruption = 0\n")
        file.write(f"adaptive = {str(adaptive).lower()}\n")
    run = _run(scenario, tmp_path / "run")
    privacy = read_privacy(tmp_path / "run")

    assert verify_run(tmp_path / "run").is_consistent
    assert 0.9 * 8 < run["privacy"]["user"]["epsilon"] <= 8.0
    assert {
        release["noised_by"]
        for fold in privacy["folds"]
        for account in [fold["server"], *fold["clients"].values()]
        for release in account["releases"]
        if release["mechanism"] == "gaussian"
    } == {"shares"}
    assert "the server included" in privacy["statement"]
    assert _run(tmp_path / "run" / "config.toml", tmp_path / "again") == run


def test_secure_sums_that_hide_utterances_run_whole_and_repeat(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    scenario = make_scenario(tmp_path / "s.toml", tiny_run.users, tiny_run.public, secure=True)
    with scenario.open("a") as file:  # of three devices none can be spared
        file.write("[recipe.user]\ndropout = 0\ncorruption = 0\n")
    run = _run(scenario, tmp_path / "run")
    privacy = read_privacy(tmp_path / "run")

    assert verify_run(tmp_path / "run").is_consistent
    assert 0.99 * 8 < run["privacy"]["utterance"]["epsilon_max"] <= 8.0
    lines = [
        line
        for fold in privacy["folds"]
        for account in fold["clients"].values()
        for line in account["releases"]
        if line["mechanism"] == "gaussian"
    ]
    in_sums = {line["kind"] for line in lines if line.get("noised_by") == "shares"}
    assert in_sums == {line["kind"] for line in lines} - {"normaliser"}
    assert {line.get("devices") for line in lines} == {3, None}
    assert not any("server" in fold for fold in privacy["folds"]), "no sum hides a user"
    assert "follows the protocol of secure sums" in privacy["statement"]
    assert _run(tmp_path / "run" / "config.toml", tmp_path / "again") == run

    # A reader is told of another coalition than was booked against.
    told = (tmp_path / "run" / "privacy.json").read_text()
    (tmp_path / "run" / "privacy.json").write_text(told.replace('"devices": 3', '"devices": 30'))
    assert "devices 30" in "\n".join(verify_run(tmp_path / "run").report_lines())


def test_cohorts_are_sampled_and_paid_for_in_advance(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    scenario = make_scenario(
        tmp_path / "s.toml", tiny_run.users, tiny_run.public, unit="user", rounds=6, epsilon=2.0
    )
    with scenario.open("a") as file:
        file.write("[recipe.user]\nuser_sampling_rate = 0.4\n")
    run = _run(scenario, tmp_path / "run")
    fold = read_privacy(tmp_path / "run")["folds"][0]

    assert verify_run(tmp_path / "run").is_consistent
    assert run["privacy"]["user"]["epsilon"] == fold["server"]["epsilon"] <= 2.0
    for account in fold["clients"].values():
        (schedule,) = (one for one in account["releases"] if one["kind"] == "gradient")
        assert (schedule["steps"], schedule["sample_rate"]) == (6, 0.4)
        # Its filter holds whatever a server asks next; the server's own plan is fixed.
        assert 0.98 * 2 < account["epsilon"] <= 2.0
        assert account["composition"] == "renyi-filter"
        assert account["epsilon"] > fold["server"]["epsilon"]
    assert fold["server"]["rounds"] == 6
    assert _run(tmp_path / "run" / "config.toml", tmp_path / "again") == run


BANDED = "[recipe.user]\nmin_separation = 2\nbands = 2\n"


def _banded_scenario(make_scenario: Any, path: Path, tiny_run: Any, **changes: Any) -> Path:
    """A scenario with participation groups and banded noise."""
    scenario: Path = make_scenario(
        path, tiny_run.users, tiny_run.public, unit="user", **{"rounds": 5} | changes
    )
    with scenario.open("a") as file:
        file.write(BANDED)
    return scenario


def test_participation_groups_pay_for_their_own_rounds(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    scenario = _banded_scenario(make_scenario, tmp_path / "s.toml", tiny_run, tuning_runs=2)
    run = _run(scenario, tmp_path / "run")
    privacy = read_privacy(tmp_path / "run")
    (fold,) = privacy["folds"]

    assert verify_run(tmp_path / "run").is_consistent
    assert privacy["participation"] == {
        "rounds": 5,
        "spacing": 2,
        "most": 3,
        "bands": 2,
        "coefficients": [1.0, 0.5],
    }
    rounds = {
        user: [one["round"] for one in account["releases"] if one["kind"] == "gradient"]
        for user, account in [*fold["clients"].items(), ("server", fold["server"])]
    }
    assert sorted(map(tuple, rounds.values())) == [(1, 3, 5), (1, 3, 5), (1, 3, 5), (2, 4)]
    assert rounds["server"] == [1, 3, 5], "what a user of the busiest group pays"
    for user, account in fold["clients"].items():
        assert account["epsilon"] <= fold["server"]["epsilon"] <= 8.0
        assert (account["epsilon"] > 0.99 * 8) == (len(rounds[user]) == 3)
        lines = [one for one in account["releases"] if one["kind"] == "gradient"]
        assert all((one["bands"], one["spacing"]) == (2, 2) for one in lines)
    assert 8.0 * 1.3 < privacy["tuned"]["user"] < 8.0 * 1.8, "two runs, each with its own noise"
    assert "banded matrix factorisation" in privacy["statement"]
    assert "at most 3 of the rounds, at least 2 rounds from one to the next" in privacy["statement"]
    assert "in at most 3 of 5" in privacy["sampling"]
    assert _run(tmp_path / "run" / "config.toml", tmp_path / "again") == run
    assert _ledgers(tmp_path / "again") == _ledgers(tmp_path / "run")


def test_a_killed_run_with_banded_noise_resumes_to_the_same_result(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    scenario = _banded_scenario(make_scenario, tmp_path / "s.toml", tiny_run, rounds=60)
    whole = _run(scenario, tmp_path / "whole")
    out, delays = tmp_path / "out", random.Random(21)
    for _ in range(2):
        _kill(scenario, out, delay=delays.uniform(0.0, 0.15))

    assert _run(scenario, out, resume=True) == whole
    assert _ledgers(out) == _ledgers(tmp_path / "whole")


def test_without_participation_groups_a_run_is_the_one_that_it_always_was(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    """Its plan and its ledgers' lines: nothing new is in them."""
    scenario = make_scenario(tmp_path / "s.toml", tiny_run.users, tiny_run.public, unit="user")
    run = _run(scenario, tmp_path / "run")
    assert not any(b"bands" in lines for lines in _ledgers(tmp_path / "run").values())
    assert "participation" not in read_privacy(tmp_path / "run")

    said = scenario.read_text() + "[recipe.user]\nmin_separation = 1\nbands = 1\n"
    (tmp_path / "said.toml").write_text(said)
    assert _run(tmp_path / "said.toml", tmp_path / "said") == run
    assert _ledgers(tmp_path / "said") == _ledgers(tmp_path / "run")


def test_what_a_run_draws_depends_on_its_seed_and_not_on_how_it_is_spelled(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    """The same public corpus by another path: another run by name, and the same model."""
    (tmp_path / "alias").symlink_to(tiny_run.public)
    figures, names = [], []
    for name, public in (("one", tiny_run.public), ("other", tmp_path / "alias")):
        make_scenario(tmp_path / f"{name}.toml", tiny_run.users, public)
        _run(tmp_path / f"{name}.toml", tmp_path / name)
        figures.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
        names.append(run_folder.hash_settings((tmp_path / name / "config.toml").read_text()))
    assert names[0] != names[1]
    assert figures[0] == figures[1]

    make_scenario(tmp_path / "seed.toml", tiny_run.users, tiny_run.public, seed=4)
    _run(tmp_path / "seed.toml", tmp_path / "seed")
    assert (tmp_path / "seed" / "model" / "model.safetensors").read_bytes() != figures[0]


def test_a_runs_name_follows_from_its_settings_whatever_their_order() -> None:
    name = run_folder.hash_settings("seed = 1\nrounds = 2\nworkers = 1\n")
    assert name == run_folder.hash_settings("rounds = 2\n# a remark\nseed = 1\nworkers = 4\n")
    assert name != run_folder.hash_settings("seed = 1\nrounds = 3\nworkers = 1\n")
    assert run_folder.hash_settings("seed = ") == ""


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_that_goes_on_keeps_what_an_audit_found(
    tiny_run: Any, copied: Path, damaged: bool
) -> None:
    run = read_run(copied)
    run["privacy"]["audit"] = {"epsilon_lower": 1.25}
    (copied / "run.json").write_text("{" if damaged else json.dumps(run))

    again = _run(tiny_run.scenario, copied, resume=True)

    assert again["privacy"].get("audit") == (None if damaged else {"epsilon_lower": 1.25})


# --- corpora it has never seen ----------------------------------------------------------------


def test_an_unseen_corpus_runs_as_it_is(
    tiny_run: Any, make_corpus: Any, make_scenario: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    labels = ("Ärger", "Freude", "Trauer")
    users = make_corpus(
        tmp_path / "stimmen", speakers=12, clips=6, labels=labels, rates=(8_000, 22_050, 44_100)
    )
    rows = (users / "manifest.csv").read_text().splitlines()
    changed = [rows[0].replace("path,speaker,emotion", "path;speaker;emotion;language;gender;age")]
    for number, row in enumerate(rows[1:]):
        name, speaker, label = row.split(",")
        if number % 3 == 0:  # some of it stereo FLAC
            samples, rate = soundfile.read(users / name)
            soundfile.write(users / f"{name[:-4]}.flac", np.stack([samples, samples], 1), rate)
            (users / name).unlink()
            name = f"{name[:-4]}.flac"
        gender = ("weiblich", "männlich")[int(speaker[1:]) % 2]
        changed.append(f"{name};Sprecher {speaker};{label};de;{gender};{20 + number}")
    (users / "manifest.csv").write_text("\n".join(changed), encoding="utf-8-sig")
    # Where corpora lie is part of a run's name, and so of its noise: the same place in every test.
    shutil.copytree(tiny_run.public, tmp_path / "public")
    monkeypatch.chdir(tmp_path)
    scenario = make_scenario(
        tmp_path / "s.toml",
        Path(users.name),
        Path("public"),
        protocol="3fold",
        rounds=1,
        epsilon=100.0,
    )
    lines: list[str] = []

    run = _run(scenario, tmp_path / "out", on_message=lines.append)

    assert run["corpus"] == {
        "name": "folder",
        "clips": 72,
        "speakers": 12,
        "emotions": ["happy", "sad", "angry"],
    }
    assert run["clients"] == 12
    assert not run.get("exclusions")
    assert set(run["fairness"]["gender"]["groups"]) == {"female", "male"}
    assert set(run["fairness"]["language"]["groups"]) == {"de"}
    assert run["accuracy"]["uar"] > 0.5  # chance is a third
    assert "label angry <- Ärger" in lines


def test_a_recording_that_cannot_be_used_is_left_out_and_counted(
    tiny_run: Any, make_corpus: Any, make_scenario: Any, write_wav: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users")
    write_wav(users / "eight.wav", rate=8_000)
    write_wav(users / "stereo.wav", rate=44_100, channels=2)
    write_wav(users / "silent.wav", level=0.0)
    write_wav(users / "short.wav", seconds=0.1)
    write_wav(users / "none.wav", seconds=0.0)
    (users / "zero.wav").write_bytes(b"")
    (users / "junk.wav").write_bytes(b"RIFFjunk" * 50)
    nan = np.full(8_000, np.nan, dtype=np.float32)
    soundfile.write(users / "nan.wav", nan, 16_000, subtype="FLOAT")
    odd = ("eight", "stereo", "silent", "short", "none", "zero", "junk", "nan", "gone")
    with (users / "manifest.csv").open("a") as file:
        file.writelines(f"{name}.wav,s00,angry\n" for name in odd)
    lines: list[str] = []

    run = _run(
        make_scenario(tmp_path / "s.toml", users, tiny_run.public, rounds=1),
        tmp_path / "out",
        on_message=lines.append,
    )

    assert run["corpus"]["clips"] == 32 + 2
    assert run["exclusions"] == {
        "silent": 1,
        "too short": 1,
        "holds no samples": 1,
        "cannot be read as audio": 1,
        "holds NaN or infinite samples": 1,
        "files of zero bytes": 1,
        "files that are missing": 1,
    }
    for name in ("silent", "short", "none", "junk", "nan"):
        assert any(f"{name}.wav" in line for line in lines), name


def test_a_class_that_a_test_fold_lacks_is_comparable(
    tiny_run: Any, make_corpus: Any, make_scenario: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users", clips=4)
    rows = (users / "manifest.csv").read_text().splitlines()
    left = [row for row in rows if ",s03,neutral" not in row]
    (users / "manifest.csv").write_text("\n".join(left))
    lines: list[str] = []

    run = _run(
        make_scenario(tmp_path / "s.toml", users, tiny_run.public, rounds=1),
        tmp_path / "out",
        on_message=lines.append,
    )

    assert any("classes absent from a test fold: 1" in line for line in lines)
    assert run["accuracy"]["per_emotion"]["neutral"] is None
    assert run["accuracy"]["uar"] is not None


def test_more_labelled_clips_than_there_are_leave_every_emotion_one_to_score(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    scenario = make_scenario(
        tmp_path / "s.toml",
        tiny_run.users,
        tiny_run.public,
        rounds=1,
        labelled_clips_per_user=1_000,
    )

    run = _run(scenario, tmp_path / "out")

    assert run["accuracy"]["per_speaker"]["s03"]["n"] == 8
    assert run["calibration"]["uar"]["after"] in (0.0, 0.5, 1.0)  # two clips are left


def test_names_from_a_corpus_never_lead_out_of_the_run(
    tiny_run: Any, make_corpus: Any, make_scenario: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users", speakers=3, clips=4)
    manifest = (users / "manifest.csv").read_text()
    for old, new in (("s00", "../../away"), ("s01", "a/b"), ("s02", "Zoë & co")):
        manifest = manifest.replace(f",{old},", f",{new},")
    (users / "manifest.csv").write_text(manifest)
    scenario = make_scenario(tmp_path / "s.toml", users, tiny_run.public, rounds=1, protocol="loso")

    run = _run(scenario, tmp_path / "deep" / "out")

    assert {fold["fold"] for fold in run["accuracy"]["per_fold"]} == {
        "../../away",
        "a/b",
        "Zoë & co",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "s.toml", "users"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert len(list((tmp_path / "deep" / "out" / "ledgers").glob("*/*.jsonl"))) == 6


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wounds", ["header", "pages"])
def test_a_damaged_cache_is_computed_again(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wounds: str
) -> None:
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path / "cache"))
    cache = tmp_path / "cache" / "features.sqlite"
    shutil.copytree(os.environ["SOTTOVOCE_TEST_CACHE"], tmp_path / "cache")
    with sqlite3.connect(cache) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data, random_ = bytearray(cache.read_bytes()), random.Random(3)
    if wounds == "header":
        data[:100] = bytes(100)
    else:
        for index in random_.sample(range(4096, len(data)), 400):
            data[index] ^= 0xFF
    cache.write_bytes(data)
    lines: list[str] = []

    run = _run(tiny_run.scenario, tmp_path / "out", on_message=lines.append)

    assert run == _comparable(json.loads((tiny_run.folder / "run.json").read_text()))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("outcome.json", "scores .* damaged .*remove .*--resume"),
        ("outcome.safetensors", "scores .* damaged .*remove .*--resume"),
        ("server/released.safetensors", "damaged .*remove .*--resume"),
    ],
)
def test_a_damaged_fold_says_how_to_train_it_again(
    copied: Path, tiny_run: Any, file: str, words: str
) -> None:
    fold = copied / "checkpoints" / "holdout"
    (fold / file).write_bytes(b"{ damaged")
    with pytest.raises(ModelError, match=words):
        _run(tiny_run.scenario, copied, resume=True)

    shutil.rmtree(fold)  # the way out that the message names
    assert _run(tiny_run.scenario, copied, resume=True) == _comparable(
        json.loads((tiny_run.folder / "run.json").read_text())
    )


def test_a_damaged_checkpoint_says_how_to_train_again(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stopped_after_a_round(tiny_run.scenario, tmp_path / "out", monkeypatch)
    state = tmp_path / "out" / "checkpoints" / "holdout" / "server" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-8])
    with pytest.raises(ModelError, match=r"damaged .*remove"):
        _run(tiny_run.scenario, tmp_path / "out", resume=True)

    state.unlink()  # the way out that the message names
    assert _run(tiny_run.scenario, tmp_path / "out", resume=True) == _comparable(
        json.loads((tiny_run.folder / "run.json").read_text())
    )
    assert _ledgers(tmp_path / "out") == _ledgers(tiny_run.folder)


def test_rounds_whose_devices_are_gone_do_not_count(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stopped_after_a_round(tiny_run.scenario, tmp_path / "out", monkeypatch)
    with sqlite3.connect(
        tmp_path / "out" / "checkpoints" / "holdout" / "devices.sqlite"
    ) as database:
        database.execute("DELETE FROM owners WHERE user = 1")

    _run(tiny_run.scenario, tmp_path / "out", resume=True)

    # Had the first round been kept, this ledger would lack it.
    assert _ledgers(tmp_path / "out") == _ledgers(tiny_run.folder)


@pytest.mark.parametrize("harm", ["gone", "cut", "changed"])
def test_a_ledger_that_is_not_the_folds_own_is_refused(
    copied: Path, tiny_run: Any, harm: str
) -> None:
    first = min((copied / "ledgers").rglob("*.jsonl"))
    if harm == "gone":
        first.unlink()
    elif harm == "cut":
        first.write_bytes(b"".join(first.read_bytes().splitlines(keepends=True)[:-1]))
    else:
        *before, last = first.read_bytes().splitlines(keepends=True)
        first.write_bytes(b"".join([*before, last.replace(b'"round": 2', b'"round": 1')]))

    with pytest.raises(LedgerError, match=r"ledger of s00 .* restore"):
        _run(tiny_run.scenario, copied, resume=True)


def _stopped_after_a_round(scenario: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops where its second round would be kept."""
    from sottovoce.server.federation import coordinator

    write = coordinator.checkpoint.save_state

    def once(folder: Path, state: Any, plan: str, **how: Any) -> None:
        if state.round == 2:
            raise ModelError("stopped")
        write(folder, state, plan, **how)

    with monkeypatch.context() as patch:
        patch.setattr(coordinator.checkpoint, "save_state", once)
        with pytest.raises(ModelError, match="stopped"):
            _run(scenario, out)


# --- a full disk ------------------------------------------------------------------------------


def _full(real: Callable[..., Any], left: int) -> Callable[..., Any]:
    """A call of the system that works ``left`` times, then finds the disk full."""
    calls = 0

    def call(*words: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > left and isinstance(
            words[0], DeviceDatabase
        ):  # as SQLite says it, and as we then do
            words[0]._discard_staged()
            raise PrivacyError("the devices' database cannot be used; free some space")
        if calls > left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*words, **named)

    return call


@pytest.mark.parametrize(
    ("owner", "name", "left"),
    [(DeviceDatabase, "commit", left) for left in (0, 1, 2, 3, 4, 5)]
    + [(os, "fsync", left) for left in (0, 2, 4)]
    + [(Path, "replace", left) for left in (0, 2, 7, 9)],
)
def test_a_full_disk_loses_at_most_the_round_in_progress(
    tiny_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    left: int,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, _full(getattr(owner, name), left))
        with pytest.raises(SottovoceError, match=r"--resume|free some space|quorum"):
            _run(tiny_run.scenario, out)
    _nothing_unbooked(out)

    assert _run(tiny_run.scenario, out, resume=True) == _comparable(
        json.loads((tiny_run.folder / "run.json").read_text())
    )
    assert _ledgers(out) == _ledgers(tiny_run.folder)


def test_a_run_never_goes_on_without_a_device_that_could_not_enrol(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would ask the others what it would not have asked them together: paid for, and useless."""
    real, out = DatabaseVault.put, tmp_path / "out"

    def put(vault: DatabaseVault, name: str, data: bytes, **how: Any) -> None:
        if name == "plan" and vault._index == 1:
            raise PrivacyError("no space left on device")
        real(vault, name, data, **how)

    with monkeypatch.context() as patch:
        patch.setattr(DatabaseVault, "put", put)
        with pytest.raises(EngineError, match=r"3 of 4 devices enrolled, below the quorum"):
            _run(tiny_run.scenario, out)

    _run(tiny_run.scenario, out, resume=True)
    assert _ledgers(out) == _ledgers(tiny_run.folder)


def _nothing_unbooked(out: Path) -> int:
    """Rounds kept by the server, once every device is known to have booked each of them."""
    fold = out / "checkpoints" / "holdout"
    rounds = sorted((fold / "server" / "rounds").glob("round-*.safetensors"))
    numbers = {int(path.stem.removeprefix("round-")) for path in rounds}
    if not (fold / "devices.sqlite").exists():  # the fold has ended
        return len(numbers)
    database = DeviceDatabase(fold / "devices.sqlite")
    for index in range(8):
        if not (database.device_profile(index) or {}).get("contributes"):
            continue
        releases = [json.loads(line)["release"] for line in database.ledger_lines(index)]
        booked = {entry["round"] for entry in releases if entry["kind"] == "gradient"}
        assert numbers <= booked, f"{index} booked {booked}, the server kept {numbers}"
    database.close()
    return len(numbers)


# --- kill -9 ----------------------------------------------------------------------------------


def test_a_killed_run_resumes_to_the_same_result(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    """Two kills at moments drawn from a seed, each after at least one more kept round."""
    scenario = make_scenario(tmp_path / "s.toml", tiny_run.users, tiny_run.public, rounds=120)
    whole = _run(scenario, tmp_path / "whole")
    out, delays = tmp_path / "out", random.Random(20)

    for _ in range(2):
        _kill(scenario, out, delay=delays.uniform(0.0, 0.15))
        _nothing_unbooked(out)

    resumed = _run(scenario, out, resume=True)
    assert resumed == whole
    assert _ledgers(out) == _ledgers(tmp_path / "whole")
    assert (out / "privacy.json").read_bytes() == (tmp_path / "whole" / "privacy.json").read_bytes()


class _Stopped(BaseException):
    """Nobody catches it, as nobody catches a kill."""


def test_stopped_in_every_phase_in_turn_it_is_the_same_run(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extraction, pretraining, a round, evaluation, records and pages: each before it begins."""
    from sottovoce.server.federation import coordinator
    from sottovoce.simulations.runs import fold, speaker_run

    def stop(*_: Any, **__: Any) -> None:
        raise _Stopped

    for owner, name in (
        (speaker_run.loading, "load_corpora"),
        (speaker_run, "build_fold_inputs"),
        (coordinator.checkpoint, "save_state"),
        (fold.scoring, "score_users"),
        (fold.fold_result, "write_result"),
        (run_folder, "write_json"),
        (run_folder, "render_pages"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stop)
            with pytest.raises(_Stopped):
                _run(tiny_run.scenario, tmp_path / "out", resume=True)
        assert not (tmp_path / "out" / ".lock").exists()

    assert _run(tiny_run.scenario, tmp_path / "out", resume=True) == _comparable(
        json.loads((tiny_run.folder / "run.json").read_text())
    )
    assert _ledgers(tmp_path / "out") == _ledgers(tiny_run.folder)


def test_a_second_process_in_the_run_folder_is_told_who_works_there(
    tiny_run: Any, tmp_path: Path
) -> None:
    lines: list[str] = []

    def begin_another(_line: str) -> None:
        with pytest.raises(FolderInUseError, match=rf"{tmp_path}/out.* process {os.getpid()} on "):
            simulation.simulate(
                loading.load_scenario(str(tiny_run.scenario)), tmp_path / "out", resume=True
            )
        lines.append(_line)

    run = _run(tiny_run.scenario, tmp_path / "out", on_message=begin_another)

    assert lines
    assert run == _comparable(json.loads((tiny_run.folder / "run.json").read_text()))


def test_a_run_folder_that_is_removed_while_the_run_works_in_it_is_named(
    tiny_run: Any, tmp_path: Path
) -> None:
    def remove(status: Any) -> None:
        if status.rounds_done == 1:
            shutil.rmtree(tmp_path / "out")

    with pytest.raises(SottovoceError, match="removed"):
        _run(tiny_run.scenario, tmp_path / "out", on_status=remove)


@pytest.mark.slow
def test_killed_at_random_moments_it_is_the_same_run(
    tiny_run: Any, make_scenario: Any, tmp_path: Path
) -> None:
    """With 1 or 2 workers, at any moment: half in rounds, half from the first import on.

    Six kills; ``SOTTOVOCE_KILLS=20`` makes them twenty.
    """
    scenario = make_scenario(tmp_path / "s.toml", tiny_run.users, tiny_run.public, rounds=150)
    whole = _run(scenario, tmp_path / "whole")
    out, random_ = tmp_path / "out", random.Random(21)

    for _ in range(int(os.environ.get("SOTTOVOCE_KILLS", "6")) // 2):
        _kill_by_the_clock(
            scenario, out, seconds=random_.uniform(0.0, 12.0), workers=random_.choice((1, 2))
        )
        _kill(scenario, out, delay=random_.uniform(0.0, 0.05))
        _nothing_unbooked(out)

    assert _run(scenario, out, resume=True) == whole
    assert _ledgers(out) == _ledgers(tmp_path / "whole")
    assert (out / "privacy.json").read_bytes() == (tmp_path / "whole" / "privacy.json").read_bytes()


def _kill_by_the_clock(scenario: Path, out: Path, *, seconds: float, workers: int) -> None:
    """Start or resume a run and kill it after some seconds, or once a few rounds were made."""
    rounds = out / "checkpoints" / "holdout" / "server" / "rounds"
    before, until = len(list(rounds.glob("round-*"))), time.monotonic() + seconds
    words = ["simulate", str(scenario), "--out", str(out), "--quiet", "--resume"]
    command = [sys.executable, "-m", "sottovoce.cli", *words, "--workers", str(workers)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while time.monotonic() < until and len(list(rounds.glob("round-*"))) < before + 3:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def _kill(scenario: Path, out: Path, *, delay: float) -> None:
    """Start or resume a run, wait for one more round and a while, and kill it."""
    rounds = out / "checkpoints" / "holdout" / "server" / "rounds"
    before = len(list(rounds.glob("round-*"))) if rounds.exists() else 0
    words = ["simulate", str(scenario), "--out", str(out), "--quiet", "--resume"]
    command = [sys.executable, "-m", "sottovoce.cli", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(list(rounds.glob("round-*"))) <= before:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run kept no round"
            time.sleep(0.005)
        time.sleep(delay)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
