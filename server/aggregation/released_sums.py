"""The sums that a real server released, stored so that each is released once.

A server that was interrupted asks for nothing that it has: drawn anew, a sum would be a second
release, which a budget that was made for one does not hold. Devices, too, answer a round once, for
one request; other label counts or another centre would make it another.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sottovoce.server.aggregation.server_anchor import ServerAnchor
from sottovoce.shared.atomic_files import lock_file, replace_file
from sottovoce.shared.checksums import encode_tensors, read_tensors
from sottovoce.shared.errors import ModelError, PrivacyError

_LOCK: Final = "sums.lock"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReleasedSum:
    """A noised sum and its number of devices.

    Attributes:
        total: Shape (n,), float64.
        devices: How many devices' parts were added up.
        users: Whose they are, where that was agreed on before; empty elsewhere.
    """

    total: Tensor
    devices: int
    users: tuple[str, ...] = ()


def list_named_users(folder: Path) -> set[str]:
    """List the users whose names are in the sums of a job's folder."""
    return {user for *_, words in _iter_named(folder) for user in json.loads(words["users"])}


def forget_user(folder: Path, user: str) -> bool:
    """Take a user's name out of all sums of a job's folder, which stay; whether it was there."""
    found = False
    with lock_file(folder / _LOCK):
        for path, tensors, words in list(_iter_named(folder)):
            users = json.loads(words["users"])
            if user in users:
                left = json.dumps([one for one in users if one != user])
                replace_file(path, encode_tensors(tensors, words | {"users": left}))
                found = True
    return found


def _iter_named(folder: Path) -> Iterator[tuple[Path, dict[str, Tensor], dict[str, str]]]:
    """Iterate over stored sums that say whose they are."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            tensors, words = read_tensors(path)
        except ModelError:  # of another kind, or damaged: such a sum is not used
            continue
        if words.get("users", "[]") != "[]":
            yield path, tensors, words


class ReleasedSumStore:
    """Sums that a real server released, by name; of rounds the newest.

    Guarantees:
        - A sum is released only once it is on disk, synced, and the anchor says so.
        - Of two servers that make the same sum, only the first releases it, where the system has
          ``flock``.

    Args:
        folder: The job's.
        plan_digest: SHA-256 of the plan.
        anchor: Where it is noted that a sum was released.
    """

    def __init__(self, folder: Path, *, plan_digest: str, anchor: ServerAnchor) -> None:
        self._folder = folder
        self._plan = plan_digest
        self._anchor = anchor

    def get(self, name: str) -> ReleasedSum | None:
        """Read what was released under this name; None where nothing usable is stored."""
        try:
            tensors, words = read_tensors(self._path(name))
            total = tensors["sum"]
            devices, users = int(words["devices"]), tuple(json.loads(words["users"]))
        except (ModelError, KeyError, ValueError, TypeError):
            return None
        whose = (words.get("plan"), words.get("name"))
        # Round files replace each other, so the name inside says which round this one is.
        good = whose == (self._plan, name) and bool(torch.isfinite(total).all())
        return ReleasedSum(total=total, devices=devices, users=users) if good else None

    def was_released(self, booking: str) -> bool:
        """Whether what was booked under this name was released, stored still or not."""
        return booking in self._anchor.released_bookings

    def put(self, name: str, bookings: Sequence[str], value: ReleasedSum) -> None:
        """Store what is about to be released.

        Args:
            name: The sum's.
            bookings: What paid for it, in the ledger's words.
            value: The sum.

        Raises:
            PrivacyError: Another server has released it meanwhile, or the disk refuses.
        """
        with lock_file(self._folder / _LOCK):
            if self.get(name) is not None:
                raise PrivacyError(
                    f"another server has released {name} of this run; end one of the two, and run "
                    "again with --resume"
                )
            words = {
                "plan": self._plan,
                "name": name,
                "devices": str(value.devices),
                "users": json.dumps(value.users),
            }
            replace_file(self._path(name), encode_tensors({"sum": value.total}, words))
            # After the file: noted first, a crash in between would charge users for the sum again.
            for one in bookings:
                self._anchor.record_release(one)

    def _path(self, name: str) -> Path:
        """File of a sum; rounds replace each other, since older ones are in the checkpoint."""
        kind = "round" if name.startswith("round-") else name
        return self._folder / f"{kind}.safetensors"
