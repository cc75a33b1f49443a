"""The sums that a real server let out, kept so that each is let out once.

A server that was interrupted asks for nothing that it has: drawn anew, a sum would be a second
release, which a budget that was made for one does not hold. Devices, too, give a round once, for
one request; other label counts or another centre would make it another.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sottovoce.server.anchor import ServerAnchor
from sottovoce.server.files import alone, replace_file
from sottovoce.shared.errors import PrivacyError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LetOut:
    """A noised sum, and how many devices are in it.

    Attributes:
        total: Shape (n,), float64.
        devices: How many devices' parts were added up.
        users: Whose they are, where that was agreed on before; empty elsewhere.
    """

    total: Tensor
    devices: int
    users: tuple[str, ...] = ()


class KeptSums:
    """What a real server let out, by name; of rounds the newest.

    Guarantees:
        - A sum is let out only once it lies on disk, synced, and the anchor says so.
        - Of two servers that make the same sum, only the first lets it out, where the system has
          ``flock``.

    Args:
        folder: The job's.
        plan: SHA-256 of the plan.
        anchor: Where it is noted that a sum was let out.
    """

    def __init__(self, folder: Path, *, plan: str, anchor: ServerAnchor) -> None:
        self._folder = folder
        self._plan = plan
        self._anchor = anchor

    def get(self, name: str) -> LetOut | None:
        """What was let out under this name; None where nothing usable is kept."""
        try:
            with safe_open(self._path(name), framework="pt") as file:
                words = dict(file.metadata() or {})
                total: Tensor = file.get_tensor("sum")
            devices, users = int(words["devices"]), tuple(json.loads(words["users"]))
        except (SafetensorError, OSError, KeyError, ValueError):
            return None
        whose = (words.get("plan"), words.get("name"))
        good = whose == (self._plan, name) and bool(torch.isfinite(total).all())
        return LetOut(total=total, devices=devices, users=users) if good else None

    def was_let_out(self, booked: str) -> bool:
        """Whether what was booked under this name was let out, kept still or not."""
        return booked in self._anchor.let_out

    def put(self, name: str, booked: Sequence[str], value: LetOut) -> None:
        """Keep what is about to be let out.

        Args:
            name: The sum's.
            booked: What paid for it, in the ledger's words.
            value: The sum.

        Raises:
            PrivacyError: Another server has let it out meanwhile, or the disk refuses.
        """
        with alone(self._folder / "sums.lock"):
            if self.get(name) is not None:
                raise PrivacyError(
                    f"another server has let {name} of this run out; end one of the two, and run "
                    "again with --resume"
                )
            words = {
                "plan": self._plan,
                "name": name,
                "devices": str(value.devices),
                "users": json.dumps(value.users),
            }
            replace_file(self._path(name), save({"sum": value.total.contiguous()}, words))
            for one in booked:
                self._anchor.note(one)

    def _path(self, name: str) -> Path:
        """Rounds take each other's place: older ones are in the checkpoint."""
        kind = "round" if name.startswith("round-") else name
        return self._folder / f"{kind}.safetensors"
