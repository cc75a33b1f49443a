"""What all commands share: help, usage errors, quick start."""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.cli import main

Say = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    "command",
    [
        "simulate",
        "sweep",
        "corpora",
        "corpora list",
        "corpora check",
        "corpora sample",
        "report",
        "verify",
        "audit",
        "predict",
        "device",
        "device create",
        "device consent",
        "device enrol",
        "device list",
        "device export",
        "device erase",
        "device privacy",
        "device forget",
        "device retire",
        "reproduce",
        "model key",
        "model sign",
        "model verify",
        "encoder add",
        "encoder list",
    ],
)
def test_every_command_helps_with_an_example(say: Say, command: str) -> None:
    status, out, _ = say(*command.split(), "--help")

    assert status == 0
    assert f"example:\n  sottovoce {command}" in out


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["simulate", "--help"]])
def test_help_waits_for_no_heavy_library(words: list[str]) -> None:
    heavy = "shtab torch flwr opacus numpy scipy matplotlib dp_accounting"
    program = (
        "import sys\nfrom sottovoce.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"sys.exit(' '.join(set('{heavy}'.split()) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )

    assert done.stdout
    assert done.stderr.strip() == ""


def test_a_run_does_not_wait_for_what_only_pages_need() -> None:
    program = (
        "import sys, sottovoce.simulations.runs.simulation\n"
        "sys.exit(' '.join({'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert done.stderr.strip() == ""


def test_sottovoce_alone_tells_where_to_start(say: Say) -> None:
    status, out, _ = say()

    first = [line.split()[:3] for line in out.splitlines() if line.startswith("  sottovoce")]
    assert status == 2
    assert [words[1] for words in first] == ["simulate", "corpora", "predict"]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["simulat"], "simulate"),
        (["device", "privcy"], "privacy"),
        (["simulate", "demo", "--epsilo", "4"], "--epsilon"),
        (["simulate", "demo", "--sed=4"], "--seed"),
        (["predict", "hello.wav", "--modle", "runs/demo"], "--model"),
        (["simulate", "dmeo"], "demo"),
        (["simulate", "demo", "--unit", "utterence"], "utterance"),
        (["simulate", "demo", "--corpus", "ravdes"], "ravdess"),
        (["simulate", "demo", "--encoder", "descriptor"], "descriptors"),
        (["corpora", "sample", "a.wav", "--emotion", "angri"], "angry"),
        (["reproduce", "acuracy"], "accuracy"),
        (["--verison"], "--version"),
        (["--print-completion", "bas"], "bash"),
    ],
)
def test_a_near_miss_is_a_usage_error_that_says_what_was_meant(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], meant: str
) -> None:
    monkeypatch.chdir(tmp_path)

    status, out, last = say(*words)

    assert (status, out) == (2, "")
    assert f"(did you mean {meant}?)" in last
    assert list(tmp_path.iterdir()) == []


def test_options_are_not_abbreviated(say: Say) -> None:
    assert "unknown option --eps" in say("simulate", "demo", "--eps", "4")[2]
    assert "more words" in say("corpora", "list", "ravdess")[2]


def test_options_are_grouped(say: Say) -> None:
    out = say("simulate", "--help")[1]

    groups = ["data:", "privacy:", "training:", "evaluation:", "run:"]
    assert [line for line in out.splitlines() if line in groups] == groups


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_knows_commands_and_options(say: Say, shell: str) -> None:
    status, out, _ = say("--print-completion", shell)

    assert status == 0
    assert not {"predict", "secure-aggregation"} - set(re.findall(r"[a-z]+(?:-[a-z]+)*", out))
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=out, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_no_command_is_a_usage_error(say: Say) -> None:
    assert say()[0] == 2
    assert say("simulate")[0] == 2
    assert say("fly")[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "a.wav", "--model", "no\x1b[2J\nsottovoce: all is well"],
        ["device", "privacy", "no\u202e\x9b31m"],
        ["corpora", "check", "folder", "--data", "caf\udce9"],
        ["device", "priv\x1b[2J"],
        ["report", "no\x1b]0;owned\x07"],
    ],
    ids=lambda words: " ".join(words[:2]).encode("unicode_escape").decode(),
)
def test_names_are_shown_and_never_obeyed(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        main.main(words)

    out, err = capfd.readouterr()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", out + err)
    assert "sottovoce: all is well" not in err.splitlines()
    assert "Traceback" not in err
