"""The books of a crowd: every device's ledger verified, those that say the same counted together.

A million ledgers cannot be listed, and need not be: devices that let out the same spent the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sottovoce.shared.errors import LedgerError
from sottovoce.shared.privacy.release import Release
from sottovoce.simulations.devices.store import Store, StoredLedger
from sottovoce.simulations.population.crowd import name_of, place_of
from sottovoce.simulations.runfile import Json

NAME: Final = "population.sqlite"
"""The database, in a run's ``ledgers``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Kind:
    """Devices whose ledgers hold the same releases, but for the rounds that they belong to.

    Attributes:
        user: The first of them.
        ledger: Theirs.
        alike: How many they are.
    """

    user: str
    ledger: StoredLedger
    alike: int


def kinds(store: Store, users: int) -> Iterator[Kind]:
    """All contributors that let something out, by kind, in the order of their first users.

    Args:
        store: Where their ledgers are; those of held-out users are verified too.
        users: How many contribute; higher places only take models.

    Raises:
        LedgerError: A chain is broken, or lines were dropped.
    """
    first: dict[tuple[Release, ...], tuple[str, StoredLedger]] = {}
    count: dict[tuple[Release, ...], int] = {}
    for place in store.users():
        ledger = opened(store, place)
        if place >= users:
            continue
        what = tuple(replace(release, round=0) for release in ledger.releases)
        first.setdefault(what, (name_of(place), ledger))
        count[what] = count.get(what, 0) + 1
    for what, (user, ledger) in first.items():
        yield Kind(user=user, ledger=ledger, alike=count[what])


def opened(store: Store, place: int) -> StoredLedger:
    """A user's ledger, verified against its owner and its anchor; nothing is written."""
    return StoredLedger(store, place, owner=name_of(place), read_only=True)


def ledger_of(database: Path, user: str) -> StoredLedger:
    """The verified ledger of a user by name.

    Raises:
        LedgerError: There is none, or it is broken.
        PrivacyError: The database cannot be used.
    """
    try:
        place = place_of(user)
    except ValueError:
        raise LedgerError(
            f"{user} is no name in a crowd: {database.name} holds no ledger"
        ) from None
    store = Store(database, read_only=True)
    try:
        ledger = opened(store, place)
    finally:
        store.close()
    if not ledger.releases:
        raise LedgerError(f"{database.name} holds no ledger of {user}")
    return ledger


def faults(database: Path, privacy: Json) -> list[str]:
    """What ``privacy.json`` says of how many devices are alike and does not hold.

    The ledger of each kind's first device is priced and compared elsewhere; see ``recount``.
    """
    store = Store(database, read_only=True)  # a broken chain is a fault, and the last word
    try:
        users = privacy["worlds"][0]["registered"]
        found = {kind.user: kind.alike for kind in kinds(store, users)}
    except LedgerError as error:
        return [str(error)]
    finally:
        store.close()
    claimed = {
        user: account.get("alike")
        for world in privacy["worlds"]
        for user, account in world["clients"].items()
    }
    return [
        f"{claimed.get(user)} devices are said to be like {user}, there are {found.get(user)}"
        for user in sorted(found.keys() | claimed.keys())
        if found.get(user) != claimed.get(user)
    ]
