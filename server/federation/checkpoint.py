"""Checkpoints: the server's state after each round, whole or not at all."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sottovoce.server.aggregation.server_anchor import STATE_FILE
from sottovoce.server.aggregation.server_optimizer import ServerState
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.calibration import HeadPrior, prior_from_file
from sottovoce.shared.checksums import encode_tensors, read_tensors
from sottovoce.shared.errors import ModelError

__all__ = [
    "iter_round_weights",
    "load_released_model",
    "load_state",
    "read_newest_round",
    "save_released_model",
    "save_state",
]

_NAMES = ("weights", "first_moment", "second_moment", "recent_weights", "clip_norm")
_HISTORY = "rounds"
_LOG = logging.getLogger(__name__)


def save_state(folder: Path, state: ServerState, plan_digest: str, *, durable: bool = True) -> None:
    """Save a round, atomically: the newest state whole, and every round's model.

    Args:
        folder: Where checkpoints are; made if missing.
        state: What to save.
        plan_digest: SHA-256 of the plan, so that no other run continues from it.
        durable: Whether it must survive a power cut too. Where it does not, as in a simulation, an
            older round is gone on from: what devices booked for this one is theirs still.

    Raises:
        StorageError: The disk refuses.
    """
    words = {"plan": plan_digest, "round": str(state.round)}
    model = {"weights": state.released_weights}
    history = folder / _HISTORY / f"round-{state.round:04d}.safetensors"
    # The history is not synced: the state below is what a run continues from.
    replace_file(history, encode_tensors(model, words), durable=False)
    tensors = {name: getattr(state, name) for name in _NAMES}
    for name, follows in _default_tensors(tensors).items():  # most of them do, in most runs
        if torch.equal(tensors[name], follows):
            del tensors[name]
    # Copies: safetensors refuses tensors that share memory, as weights and recent weights may.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    replace_file(folder / STATE_FILE, encode_tensors(tensors, words), durable=durable)


def _default_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a state without momentum, second moment and averaging.

    There is none for ``clip_norm``: by its absence a state of an older version is noticed.
    """
    weights = tensors["weights"]
    zeros = torch.zeros_like(weights)
    return {"first_moment": zeros, "second_moment": zeros, "recent_weights": weights[None]}


def load_state(folder: Path, plan_digest: str) -> ServerState | None:
    """Load the newest round saved, or None.

    Raises:
        ModelError: The checkpoint is damaged, as its checksum shows, or belongs to another plan.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    way_out = f"remove {path} to train this fold from its start"
    try:
        tensors, words = read_tensors(path)
        number = int(words["round"])
        # Tensors that were left out have their default values.
        tensors = _default_tensors(tensors) | tensors
        state = ServerState(round=number, **{name: tensors[name] for name in _NAMES})
    except (ModelError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"the checkpoint {path} is damaged ({error}); {way_out}") from error
    if words.get("plan") != plan_digest:
        raise ModelError(f"the checkpoint {path} belongs to another plan; {way_out}")
    if not all(bool(torch.isfinite(tensors[name]).all()) for name in _NAMES):
        raise ModelError(f"the checkpoint {path} holds a NaN or an infinity; {way_out}")
    return state


def read_newest_round(folder: Path) -> int:
    """Read the number of the newest round saved, of whatever plan; 0 where there is none."""
    try:
        return int(read_metadata(folder / STATE_FILE)["round"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return 0


def iter_round_weights(folder: Path) -> Iterator[tuple[int, Tensor]]:
    """Iterate over saved rounds and their weights, (params,); damaged rounds are left out."""
    for path in sorted((folder / _HISTORY).glob("round-*.safetensors")):
        try:
            yield int(path.stem.removeprefix("round-")), read_tensors(path)[0]["weights"]
        # What reads these, learning curves and audits, can do without a round.
        except (ModelError, KeyError, ValueError) as error:
            _LOG.warning("%s is damaged and left out of what follows: %s", path, error)


def save_released_model(folder: Path, tensors: dict[str, Tensor], prior: HeadPrior) -> None:
    """Save what devices get in the end: weights, centre and the heads' prior."""
    words = {"prior": json.dumps(prior.as_dict())}
    data = encode_tensors(tensors | prior.prefixed_basis_tensors(), words)
    replace_file(folder / "released.safetensors", data)


def load_released_model(folder: Path) -> tuple[dict[str, Tensor], HeadPrior]:
    """Load what :func:`save_released_model` saved.

    Raises:
        ModelError: Nothing there, or damaged, as its checksum shows.
    """
    path = folder / "released.safetensors"
    try:
        tensors, words = read_tensors(path)
        prior = prior_from_file(json.loads(words["prior"]), tensors)
    except (ModelError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{path} is missing or damaged ({error}); run the job again") from error
    return tensors, prior


def read_metadata(path: Path) -> dict[str, str]:
    """Read a safetensors file's metadata."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
