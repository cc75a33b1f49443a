"""The ledgers of a population: each one verified, equal ones counted together.

A million ledgers cannot be listed, and need not be: devices of equal releases spent the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sottovoce.shared.errors import LedgerError
from sottovoce.shared.privacy.release import Release
from sottovoce.simulations.devices.database import DatabaseLedger, DeviceDatabase
from sottovoce.simulations.population.users import user_index, user_name
from sottovoce.simulations.results.schema import Table

DATABASE_NAME: Final = "population.sqlite"
"""The database, in a run's ``ledgers``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LedgerGroup:
    """Devices whose ledgers hold the same releases, but for the rounds that they belong to.

    Attributes:
        user: The first of them.
        ledger: The first one's.
        device_count: How many they are.
    """

    user: str
    ledger: DatabaseLedger
    device_count: int


def group_ledgers(database: DeviceDatabase, users: int) -> Iterator[LedgerGroup]:
    """All contributors with releases, by group, in the order of their first users.

    Args:
        database: Where their ledgers are; those of held-out users are verified too.
        users: How many contribute; higher indices only take models.

    Raises:
        LedgerError: A chain is broken, or lines were dropped.
    """
    first: dict[tuple[Release, ...], tuple[str, DatabaseLedger]] = {}
    count: dict[tuple[Release, ...], int] = {}
    for index in database.iterate_users():
        ledger = open_ledger(database, index)
        # Opened above, so verified; but held-out users release nothing that is accounted for.
        if index >= users:
            continue
        # The round does not change what a release costs, and would make every device a group.
        releases = tuple(replace(release, round=0) for release in ledger.releases)
        first.setdefault(releases, (user_name(index), ledger))
        count[releases] = count.get(releases, 0) + 1
    for releases, (user, ledger) in first.items():
        yield LedgerGroup(user=user, ledger=ledger, device_count=count[releases])


def open_ledger(database: DeviceDatabase, index: int) -> DatabaseLedger:
    """A user's ledger, verified against its owner and its anchor; nothing is written."""
    return DatabaseLedger(database, index, owner=user_name(index), read_only=True)


def find_ledger(database: Path, user: str) -> DatabaseLedger:
    """The verified ledger of a user by name.

    Raises:
        LedgerError: There is none, or it is broken.
        PrivacyError: The database cannot be used.
    """
    try:
        index = user_index(user)
    except ValueError:
        raise LedgerError(
            f"{user} is no name in a population: {database.name} holds no ledger"
        ) from None
    store = DeviceDatabase(database, read_only=True)
    try:
        ledger = open_ledger(store, index)
    finally:
        store.close()
    if not ledger.releases:
        raise LedgerError(f"{database.name} holds no ledger of {user}")
    return ledger


def group_mismatches(database: Path, privacy: Table) -> list[str]:
    """Counts of devices with equal ledgers in ``privacy.json`` that do not hold.

    The ledger of each group's first device is accounted for and compared elsewhere; see
    ``verification.recompute``.
    """
    store = DeviceDatabase(database, read_only=True)  # a broken chain is a fault, and the last word
    try:
        users = privacy["folds"][0]["registered"]
        found = {group.user: group.device_count for group in group_ledgers(store, users)}
    except LedgerError as error:
        return [str(error)]
    finally:
        store.close()
    claimed = {
        user: account.get("devices_with_equal_ledgers")
        for fold in privacy["folds"]
        for user, account in fold["clients"].items()
    }
    return [
        f"{claimed.get(user)} devices are said to have the ledger of {user}, there are "
        f"{found.get(user)}"
        for user in sorted(found.keys() | claimed.keys())
        if found.get(user) != claimed.get(user)
    ]
