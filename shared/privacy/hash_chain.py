"""Hash chain of a ledger: whose it is, and where it ends.

The first line of a chain names a genesis that is derived from the owner, so that two users with
the same releases have different ledgers. An anchor (how many releases, and the hash of the
last line) is kept elsewhere by whoever can: lines dropped at the end leave a chain whole, and only
an anchor tells.
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final, Protocol

from sottovoce.shared import crypto, validation
from sottovoce.shared.errors import LedgerError

GENESIS: Final = "0" * 64
"""Where a ledger without a named owner begins, and where the first ones did."""

SALT_BYTES: Final = 16


def genesis_hash(owner: str, salt: bytes = b"") -> str:
    """Where an owner's ledger begins.

    Args:
        owner: The user's pseudonym.
        salt: Random bytes that hide the pseudonym from whoever sees only hashes; none in a
            simulation, which must repeat.

    Returns:
        SHA-256 over a tag, owner and salt, 64 hexadecimal digits.
    """
    # Encoded with lengths: no owner and salt spell what another owner and salt do.
    return sha256_hex(crypto.encode_context("sottovoce ledger", owner, salt.hex()))


def opening_record(owner: str) -> dict[str, str]:
    """The first line of a new ledger: fresh random bytes, and the genesis that they lead to."""
    salt = secrets.token_bytes(SALT_BYTES)
    return {"owner": genesis_hash(owner, salt), "salt": salt.hex()}


def sha256_hex(data: bytes) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """How far a ledger had come.

    Attributes:
        releases: How many releases it held, a whole number, 0 or above.
        head: SHA-256 of its last line, 64 hexadecimal digits.
    """

    releases: int
    head: str

    def __post_init__(self) -> None:
        validation.require_whole_number(releases=self.releases)
        if not is_sha256_hex(self.head):
            raise LedgerError(f"the anchor's head is {self.head!r}; it must be a SHA-256 in hex")


class AnchorStore(Protocol):
    """Storage of a ledger's anchor, out of reach of whoever can change the ledger's file."""

    def read(self) -> Anchor | None:
        """The anchor; None where there never was one.

        Raises:
            LedgerError: There was one, and it is gone or damaged.
        """
        ...

    def write(self, anchor: Anchor) -> None:
        """Store an anchor in place of the last one: a crash leaves the old one or the new one.

        Raises:
            PrivacyError: It cannot be stored; the old one stays.
        """
        ...


def is_sha256_hex(text: object) -> bool:
    """Whether this is a SHA-256 in lower-case hexadecimal digits."""
    return isinstance(text, str) and len(text) == 64 and not set(text) - set("0123456789abcdef")
