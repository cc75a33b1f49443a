"""Checkpoints: the server's state after each round, whole or not at all."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sottovoce.server.files import STATE, replace_file
from sottovoce.server.round import State
from sottovoce.shared.errors import ModelError
from sottovoce.shared.heads import HeadPrior, prior_from_file

__all__ = ["history", "latest", "release", "released", "replace_file", "write"]

_NAMES = ("weights", "direction", "scale", "tail", "clip")
_HISTORY = "rounds"


def write(folder: Path, state: State, plan: str, *, durable: bool = True) -> None:
    """Keep a round, atomically: the newest state whole, and every round's model.

    Args:
        folder: Where checkpoints lie; made if missing.
        state: What to keep.
        plan: SHA-256 of the plan, so that no other run continues from it.
        durable: Whether it must survive a power cut too. Where it does not, as in a simulation, an
            older round is gone on from: what devices booked for this one is theirs still.

    Raises:
        ModelError: The disk refuses.
    """
    words = {"plan": plan, "round": str(state.round)}
    model = {"weights": state.released.contiguous()}
    history = folder / _HISTORY / f"round-{state.round:04d}.safetensors"
    replace_file(history, save(model, words), durable=False)
    tensors = {name: getattr(state, name) for name in _NAMES}
    for name, follows in _following(tensors).items():  # most of them do, in most runs
        if torch.equal(tensors[name], follows):
            del tensors[name]
    # Copies: safetensors refuses tensors that share memory, as weights and a tail may.
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    replace_file(folder / STATE, save(tensors, words), durable=durable)


def _following(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the rest of a state is where there is no momentum, no scale and no averaging."""
    weights = tensors["weights"]
    zeros = torch.zeros_like(weights)
    return {"direction": zeros, "scale": zeros, "tail": weights[None]}


def latest(folder: Path, plan: str) -> State | None:
    """The newest round kept, or None.

    Raises:
        ModelError: The checkpoint is damaged or belongs to another plan.
    """
    path = folder / STATE
    if not path.exists():
        return None
    way_out = f"remove {path} to train this fold from its start"
    try:
        tensors, words = load_file(path), metadata(path)
        number = int(words["round"])
        tensors = _following(tensors) | tensors
        state = State(round=number, **{name: tensors[name] for name in _NAMES})
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ModelError(f"the checkpoint {path} is damaged ({error}); {way_out}") from error
    if words.get("plan") != plan:
        raise ModelError(f"the checkpoint {path} belongs to another plan; {way_out}")
    if not all(bool(torch.isfinite(tensors[name]).all()) for name in _NAMES):
        raise ModelError(f"the checkpoint {path} holds a NaN or an infinity; {way_out}")
    return state


def history(folder: Path) -> Iterator[tuple[int, Tensor]]:
    """Every round kept and its model's weights, shape (params,); damaged rounds are left out."""
    for path in sorted((folder / _HISTORY).glob("round-*.safetensors")):
        try:
            yield int(path.stem.removeprefix("round-")), load_file(path)["weights"]
        except (SafetensorError, KeyError, ValueError, OSError):
            continue


def release(folder: Path, tensors: dict[str, Tensor], prior: HeadPrior) -> None:
    """Keep what is handed out in the end: weights, centre and the heads' prior."""
    kept = {name: tensor.contiguous() for name, tensor in (tensors | prior.filed()).items()}
    data = save(kept, {"prior": json.dumps(prior.as_dict())})
    replace_file(folder / "released.safetensors", data)


def released(folder: Path) -> tuple[dict[str, Tensor], HeadPrior]:
    """What :func:`release` kept.

    Raises:
        ModelError: Nothing there, or damaged.
    """
    path = folder / "released.safetensors"
    try:
        kept = load_file(path)
        prior = prior_from_file(json.loads(metadata(path)["prior"]), kept)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ModelError(f"{path} is missing or damaged ({error}); run the job again") from error
    return kept, prior


def metadata(path: Path) -> dict[str, str]:
    """A safetensors file's own words."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
