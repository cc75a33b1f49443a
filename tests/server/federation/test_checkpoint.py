"""Checkpoints: the newest round whole, or an error that says so; never another run's."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.server.aggregation.server_optimizer import ServerState
from sottovoce.server.federation import checkpoint
from sottovoce.shared import checksums
from sottovoce.shared.calibration import HeadPrior, identity_head
from sottovoce.shared.errors import ModelError, StorageError

PLAN = "a" * 64


def state(number: int) -> ServerState:
    """A state that can be told from others."""
    values = torch.full((5,), float(number))
    return ServerState(
        round=number,
        weights=values,
        first_moment=values + 0.1,
        second_moment=values + 0.2,
        recent_weights=values[None],
        clip_norm=torch.tensor(number / 10, dtype=torch.float64),
    )


def test_a_round_is_read_back_as_it_was_kept(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path, state(1), PLAN)
    checkpoint.save_state(tmp_path, state(2), PLAN)

    loaded = checkpoint.load_state(tmp_path, PLAN)

    assert loaded is not None
    assert loaded.round == 2
    for name in ("weights", "first_moment", "second_moment", "recent_weights", "clip_norm"):
        assert torch.equal(getattr(loaded, name), getattr(state(2), name))
    assert [(n, float(w[0])) for n, w in checkpoint.iter_round_weights(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
    ]


def test_before_the_first_round_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.load_state(tmp_path, PLAN) is None
    assert list(checkpoint.iter_round_weights(tmp_path)) == []


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path, state(1), PLAN)
    with pytest.raises(ModelError, match="another plan"):
        checkpoint.load_state(tmp_path, "b" * 64)


def test_a_state_under_the_old_names_is_refused_and_not_misread(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path, state(2), PLAN)
    path = tmp_path / "state.safetensors"
    tensors, words = checksums.read_tensors(path)
    old = {"first_moment": "direction", "recent_weights": "tail", "clip_norm": "clip"}
    renamed = {old.get(name, name): tensor for name, tensor in tensors.items()}
    path.write_bytes(checksums.encode_tensors(renamed, words))

    with pytest.raises(ModelError, match=r"damaged .*'clip_norm'.* remove .*state\.safetensors"):
        checkpoint.load_state(tmp_path, PLAN)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_cut_off_checkpoint_is_refused_with_a_way_out(tmp_path: Path, share: float) -> None:
    checkpoint.save_state(tmp_path, state(1), PLAN)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    with pytest.raises(ModelError, match=r"damaged .* remove .*state\.safetensors"):
        checkpoint.load_state(tmp_path, PLAN)


@pytest.mark.parametrize("place", [-1, -9, 12, 40])
def test_a_changed_byte_shows(tmp_path: Path, place: int) -> None:
    checkpoint.save_state(tmp_path, state(1), PLAN)
    checkpoint.save_released_model(
        tmp_path, {"weights": torch.ones(4)}, HeadPrior(mean=identity_head(3), bias_sd=0.2)
    )
    for path in (*tmp_path.glob("*.safetensors"), *tmp_path.glob("rounds/*")):
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    with pytest.raises(ModelError, match="damaged"):
        checkpoint.load_state(tmp_path, PLAN)
    with pytest.raises(ModelError, match="damaged"):
        checkpoint.load_released_model(tmp_path)
    assert list(checkpoint.iter_round_weights(tmp_path)) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_no_numbers_is_refused(tmp_path: Path, value: float) -> None:
    broken = state(1)
    broken.weights[2] = value
    checkpoint.save_state(tmp_path, broken, PLAN)
    with pytest.raises(ModelError, match="NaN or an infinity"):
        checkpoint.load_state(tmp_path, PLAN)


def test_a_damaged_round_of_the_past_is_left_out(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        checkpoint.save_state(tmp_path, state(number), PLAN)
    (tmp_path / "rounds" / "round-0002.safetensors").write_bytes(b"junk")
    assert [number for number, _ in checkpoint.iter_round_weights(tmp_path)] == [1, 3]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    checkpoint.save_state(tmp_path, state(1), PLAN)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, refuse)
        with pytest.raises(StorageError, match=r"No space left on device.*--resume"):
            checkpoint.save_state(tmp_path, state(2), PLAN)

    loaded = checkpoint.load_state(tmp_path, PLAN)
    assert loaded is not None
    assert loaded.round == 1
    left = [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert left == [], "no half-written file stays"


def test_a_released_model_is_read_back(tmp_path: Path) -> None:
    prior = HeadPrior(mean=identity_head(3), bias_sd=0.2)
    checkpoint.save_released_model(
        tmp_path, {"weights": torch.ones(4), "centre": torch.zeros(2)}, prior
    )

    tensors, again = checkpoint.load_released_model(tmp_path)

    assert torch.equal(tensors["weights"], torch.ones(4))
    assert again.as_dict() == prior.as_dict()


@pytest.mark.parametrize("content", [None, b"", b"junk" * 10])
def test_a_released_model_that_cannot_be_read_is_refused(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "released.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="missing or damaged"):
        checkpoint.load_released_model(tmp_path)
