"""A whole audit of a finished run: what it writes, what it says, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sottovoce.cli import main
from sottovoce.shared.errors import ModelError, SettingError
from sottovoce.simulations.audit import suite
from sottovoce.simulations.audit.suite import AuditSettings, audit_run
from sottovoce.simulations.audit.table import format_table
from sottovoce.simulations.results.schema import read_audit, read_run

SMALL = AuditSettings(
    trials=20,
    noiseless_trials=20,
    first_message_trials=200,
    noiseless_first_message_trials=4_000,
    last_message_trials=200,
    canaries=10,
    canary_devices=8,
    noiseless_canary_devices=8,
    attacked_devices=1,
    shadow_trials=5,
    membership_trials=3,
    shadow_trainings=3,
    scored_trainings=2,
    attribute_trials=1,
    max_public_speakers=4,
)


SAID: list[str] = []
"""What the fixture's audit announced."""


@pytest.fixture(scope="module")
def audited(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was attacked."""
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("audit") / "run"))
    audit_run(folder, settings=SMALL, on_message=SAID.append)
    return folder


def test_every_stage_is_announced_with_their_number_and_the_expected_duration(
    audited: Path,
) -> None:
    stages = [line for line in SAID if line.startswith("stage ")]
    total = len(stages)

    assert any(f"{total} stages, in all about" in line and "min" in line for line in SAID)
    assert [line.split(":")[0] for line in stages] == [
        f"stage {number} of {total}" for number in range(1, total + 1)
    ]
    assert sum("(privacy off)" in line for line in stages) == 9


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

    audit_run(other, settings=SMALL)

    assert (other / "audit.json").read_bytes() == (audited / "audit.json").read_bytes()


def test_the_table_ends_with_the_verdict(audited: Path) -> None:
    found = json.loads((audited / "audit.json").read_text())

    heads = next(line for line in format_table(found) if line.startswith("attack"))
    assert heads.split() == ["attack", "this", "run", "privacy", "off"]
    assert any("from first message" in line for line in format_table(found))
    assert not any(" / " in line for line in format_table(found))
    assert format_table(found)[-1].startswith("no attack showed more than epsilon ")
    broken = found | {"holds": False, "epsilon_lower": 9.5}
    assert format_table(broken)[-1].startswith("BROKEN: an attack showed epsilon 9.50")
    nothing = found | {"epsilon": None}
    assert "claims nothing" in format_table(nothing)[-1]


def test_a_broken_claim_fails_the_command(
    audited: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads((audited / "audit.json").read_text())
    monkeypatch.setattr(suite, "audit_run", lambda *_args, **_more: found | {"holds": False})

    assert main.main(["audit", str(audited), "--quiet"]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_the_command_prints_what_it_writes(
    audited: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = json.loads((audited / "audit.json").read_text())
    asked: dict[str, Any] = {}
    monkeypatch.setattr(suite, "audit_run", lambda folder, **how: asked.update(how) or audit)

    assert main.main(["audit", str(audited), "--json", "--seed", "3", "--trials", "50"]) == 0
    assert json.loads(capsys.readouterr().out) == audit
    assert (asked["seed"], asked["settings"].trials) == (3, 50)


@pytest.mark.parametrize("words", [["--trials", "5"], ["--seed", "-1"]])
def test_figures_that_make_no_sense_are_usage_errors(
    audited: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["audit", str(audited), *words]) == 2
    assert "it must be" in capsys.readouterr().err


def test_no_run_and_damaged_runs_are_refused(tiny_run: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="name the folder that --out made"):
        audit_run(tmp_path)
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    config = folder / "config.toml"
    config.unlink()
    with pytest.raises(SettingError, match="name the folder that --out made"):
        audit_run(folder)


def test_models_that_are_gone_are_missed(tiny_run: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    shutil.rmtree(folder / "checkpoints")

    with pytest.raises(ModelError, match="of the 2 models of this run"):
        audit_run(folder, settings=SMALL)


def test_models_on_frames_are_refused_before_anything_is_computed(
    tiny_run: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('model = "linear"', 'model = "tcn"'))

    with pytest.raises(SettingError, match="which reads frames"):
        audit_run(folder, settings=SMALL)


def test_the_command_helps_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["audit", "--help"])

    assert end.value.code == 0
    assert "example:\n  sottovoce audit " in capsys.readouterr().out
