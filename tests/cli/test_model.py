"""Commands that show whose a model is, and which encoders this machine trusts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import build_model_package

from sottovoce.shared.features import encoder_store

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder: Path = tmp_path / "run" / "model"
    build_model_package().save(folder)
    return folder


def test_a_model_is_signed_and_verified(say: Say, tmp_path: Path, model: Path) -> None:
    _, public, _ = say("model", "key", tmp_path / "own.key")
    _, other, _ = say("model", "key", tmp_path / "other.key")
    status, out, _ = say("model", "verify", model.parent)
    assert (status, "nobody" in out) == (0, True)

    assert say("model", "sign", model.parent, "--key", tmp_path / "own.key")[:2] == (0, public)

    assert public.strip() in say("model", "verify", model, "--trusted-key", public.strip())[1]
    status, _, last = say("model", "verify", model, "--trusted-key", other.strip())
    assert (status, "must be by" in last) == (1, True)


def test_a_pinned_key_refuses_other_models_in_predict(
    say: Say, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, public, _ = say("model", "key", tmp_path / "own.key")
    monkeypatch.setenv("SOTTOVOCE_TRUSTED_KEY", public.strip())

    status, _, last = say("predict", "a.wav", "--model", model)

    assert (status, "it is not signed" in last) == (1, True)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["model", "verify", "MODEL", "--trusted-key", "00"], "64 hexadecimal digits"),
        (["model", "sign", "MODEL", "--key", "MODEL/model.json"], "holds no key"),
        (["model", "sign", "MODEL", "--key", "none"], "holds no key"),
        (["model", "key", "MODEL/model.json"], "nothing is written over"),
        (["encoder", "add", "none-base"], "pipeline is 'none-base'"),
        (["encoder", "add", "hubert-base", "--file", "MODEL/model.json", "--sha256", "0"], "not 0"),
    ],
)
def test_mistakes_are_usage_errors(say: Say, model: Path, words: list[str], named: str) -> None:
    status, _, last = say(*(word.replace("MODEL", str(model)) for word in words))

    assert (status, named in last) == (2, True), last


def test_a_strangers_model_names_no_encoder_that_was_not_added(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(encoder_store.FOLDER_VARIABLE, str(tmp_path / "encoders"))
    for number, name in enumerate(("wav2vec2-base", f"pipeline:{tmp_path}/planted.pt")):
        build_model_package(extractor=name).save(tmp_path / str(number))

        status, _, last = say("predict", "a.wav", "--model", tmp_path / str(number))

        assert (status, "is not installed here" in last) == (1, True), last
    assert say("encoder", "list")[1].startswith("none is installed")
    build_model_package(extractor="+".join(["descriptors"] * 1_000)).save(tmp_path / "2")
    status, _, last = say("predict", "a.wav", "--model", tmp_path / "2")
    assert (status, len(last) < 500) == (1, True)


def test_installed_encoders_are_listed(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(encoder_store.FOLDER_VARIABLE, str(tmp_path))
    found: Any = tmp_path / "encoders.json"
    found.write_text('{"schema": 1, "encoders": {"hubert-base": "%s"}}' % ("ab" * 32))

    assert "hubert-base" in say("encoder", "list")[1]
    assert "hubert-base" in say("encoder", "list", "--json")[1]
    found.write_text("[")
    assert say("encoder", "list")[0] == 1
