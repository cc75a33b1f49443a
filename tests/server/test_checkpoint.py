"""Checkpoints: the newest round whole, or an error that says so; never another run's."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.server import checkpoint
from sottovoce.server.round import State
from sottovoce.shared.errors import ModelError
from sottovoce.shared.heads import HeadPrior, identity

PLAN = "a" * 64


def state(number: int) -> State:
    """A state that can be told from others."""
    values = torch.full((5,), float(number))
    return State(
        round=number,
        weights=values,
        direction=values + 0.1,
        scale=values + 0.2,
        tail=values[None],
        clip=torch.tensor(number / 10, dtype=torch.float64),
    )


def test_a_round_is_read_back_as_it_was_kept(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, state(1), PLAN)
    checkpoint.write(tmp_path, state(2), PLAN)

    kept = checkpoint.latest(tmp_path, PLAN)

    assert kept is not None
    assert kept.round == 2
    for name in ("weights", "direction", "scale", "tail", "clip"):
        assert torch.equal(getattr(kept, name), getattr(state(2), name))
    assert [(n, float(w[0])) for n, w in checkpoint.history(tmp_path)] == [(1, 1.0), (2, 2.0)]


def test_before_the_first_round_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path, PLAN) is None
    assert list(checkpoint.history(tmp_path)) == []


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, state(1), PLAN)
    with pytest.raises(ModelError, match="another plan"):
        checkpoint.latest(tmp_path, "b" * 64)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_cut_off_checkpoint_is_refused_with_a_way_out(tmp_path: Path, share: float) -> None:
    checkpoint.write(tmp_path, state(1), PLAN)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    with pytest.raises(ModelError, match=r"damaged .* remove .*state\.safetensors"):
        checkpoint.latest(tmp_path, PLAN)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_no_numbers_is_refused(tmp_path: Path, value: float) -> None:
    broken = state(1)
    broken.weights[2] = value
    checkpoint.write(tmp_path, broken, PLAN)
    with pytest.raises(ModelError, match="NaN or an infinity"):
        checkpoint.latest(tmp_path, PLAN)


def test_a_damaged_round_of_the_past_is_left_out(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        checkpoint.write(tmp_path, state(number), PLAN)
    (tmp_path / "rounds" / "round-0002.safetensors").write_bytes(b"junk")
    assert [number for number, _ in checkpoint.history(tmp_path)] == [1, 3]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    checkpoint.write(tmp_path, state(1), PLAN)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, refuse)
        with pytest.raises(ModelError, match=r"No space left on device.*--resume"):
            checkpoint.write(tmp_path, state(2), PLAN)

    kept = checkpoint.latest(tmp_path, PLAN)
    assert kept is not None
    assert kept.round == 1
    left = [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert left == [], "no half-written file stays"


def test_a_released_model_is_read_back(tmp_path: Path) -> None:
    prior = HeadPrior(mean=identity(3), bias_sd=0.2)
    checkpoint.release(tmp_path, {"weights": torch.ones(4), "centre": torch.zeros(2)}, prior)

    tensors, again = checkpoint.released(tmp_path)

    assert torch.equal(tensors["weights"], torch.ones(4))
    assert again.as_dict() == prior.as_dict()


@pytest.mark.parametrize("content", [None, b"", b"junk" * 10])
def test_a_released_model_that_cannot_be_read_is_refused(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "released.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="missing or damaged"):
        checkpoint.released(tmp_path)
