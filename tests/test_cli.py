"""The command line: every bad word or file ends in one clear line, and good ones do their work."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.cli import main, simulate
from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.client.personalisation import speaker_adapter
from sottovoce.shared import crypto
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind
from sottovoce.simulations.runs import simulation

Say = Callable[..., tuple[int, str, str]]


HEARS_CTRL_C = """
import signal, sys
from sottovoce.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""
"""The command, deaf to Ctrl-C not even where whoever runs the tests is."""


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command: exit status, standard output, last line of standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        try:
            status = main.main([str(word) for word in words])
        except SystemExit as end:  # argparse's way
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, (err.strip().splitlines() or [""])[-1]

    return run


@pytest.fixture
def scenario(tiny_run: Any, make_scenario: Any, tmp_path: Path) -> Callable[..., Path]:
    """Writes a variation of the tiny run's scenario."""

    def make(users: Path | None = None, public: Path | None = None, **changes: object) -> Path:
        path: Path = make_scenario(
            tmp_path / "scenario.toml",
            users or tiny_run.users,
            public or tiny_run.public,
            **changes,
        )
        return path

    return make


@pytest.fixture
def copied(tiny_run: Any, tmp_path: Path) -> Path:
    """The finished run, to be damaged."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "copy"))


def _simulate(say: Say, path: Path, out: Path, *more: object) -> tuple[int, str]:
    """A run that must not succeed: exit status and the last line."""
    status, _, last = say("simulate", path, "--out", out, "--quiet", *more)
    return status, last


# --- help and usage ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "simulate",
        "sweep",
        "corpora",
        "report",
        "verify",
        "audit",
        "predict",
        "device",
        "device privacy",
        "device forget",
        "device retire",
        "reproduce",
    ],
)
def test_every_command_helps_with_an_example(say: Say, command: str) -> None:
    status, out, _ = say(*command.split(), "--help")

    assert status == 0
    assert f"example:\n  sottovoce {command} " in out


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["simulate", "--help"]])
def test_help_waits_for_no_heavy_library(words: list[str]) -> None:
    heavy = "torch flwr opacus numpy scipy matplotlib dp_accounting"
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


def test_no_command_is_a_usage_error(say: Say) -> None:
    assert say()[0] == 2
    assert say("simulate")[0] == 2
    assert say("fly")[0] == 2


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--epsilon", "0", ["epsilon", "0.0", "above 0"]),
        ("--epsilon", "-1", ["epsilon", "-1.0", "above 0"]),
        ("--epsilon", "nan", ["epsilon", "nan", "finite"]),
        ("--epsilon", "inf", ["epsilon", "inf", "finite"]),
        ("--epsilon", "1e9", ["epsilon", "1e+09", "100", "unit none"]),
        ("--epsilon", "much", ["--epsilon", "'much'"]),
        ("--epsilon", "0.001", ["epsilon 0.001", "too small", "raise epsilon"]),
        ("--utterance-delta", "0", ["delta", "0.0", "between 0 and 1"]),
        ("--utterance-delta", "1", ["delta", "1.0", "between 0 and 1"]),
        ("--utterance-delta", "nan", ["delta", "nan", "between 0 and 1"]),
        ("--utterance-delta", "little", ["--utterance-delta", "'little'"]),
        ("--delta", "1e-5", ["unrecognized", "--delta"]),
        ("--unit", "x", ["unit", "'x'", "none, utterance, user, both"]),
        ("--user-delta", "0", ["user_delta", "0.0", "between 0 and 1"]),
        ("--user-delta", "nan", ["user_delta", "nan", "between 0 and 1"]),
        ("--engine", "x", ["engine", "'x'", "local, ray"]),
        ("--model", "x", ["model", "'x'", "linear"]),
        ("--corpus", "x", ["corpus", "'x'", "synthetic, folder"]),
        ("--protocol", "x", ["protocol", "'x'", "loso, holdout"]),
        ("--protocol", "1fold", ["folds", "1", "2"]),
        ("--encoder", "x", ["extractor", "'x'", "descriptors"]),
        ("--encoder", "log-mel", ["log-mel", "frames", "one vector", "recipe.pooling"]),
        ("--public", "x=/tmp", ["corpus", "'x'", "synthetic, folder"]),
        ("--public", "cremad", ["--public", "'cremad'", "NAME=DIR"]),
        ("--baselines", "x", ["baselines", "'x'", "central"]),
        ("--enrolment", "neutral:0", ["enrolment", "'neutral:0'", "K from 1"]),
        ("--enrolment", "neutral:x", ["enrolment", "'neutral:x'", "K from 1"]),
        ("--enrolment", "some", ["enrolment", "'some'", "none, all"]),
        ("--rounds", "-1", ["rounds", "-1", "0 or above"]),
        ("--rounds", "1000000", ["rounds", "1000000", "10000"]),
        ("--workers", "0", ["workers", "0", "at least 1"]),
        ("--labelled-clips", "-1", ["labelled_clips_per_user", "-1", "0 or above"]),
        ("--tuning-runs", "0", ["tuning_runs", "0", "at least 1"]),
        ("--seed", "-1", ["seed", "-1", "0 or above"]),
    ],
)
def test_a_setting_that_makes_no_sense_is_a_usage_error(
    say: Say,
    scenario: Callable[..., Path],
    tmp_path: Path,
    option: str,
    value: str,
    words: list[str],
) -> None:
    status, last = _simulate(say, scenario(), tmp_path / "out", option, value)

    assert status == 2
    assert not [word for word in words if word not in last], last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("unit", ["utterance", "both", "user"])
@pytest.mark.parametrize("named", [True, False])
def test_each_unit_has_its_own_delta(unit: str, named: bool) -> None:
    first = ["demo"] if named else ["--corpus", "synthetic"]
    words = ["simulate", *first, "--unit", unit]

    def settled(*more: str) -> tuple[str, float, float]:
        found = simulate.build_scenario(main.build_parser().parse_args([*words, *more]))
        return found.unit, found.delta, found.user_delta

    assert settled("--utterance-delta", "1e-6") == (unit, 1e-6, 1e-3)
    assert settled("--user-delta", "1e-6") == (unit, 1e-5, 1e-6)


def test_secure_sums_hide_users_alone(
    say: Say, scenario: Callable[..., Path], tmp_path: Path
) -> None:
    status, out, err = say(
        "simulate", scenario(), "--secure-aggregation", "--out", tmp_path / "out"
    )
    assert (status, out) == (2, "")
    assert "secure is asked for with unit 'utterance'" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("corpus = ", ["not TOML"]),
        ("rounds = 2", ["no corpus"]),
        ('corpus = "synthetic"\nspeed = 1', ["unknown settings speed", "known:"]),
        ('corpus = "synthetic"\nrounds = 1.5', ["rounds is 1.5", "whole number"]),
        ('corpus = "synthetic"\nseed = "7"', ["seed is '7'", "whole number"]),
        ('corpus = "synthetic"\nepsilon = true', ["epsilon is True", "a number"]),
        ('corpus = "synthetic"\nprotocol = 5', ["protocol is 5", "a text"]),
        ('corpus = "synthetic"\nbaselines = "central"', ["baselines is 'central'", "a list"]),
        ('corpus = "synthetic"\npublic = ["x"]', ["public is 'x'", "a table"]),
        ('corpus = "synthetic"\n[[public]]\nfolder = "x"', ["public has folder", "name"]),
        ('corpus = "synthetic"\nrecipe = 1', ["recipe is 1", "a table"]),
        ('corpus = "synthetic"\n[recipe]\nsteps = 1.5', ["recipe.steps is 1.5", "whole number"]),
        ('corpus = "synthetic"\n[recipe]\nclip_norm = nan', ["clip_norm is nan"]),
        (
            'corpus = "synthetic"\n[recipe.projection]\nwidth = 3',
            ["recipe.projection has unknown", "width"],
        ),
        ('corpus = "synthetic"\n[recipe.aggregation]\noptimiser = "x"', ["optimiser is 'x'"]),
    ],
)
def test_a_scenario_file_that_makes_no_sense_is_a_usage_error(
    say: Say, tmp_path: Path, text: str, words: list[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)

    status, last = _simulate(say, path, tmp_path / "out")

    assert status == 2
    assert not [word for word in [str(path), *words] if word not in last], last


def test_an_unknown_scenario_names_the_known_ones(say: Say, tmp_path: Path) -> None:
    status, last = _simulate(say, Path("nosuch"), tmp_path / "out")
    assert (status, "'nosuch'" in last, "demo" in last) == (2, True, True)

    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert _simulate(say, tmp_path / "binary.toml", tmp_path / "out")[0] == 2
    assert _simulate(say, tmp_path / "missing.toml", tmp_path / "out")[0] == 2


# --- corpora that cannot be used --------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (None, ["manifest.csv", "path, speaker, emotion"]),
        ("", ["is empty", "path, speaker, emotion"]),
        ("path,speaker,emotion\n", ["no rows"]),
        ("file,speaker,emotion\na.wav,a,angry\n", ["column path", "file", "needed"]),
        ("path,speaker,emotion\na.wav,a,angry\n", ["no usable clip", "missing: 1"]),
    ],
)
def test_a_manifest_that_cannot_be_used_fails(
    say: Say,
    scenario: Callable[..., Path],
    tmp_path: Path,
    manifest: str | None,
    words: list[str],
) -> None:
    folder = tmp_path / "users"
    folder.mkdir()
    if manifest is not None:
        (folder / "manifest.csv").write_text(manifest)

    status, last = _simulate(say, scenario(users=folder), tmp_path / "out")

    assert status == 1
    assert not [word for word in words if word not in last], last
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_fails(
    say: Say, scenario: Callable[..., Path], tmp_path: Path
) -> None:
    status, last = _simulate(say, scenario(users=tmp_path / "gone"), tmp_path / "out")
    assert (status, str(tmp_path / "gone") in last) == (1, True)

    status, last = _simulate(say, scenario(public=tmp_path / "gone"), tmp_path / "out")
    assert (status, str(tmp_path / "gone") in last) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"speakers": 1}, ["one speaker only", "at least 2"]),
        ({"labels": ("angry",)}, ["one class only", "at least 2"]),
    ],
)
def test_too_little_to_split_or_tell_apart_fails(
    say: Say,
    scenario: Callable[..., Path],
    make_corpus: Any,
    tmp_path: Path,
    shape: dict[str, Any],
    words: list[str],
) -> None:
    users = make_corpus(tmp_path / "users", clips=2, **shape)

    status, last = _simulate(say, scenario(users=users), tmp_path / "out")

    assert status == 1
    assert not [word for word in words if word not in last], last


def test_a_class_that_no_training_speaker_has_fails(
    say: Say, scenario: Callable[..., Path], make_corpus: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users", clips=4)
    rows = (users / "manifest.csv").read_text().splitlines()
    kept = [row for row in rows if not row.endswith("neutral") or ",s03," in row]
    (users / "manifest.csv").write_text("\n".join(kept))

    status, last = _simulate(say, scenario(users=users), tmp_path / "out")

    assert status == 1
    assert "'neutral'" in last
    assert "s03" in last


@pytest.mark.parametrize(
    ("speakers", "words"),
    [
        (["s01"], ["no clip of s01", "remove"]),
        (["s00", "s01", "s02"], ["no clip of s00, s01, s02"]),
    ],
)
def test_a_speaker_without_a_usable_clip_fails(
    say: Say,
    scenario: Callable[..., Path],
    make_corpus: Any,
    write_wav: Any,
    tmp_path: Path,
    speakers: list[str],
    words: list[str],
) -> None:
    users = make_corpus(tmp_path / "users", clips=4)
    for number, path in enumerate(sorted(users.glob("*.wav"))):
        if path.name[:3] in speakers:
            write_wav(path, level=0.0, seconds=0.5 + number / 100)

    status, last = _simulate(say, scenario(users=users), tmp_path / "out")

    assert status == 1
    assert not [word for word in words if word not in last], last


def test_silence_that_leaves_a_class_untrained_fails(
    say: Say, scenario: Callable[..., Path], make_corpus: Any, write_wav: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users", clips=4)
    for number, path in enumerate(sorted(users.glob("s0[012]_0[13].wav"))):
        write_wav(path, level=0.0, seconds=0.5 + number / 100)

    status, last = _simulate(say, scenario(users=users), tmp_path / "out")

    assert status == 1
    assert "no clip of class 'neutral' to train on" in last


def test_neutral_enrolment_needs_neutral_clips(
    say: Say, scenario: Callable[..., Path], make_corpus: Any, tmp_path: Path
) -> None:
    users = make_corpus(tmp_path / "users", clips=4, labels=("angry", "sad"))

    status, last = _simulate(
        say, scenario(users=users), tmp_path / "out", "--enrolment", "neutral:2"
    )

    assert status == 2
    assert "neutral:2" in last
    assert "none or all" in last


# --- public is never private ------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../users", "{}/manifest.csv"])
def test_the_users_folder_cannot_be_public(
    say: Say, scenario: Callable[..., Path], tiny_run: Any, tmp_path: Path, spelling: str
) -> None:
    public = spelling.format(tiny_run.users)

    status, last = _simulate(say, scenario(), tmp_path / "out", "--public", f"folder={public}")

    assert status == 2
    assert "users' corpus" in last


def test_a_users_recording_cannot_be_public_under_another_name(
    say: Say, scenario: Callable[..., Path], tiny_run: Any, make_corpus: Any, tmp_path: Path
) -> None:
    public = make_corpus(tmp_path / "public", speakers=6, clips=5, hertz=60.0)
    shutil.copy(tiny_run.users / "s00_00.wav", public / "s05_04.wav")

    status, last = _simulate(say, scenario(public=public), tmp_path / "out")

    assert status == 1
    assert "1 recordings of the users' corpus are in the public corpus" in last
    assert "s00_00.wav" in last


def test_made_up_users_cannot_be_public_either(say: Say, tmp_path: Path) -> None:
    words = ("--corpus", "synthetic", "--data", "speakers=3,clips=6,seed=5")
    words += ("--encoder", "descriptors", "--public", "synthetic=speakers=2,clips=6,seed=5")

    status, _, last = say("simulate", *words, "--out", tmp_path / "out", "--quiet")

    assert status == 1
    assert "no recording can be both" in last


# --- run folders ------------------------------------------------------------------------------


def test_a_folder_in_use_is_never_written_over(say: Say, copied: Path, tiny_run: Any) -> None:
    before = (copied / "run.json").read_bytes()

    status, last = _simulate(say, tiny_run.scenario, copied)
    assert (status, "--resume" in last) == (2, True)

    status, last = _simulate(say, tiny_run.scenario, copied, "--resume", "--seed", 5)
    assert (status, "another scenario" in last) == (2, True)

    (copied / "config.toml").write_bytes(b"\xff\xfe")
    assert _simulate(say, tiny_run.scenario, copied, "--resume")[0] == 2
    assert (copied / "run.json").read_bytes() == before


def test_a_folder_of_other_things_is_left_alone(say: Say, tiny_run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert _simulate(say, tiny_run.scenario, tmp_path / "file")[0] == 2
    assert _simulate(say, tiny_run.scenario, tmp_path)[0] == 2
    assert _simulate(say, tiny_run.scenario, tmp_path, "--resume")[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_could_not_begin_leaves_its_folder_free(
    say: Say,
    scenario: Callable[..., Path],
    tiny_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _simulate(say, scenario(public=tmp_path / "gone"), tmp_path / "out")[0] == 1
    monkeypatch.setattr(simulation, "render_pages", lambda _folder: [])

    assert _simulate(say, tiny_run.scenario, tmp_path / "out")[0] == 0


def test_resuming_a_finished_run_changes_nothing(
    say: Say, copied: Path, tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "render_pages", lambda _folder: [])
    status, out, _ = say(
        "simulate", tiny_run.scenario, "--out", copied, "--resume", "--json", "--workers", 2
    )
    before = json.loads((tiny_run.folder / "run.json").read_text())

    assert status == 0
    assert {k: v for k, v in json.loads(out).items() if k not in ("timing", "calibration")}.keys()
    assert json.loads(out)["accuracy"]["confusion"] == before["accuracy"]["confusion"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["No space left", "--resume"]),
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), ["x/y: No space left"]),
        (PermissionError(errno.EACCES, "Permission denied", "/r"), ["/r: Permission", "another"]),
        (OSError(errno.EROFS, "Read-only file system", "/r"), ["/r: Read-only", "choose"]),
        (OSError("odd"), ["odd", "run again"]),
    ],
)
def test_what_the_system_refuses_is_told_with_a_way_out(
    say: Say,
    tiny_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    words: list[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(simulation, "simulate", refuse)

    status, last = _simulate(say, tiny_run.scenario, tmp_path / "out")

    assert status == 1
    assert not [word for word in words if word not in last], last


def test_an_interrupt_says_how_to_go_on(
    say: Say, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "simulate", interrupt)

    status, last = _simulate(say, tiny_run.scenario, tmp_path / "out")

    assert status == 130
    again = f"sottovoce simulate {tiny_run.scenario} --out {tmp_path / 'out'} --quiet --resume"
    assert last.endswith(f"go on with: {again}")


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_at_a_real_run_leaves_one_clear_line_and_a_run_to_go_on_with(
    say: Say, scenario: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    words = ["simulate", str(scenario(rounds=60)), "--out", str(tmp_path / "out")]
    words += ["--workers", str(workers)]
    with subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        lines = []
        for line in run.stderr or []:
            lines.append(line)
            if line.startswith("rounds: "):
                break
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to workers, too
        lines += run.communicate(timeout=120)[1].splitlines()

    assert run.returncode == 130
    assert not [line for line in lines if "Traceback" in line]
    assert lines[-1].endswith(f"go on with: sottovoce {' '.join(words)} --resume")
    status, out, _ = say(*words, "--resume", "--quiet")
    assert (status, "UAR" in out) == (0, True)


def test_a_run_in_a_pipe_says_rounds_epsilon_and_uar_in_plain_lines(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["simulate", str(tiny_run.scenario), "--protocol", "2fold", "--out"]
    assert main.main([*words, str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    rounds = [line for line in lines if line.startswith("rounds: ")]

    assert [line.split(",")[0] for line in rounds] == [f"rounds: {n} of 4" for n in (1, 2, 3, 4)]
    assert "epsilon" in rounds[0]
    assert "of 8" in rounds[0]
    assert "UAR" not in rounds[0]
    assert "UAR so far" in rounds[-1]
    assert "left" in rounds[2]
    assert "\x1b" not in "".join(lines)

    assert main.main([*words, str(tmp_path / "quiet"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


# --- predict ----------------------------------------------------------------------------------


def test_predictions_are_lines_or_json(say: Say, tiny_run: Any) -> None:
    files = sorted(tiny_run.users.glob("s03_*.wav"))[:2]

    status, out, _ = say("predict", *files, "--model", tiny_run.folder / "model")
    assert status == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [str(path) for path in files]

    status, out, _ = say("predict", *files, "--model", tiny_run.folder / "model", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [record["file"] for record in records] == [str(path) for path in files]
    assert all(set(record["probabilities"]) == {"neutral", "angry"} for record in records)


def test_an_app_chooses_its_risk_and_how_often_sets_are_right(say: Say, tiny_run: Any) -> None:
    words = ("predict", tiny_run.users / "s03_00.wav", "--model", tiny_run.folder / "model")

    def said(*more: str) -> Any:
        status, out, _ = say(*words, "--json", *more)
        assert status == 0
        return json.loads(out)

    bold, careful = said("--risk", "1"), said("--risk", "0")
    assert (bold["abstained"], careful["abstained"]) == (False, True)
    narrow, wide = said("--coverage", "0.1"), said("--coverage", "0.9999")
    assert narrow["set"] == [max(narrow["probabilities"], key=narrow["probabilities"].get)]
    assert set(wide["set"]) == set(wide["probabilities"])
    assert (narrow["coverage"], narrow["own_set"]) == (0.1, False)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--risk", "-0.1"), ("--risk", "1.1"), ("--risk", "nan"), ("--coverage", "1.5")],
)
def test_fractions_that_are_none_are_refused(
    say: Say, tiny_run: Any, option: str, value: str
) -> None:
    wav, model = tiny_run.users / "s03_00.wav", tiny_run.folder / "model"

    status, _, last = say("predict", wav, "--model", model, option, value)

    assert status == 2
    assert f"{option}: {value}" in last


def test_a_bad_recording_fails_after_the_others_were_predicted(
    say: Say, tiny_run: Any, write_wav: Any, tmp_path: Path
) -> None:
    good = tiny_run.users / "s03_00.wav"
    write_wav(tmp_path / "silent.wav", level=0.0)
    (tmp_path / "junk.wav").write_bytes(b"RIFFjunk" * 20)
    with wave.open(str(tmp_path / "none.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    bad = [tmp_path / name for name in ("junk.wav", "none.wav", "gone.wav")]

    status, out, last = say(
        "predict", *bad, tmp_path / "silent.wav", good, "--model", tiny_run.folder / "model"
    )

    lines = out.splitlines()
    assert status == 1
    assert "gone.wav is not a file" in last
    assert len(lines) == 2
    assert "no answer: the recording is silent" in lines[0]
    assert lines[1].startswith(str(good))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.json", "{", ["no usable model", "copy"]),
        ("model.json", "[]", ["no usable model", "copy"]),
        ("model.json", None, ["no model", "model.json"]),
        ("model.safetensors", "x", ["not the one that model.json names"]),
        ("model.safetensors", None, ["model.safetensors"]),
    ],
)
def test_a_damaged_model_is_refused(
    say: Say, tiny_run: Any, copied: Path, file: str, content: str | None, words: list[str]
) -> None:
    path = copied / "model" / file
    path.unlink()
    if content is not None:
        path.write_text(content)

    status, out, last = say("predict", tiny_run.users / "s00_00.wav", "--model", copied / "model")

    assert (status, out) == (1, "")
    assert not [word for word in words if word not in last], last


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 3),
        ("labels", ["angry"]),
        ("labels", ["angry", "angry"]),
        ("extractor", "ears"),
        ("extractor", "log-mel"),
        ("row_norm", "long"),
        ("prior", {}),
        ("model", {}),
        ("model_hash", "00"),
        ("sha256", "00"),
    ],
)
def test_a_model_whose_words_were_changed_is_refused(
    say: Say, tiny_run: Any, copied: Path, key: str, value: object
) -> None:
    path = copied / "model" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    status, out, last = say("predict", tiny_run.users / "s00_00.wav", "--model", copied / "model")

    assert (status, out) == (1, ""), last


def test_a_folder_that_is_no_device_is_a_usage_error(
    say: Say, tiny_run: Any, tmp_path: Path
) -> None:
    wav, model = tiny_run.users / "s00_00.wav", tiny_run.folder / "model"

    status, _, last = say("predict", wav, "--model", model, "--device", tmp_path)

    assert (status, "no device" in last) == (2, True)


def test_a_voice_is_learned_and_forgotten(say: Say, tiny_run: Any, tmp_path: Path) -> None:
    _device(tmp_path)
    wav, model = tiny_run.users / "s03_00.wav", tiny_run.folder / "model"
    words = ("predict", wav, "--model", model, "--device", tmp_path, "--json")

    status, out, _ = say(*words, "--learn")
    name = json.loads(out)["learned"]
    assert (status, json.loads(out)["own_normaliser"]) == (0, False)
    assert json.loads(say(*words)[1])["own_normaliser"], "the next prediction knows the voice"
    status, out, _ = say("device", "forget", tmp_path, name)
    assert (status, "still kept: 0" in out) == (0, True)
    assert not json.loads(say(*words)[1])["own_normaliser"]
    assert say("device", "forget", tmp_path, name)[0] == 2, "it is gone"
    assert "learned as" in say(*words[:-1], "--learn")[1]
    assert say("predict", wav, "--model", model, "--learn")[0] == 2, "nothing could keep it"


def test_labels_move_the_head_until_they_are_forgotten(
    say: Say, tiny_run: Any, tmp_path: Path
) -> None:
    _device(tmp_path)
    wav, model = tiny_run.users / "s03_00.wav", tiny_run.folder / "model"
    words = ("predict", wav, "--model", model, "--device", tmp_path, "--json")
    before = json.loads(say(*words)[1])
    least = min(before["probabilities"], key=before["probabilities"].get)

    status, out, _ = say(*words, "--label", least)
    name, after = json.loads(out)["labelled"], json.loads(say(*words)[1])
    assert (status, after["own_head"]) == (0, True)
    assert after["probabilities"][least] > before["probabilities"][least]

    status, out, _ = say("device", "forget", tmp_path, name, name, "--model", model)
    assert (status, out) == (0, "forgotten: 1; still kept: 0\n")
    assert json.loads(say(*words)[1]) == before
    status, _, last = say("predict", wav, "--model", model, "--label", least)
    assert (status, "--device" in last) == (2, True), "nothing could keep it"


def test_a_label_is_taken_back_without_the_model(say: Say, tiny_run: Any, tmp_path: Path) -> None:
    _device(tmp_path)
    wavs = [tiny_run.users / f"s03_0{index}.wav" for index in (0, 1)]
    words = ("--model", tiny_run.folder / "model", "--device", tmp_path, "--json")
    said = say("predict", *wavs, *words, "--label", "angry")[1]
    names = [json.loads(line)["labelled"] for line in said.splitlines()]

    status, out, last = say("device", "forget", tmp_path, "abc", names[0], names[0])

    assert (status, "forgotten: 1; still kept: 1" in out) == (2, True)
    assert "head is let go" in out
    assert "keeps no recording abc; it keeps " + names[1] in last, "what could be done was done"
    after = json.loads(say("predict", wavs[0], *words)[1])
    assert after["own_head"], "it is fitted again, on the other one"
    assert say("device", "forget", tmp_path, names[1])[0] == 0
    assert not json.loads(say("predict", wavs[0], *words)[1])["own_head"]


def test_a_label_that_is_none_is_noticed_before_anything_is_learned(
    say: Say, tiny_run: Any, tmp_path: Path
) -> None:
    _device(tmp_path)
    wav, model = tiny_run.users / "s03_00.wav", tiny_run.folder / "model"
    words = ("predict", wav, "--model", model, "--device", tmp_path, "--learn", "--json")

    status, out, last = say(*words, "--label", "melancholy")

    assert (status, out) == (2, "")
    assert "'melancholy'" in last
    assert "angry" in last
    assert speaker_adapter.list_utterances(tmp_path) == ()


def test_what_cannot_be_learned_from_is_predicted_still(
    say: Say, tiny_run: Any, write_wav: Any, tmp_path: Path
) -> None:
    _device(tmp_path)
    write_wav(tmp_path / "silent.wav", level=0.0)
    words = ("--model", tiny_run.folder / "model", "--device", tmp_path, "--learn")

    status, out, last = say("predict", tmp_path / "silent.wav", *words)

    assert status == 1
    assert "no answer: the recording is silent" in out
    assert "nothing was learned" in last


def test_a_passphrase_opens_all_that_a_user_does(
    say: Say, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crypto.wrap_key, "__kwdefaults__", {"log2_cost": 14})
    device = _device(tmp_path, passphrase="quiet as a mouse")
    assert not (tmp_path / "vault" / "key").exists()
    wav, model = tiny_run.users / "s03_00.wav", tiny_run.folder / "model"
    words = ("predict", wav, "--model", model, "--device", tmp_path, "--json")
    commands: list[tuple[object, ...]] = [
        (*words, "--learn", "--label", "angry"),
        ("device", "privacy", tmp_path),
        ("device", "forget", tmp_path, "abc"),
        ("device", "retire", tmp_path),
    ]

    for value, message in (
        (None, "SOTTOVOCE_PASSPHRASE"),
        ("loud as a lion", "passphrase is wrong"),
    ):
        if value:
            monkeypatch.setenv("SOTTOVOCE_PASSPHRASE", value)
        for command in commands:
            status, _, last = say(*command)
            assert (status, message in last) == (1, True), command
    monkeypatch.setenv("SOTTOVOCE_PASSPHRASE", "quiet as a mouse")

    names = json.loads(say(*commands[0])[1])
    assert json.loads(say(*words)[1])["own_head"]
    assert say(*commands[1])[0] == 0
    assert say("device", "forget", tmp_path, names["labelled"], "--model", model)[0] == 0
    assert say("device", "forget", tmp_path, names["learned"])[0] == 2, "both were forgotten"
    assert not json.loads(say(*words)[1])["own_normaliser"]
    device.ledger.path.write_text("")
    assert say(*commands[3])[0] == 0


# --- what looks at a device -------------------------------------------------------------------


def _device(folder: Path, *, passphrase: str | None = None) -> Device:
    """A real device that let out its label counts."""
    none, empty = torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    examples = Examples(features=torch.zeros(0, 3), frames=empty, labels=empty)
    features = LabelledFeatures(
        examples=examples, for_enrolment=none, for_head=none, for_training=none
    )
    budgets = (PrivacyBudget(epsilon=8.0, delta=1e-5, per_run=4.0),)
    profile = DeviceProfile(user="ada", budgets=budgets, labels=("sad",))
    device = Device.create(folder, profile, features, passphrase=passphrase)
    release = Release(
        kind=ReleaseKind.LABEL_COUNTS,
        mechanism=Mechanism.GAUSSIAN,
        run="r",
        round=0,
        noise_multiplier=3.0,
        sensitivity=1.0,
    )
    device.ledger.book_release("counts", release, budgets)
    return device


def test_a_devices_privacy_is_lines_or_json(say: Say, tmp_path: Path) -> None:
    device = _device(tmp_path)

    status, out, _ = say("device", "privacy", tmp_path)
    assert status == 0
    assert "one utterance, delta 1e-05: epsilon 1.2" in out
    assert out.splitlines()[-1] == "chain verified; anchor verified"

    status, out, _ = say("device", "privacy", tmp_path, "--json")
    report = json.loads(out)
    assert (status, report["ledger_sha256"], report["anchor"]) == (0, device.ledger.head_hash, True)
    assert (report["kinds"], report["budgets"][0]["per_run"]) == ({"label-counts": 1}, 4.0)


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (lambda path: path.with_name("device.json").unlink(), 2, ["holds no device"]),
        (lambda path: path.with_name("device.json").write_text("{"), 1, ["damaged", "backup"]),
        (lambda path: path.write_text(""), 1, ["0 releases", "booked 1", "newest copy"]),
        (lambda path: path.write_text("{}\n"), 1, ["line 1", "breaks the chain"]),
        (lambda path: path.write_bytes(b"\xff\n"), 1, ["line 1", "breaks the chain"]),
    ],
)
def test_a_device_that_cannot_be_trusted_fails(
    say: Say, tmp_path: Path, harm: Callable[[Path], object], code: int, words: list[str]
) -> None:
    harm(_device(tmp_path).ledger.path)

    status, out, last = say("device", "privacy", tmp_path, "--json")

    assert (status, out) == (code, "")
    assert not [word for word in words if word not in last], last


def test_device_wants_a_command_and_a_folder(say: Say, tmp_path: Path) -> None:
    assert say("device")[0] == 2
    assert say("device", "privacy")[0] == 2
    assert say("device", "fly")[0] == 2
    assert say("device", "privacy", tmp_path / "none")[0] == 2


# --- what looks at a finished run -------------------------------------------------------------


def test_verify_recomputes_a_run(say: Say, copied: Path) -> None:
    status, out, _ = say("verify", copied)
    assert status == 0
    assert out.splitlines()[-1] == "all ledgers agree with privacy.json"

    status, out, _ = say("verify", copied, "--json")
    assert (status, json.loads(out)["agrees"]) == (0, True)

    next((copied / "ledgers").rglob("*.jsonl")).unlink()
    status, out, _ = say("verify", copied)
    assert status == 1
    assert "DISAGREES" in out.splitlines()[-1]


@pytest.mark.parametrize(("command", "file"), [("verify", "privacy.json"), ("report", "run.json")])
def test_a_damaged_run_folder_is_refused(
    say: Say, copied: Path, tmp_path: Path, command: str, file: str
) -> None:
    assert say(command, tmp_path / "gone")[0] == 2

    (copied / file).write_text('{"schema": 2}')
    status, _, last = say(command, copied)
    assert (status, "damaged" in last) == (1, True)

    (copied / file).write_text('{"schema": 1}')
    status, _, last = say(command, copied)
    assert (status, "earlier release" in last) == (1, True)

    (copied / file).write_text('{"schema": 99}')
    status, _, last = say(command, copied)
    assert (status, "newer" in last) == (1, True)


def test_report_renders_both_pages_again(say: Say, copied: Path) -> None:
    (copied / "report.html").unlink()

    status, out, _ = say("report", copied)

    assert status == 0
    assert [Path(line).name for line in out.splitlines()] == ["report.html", "privacy.html"]


def test_corpora_are_listed_and_checked(say: Say, tiny_run: Any) -> None:
    status, out, _ = say("corpora", "list", "--json")
    assert (status, "synthetic" in json.loads(out)) == (0, True)

    status, out, _ = say("corpora", "check", "folder", "--data", tiny_run.users, "--json")
    assert status == 0
    assert json.loads(out)

    assert say("corpora", "check")[0] == 2
    assert say("corpora", "check", "folder")[0] == 2
