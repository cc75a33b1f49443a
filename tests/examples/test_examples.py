"""Each example runs as it stands, and says what it should."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sottovoce.simulations.engines.deployed import LoopbackDeployment
from sottovoce.simulations.engines.flower_processes import process_environment

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def run_example(
    name: str, *words: object, capsys: pytest.CaptureFixture[str], status: int = 0
) -> list[str]:
    """Run a script of the examples as a program; returns the lines that it prints."""
    ended = SystemExit(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            ended = end
    assert ended.code == status
    return capsys.readouterr().out.splitlines()


def test_every_example_is_listed() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")

    scripts = [path.name for path in EXAMPLES.glob("*.py")]
    assert [name for name in scripts if f"| `{name}" not in page] == []
    assert len(scripts) == 8


def test_predict(example_folder: Path, write_wav: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav(Path("silence.wav"), level=0.0)

    lines = run_example("predict.py", "runs/demo", "hello.wav", "silence.wav", capsys=capsys)

    assert lines[0].startswith("hello.wav: ")
    assert "no answer, the recording is silent" in lines[-1]


def test_personalise(
    example_folder: Path, tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings = sorted(tiny_run.users.glob("s03_0*.wav"))[:3]

    lines = run_example("personalise.py", "runs/demo", *recordings, capsys=capsys)

    said = [line.split(":")[1].strip() for line in lines]
    assert len(said) == 4
    assert said[3] == said[1], "as if it had never been labelled"


def test_simulate(example_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_example("simulate_run.py", "scenario.toml", capsys=capsys)

    assert lines[0].startswith("UAR ")
    assert lines[1] == "epsilon 4 for one utterance, delta 1e-05"
    assert Path("runs/epsilon-4/report.html").is_file()


def test_verify_a_budget(example_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_example("verify_budget.py", "runs/demo", capsys=capsys)
    assert "all ledgers agree with privacy.json" in lines
    assert lines[-1].endswith(" of 8")

    next(Path("runs/demo/ledgers").rglob("*.jsonl")).unlink()
    lines = run_example("verify_budget.py", "runs/demo", capsys=capsys, status=1)
    assert any(line.startswith("DISAGREES") for line in lines)


def test_own_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_example("own_encoder.py", capsys=capsys)

    assert lines[0].startswith("UAR with band-energies: ")
    assert len(lines) == 2


def test_own_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_example("own_corpus.py", capsys=capsys)

    assert lines[-1].endswith(" on 24 recordings")


@pytest.mark.slow
def test_deploy_on_loopback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_example("deploy_on_loopback.py", tmp_path / "home", capsys=capsys)

    assert any(line.endswith(": finished:completed") for line in lines)
    spent = [line for line in lines if line.startswith(("ada", "ben"))]
    assert len(spent) == 2
    assert all(line.endswith(" of 8 spent") for line in spent)


@pytest.mark.slow
def test_flower_app(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    home = tmp_path / "flower"
    with LoopbackDeployment(home) as deployment:
        # The local simulation of flwr run listens on one fixed port; this one is the test's own.
        deployment.start_superlink(simulation=True)
        done = subprocess.run(
            [sys.executable, EXAMPLES / "flower_app.py"],
            env=process_environment(home / "operator") | {"RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith(": finished:completed")
    models = list((home / "superlink" / "sottovoce-demo").glob("*/job/*.safetensors"))
    assert len(models) > 1, "the initial weights and a trained model"
