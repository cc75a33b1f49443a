"""A whole audit of a finished run: what it writes, what it says, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sottovoce import cli
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.simulations.audit import attack
from sottovoce.simulations.audit.attack import Effort, audit
from sottovoce.simulations.audit.table import table
from sottovoce.simulations.runfile import read_audit, read_run

SMALL = Effort(
    lives=20,
    quick=20,
    first=200,
    first_open=4_000,
    last=200,
    canaries=10,
    devices=1,
    shadows=5,
    members=3,
    trainings=3,
    judged=2,
    repeats=1,
    strangers=4,
)


@pytest.fixture(scope="module")
def audited(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was attacked."""
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("audit") / "run"))
    audit(folder, effort=SMALL)
    return folder


def test_an_audit_is_kept_where_programs_and_people_look(audited: Path) -> None:
    found = read_audit(audited)

    assert found is not None
    assert found["holds"] is True
    assert set(found["attacks"]) == {"as_run", "noise_off"}
    assert read_run(audited)["privacy"]["audit"]["epsilon_lower"] == found["epsilon_lower"]
    assert "<h2>Attacked</h2>" in (audited / "privacy.html").read_text()


def test_with_privacy_off_the_same_attacks_succeed(audited: Path) -> None:
    found = json.loads((audited / "audit.json").read_text())["attacks"]

    assert found["noise_off"]["first_message"]["epsilon"] > 6
    assert found["as_run"]["first_message"]["epsilon"] < 6
    assert found["noise_off"]["membership"]["utterance"]["auc"] > 0.9
    assert found["noise_off"]["inversion"]["1"] > 0.99


def test_an_audit_can_be_repeated(audited: Path, tiny_run: Any, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_run.folder, tmp_path / "other"))

    audit(other, effort=SMALL)

    assert (other / "audit.json").read_bytes() == (audited / "audit.json").read_bytes()


def test_the_table_ends_with_the_verdict(audited: Path) -> None:
    found = json.loads((audited / "audit.json").read_text())

    assert table(found)[-1].startswith("no attack showed more than epsilon ")
    broken = found | {"holds": False, "epsilon_lower": 9.5}
    assert table(broken)[-1].startswith("BROKEN: an attack showed epsilon 9.50")
    nothing = found | {"epsilon": None}
    assert "claims nothing" in table(nothing)[-1]


def test_a_broken_claim_fails_the_command(
    audited: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads((audited / "audit.json").read_text())
    monkeypatch.setattr(attack, "audit", lambda *_args, **_more: found | {"holds": False})

    assert cli.main(["audit", str(audited), "--quiet"]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_the_command_prints_what_it_keeps(
    audited: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = json.loads((audited / "audit.json").read_text())
    asked: dict[str, Any] = {}
    monkeypatch.setattr(attack, "audit", lambda folder, **how: asked.update(how) or kept)

    assert cli.main(["audit", str(audited), "--json", "--seed", "3", "--lives", "50"]) == 0
    assert json.loads(capsys.readouterr().out) == kept
    assert (asked["seed"], asked["effort"].lives) == (3, 50)


@pytest.mark.parametrize("words", [["--lives", "5"], ["--seed", "-1"]])
def test_figures_that_make_no_sense_are_usage_errors(
    audited: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", str(audited), *words]) == 2
    assert "it must be" in capsys.readouterr().err


def test_no_run_and_damaged_runs_are_refused(tiny_run: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="name the folder that --out made"):
        audit(tmp_path)
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    config = folder / "config.toml"
    config.unlink()
    with pytest.raises(SettingError, match="name the folder that --out made"):
        audit(folder)


def test_models_that_are_gone_are_missed(tiny_run: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    shutil.rmtree(folder / "checkpoints")

    with pytest.raises(ModelError, match="of the 2 models of this run"):
        audit(folder, effort=SMALL)


def test_models_on_frames_are_refused_before_anything_is_computed(
    tiny_run: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('model = "linear"', 'model = "tcn"'))

    with pytest.raises(SettingError, match="which reads frames"):
        audit(folder, effort=SMALL)


def test_a_run_in_turns_is_refused(tiny_run: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    config = folder / "config.toml"
    text = config.read_text().replace('unit = "utterance"', 'unit = "user"')
    config.write_text(text.replace("spacing = 1", "spacing = 2"))

    with pytest.raises(SettingError, match="take turns"):
        audit(folder, effort=SMALL)


def test_the_command_helps_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["audit", "--help"])

    assert end.value.code == 0
    assert "example:\n  sottovoce audit " in capsys.readouterr().out
