"""The command that exports a model for prediction without torch."""

import json
from collections.abc import Callable
from pathlib import Path

from builders import build_model_package, build_whisper_package

Say = Callable[..., tuple[int, str, str]]


def test_a_run_is_exported_in_the_type_that_was_asked_for(say: Say, tmp_path: Path) -> None:
    build_whisper_package().save(tmp_path / "run" / "model", card=b"# Whose it is\n")
    out = tmp_path / "small"

    status, printed, _ = say("export", tmp_path / "run", "--out", out, "--int8", "--json")

    report = json.loads(printed)
    assert (status, report["weights"]) == (0, "int8")
    assert report["graph_bytes"] == (out / "model.onnx").stat().st_size
    assert 0 < report["largest_difference"] < 0.1
    assert (out / "MODEL_CARD.md").read_text().startswith("# Whose it is\n")
    say("model", "key", tmp_path / "own.key")
    assert say("model", "sign", out, "--key", tmp_path / "own.key")[0] == 0


def test_a_model_without_a_graph_and_two_types_are_refused(say: Say, tmp_path: Path) -> None:
    build_model_package().save(tmp_path / "model")
    words = ("export", tmp_path / "model", "--out", tmp_path / "out")

    status, _, last = say(*words)
    assert (status, "cannot be exported yet" in last) == (1, True)

    status, _, last = say(*words, "--int8", "--float16")
    assert (status, "not allowed with" in last) == (2, True)
    assert not (tmp_path / "out").exists()
