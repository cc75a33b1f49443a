"""Withdrawals of consent during a run: proof, record, deletion and confirmation.

A device whose owner has withdrawn answers any request with that status. The server then draws a
challenge, which the device signs; what is proven is recorded first, then deleted, then confirmed.
An interrupted server finds the record, and deletes the rest when it starts again.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from sottovoce.server.aggregation import released_sums
from sottovoce.server.consent.consent_registry import ConsentRegistry
from sottovoce.server.federation import participation_groups
from sottovoce.server.federation.device_channel import LOG, DeviceChannel
from sottovoce.shared import crypto
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import EngineError, MessageError, ModelError
from sottovoce.shared.protocol import messages
from sottovoce.shared.protocol.consent import ConsentStatement

WITHDRAWALS_FILE: Final = "withdrawals.json"
_SCHEMA: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class UserRecords:
    """One kind of record that a server holds of users by name.

    Attributes:
        name: A few words for it, which the confirmation says.
        delete: Deletes those of a user; whether there were any.
        list_users: Lists whom there are records of.
    """

    name: str
    delete: Callable[[str], bool]
    list_users: Callable[[], Iterable[str]]


def list_job_records(folder: Path) -> tuple[UserRecords, ...]:
    """List what a job's folder holds of users by name: groups, and whose parts sums hold."""
    return (
        UserRecords(
            name="participation group",
            delete=partial(participation_groups.remove_user, folder),
            list_users=partial(participation_groups.list_users, folder),
        ),
        UserRecords(
            name="name beside secure sums",
            delete=partial(released_sums.forget_user, folder),
            list_users=partial(released_sums.list_named_users, folder),
        ),
    )


class WithdrawalHandler:
    """Takes the withdrawals of one run.

    Args:
        channel: The way to the devices; without a register of consents nothing is handled.
        folder: The job's, where the run's state says how many withdrew.
        run: The plan's name of the run.
        records: All that the server holds of users by name.

    Guarantees:
        - Nothing is deleted without proof; what was proven is recorded, synced, before anything is
          deleted, and confirmed only after all of it was.
        - What an interrupted server had left to delete is deleted when one starts here again.
    """

    def __init__(
        self, channel: DeviceChannel, folder: Path, *, run: str, records: Iterable[UserRecords]
    ) -> None:
        self._channel = channel
        self._folder = folder
        self._run = run
        self._records = tuple(records)
        self._next_number = 0
        if channel.consents is not None:
            self._finish_deletions(channel.consents)

    def settle(self, number: int) -> frozenset[str]:
        """Settle the withdrawals that devices said since the last time.

        Args:
            number: The round that has ended, 0 for enrolment.

        Returns:
            The users who proved it now.
        """
        self._next_number = number + 1
        said, consents = self._channel.take_withdrawals(), self._channel.consents
        if not said or consents is None:
            return frozenset()
        proven = self._collect_proofs(said, consents)
        confirmations = {}
        for node, (user, enrolment) in proven.items():
            deleted = tuple(one.name for one in self._records if one.delete(user))
            LOG.info("a user has withdrawn consent; deleted: %s", ", ".join(deleted) or "nothing")
            confirmations[node] = messages.WithdrawalRequest(
                confirmation=messages.WithdrawalConfirmation(
                    run=self._run, enrolment=enrolment, deleted=deleted
                )
            )
        if confirmations:
            _note_withdrawals(self._folder, number, len(proven))
            self._channel.request(confirmations, size=0)
            for node in proven:
                self._channel.users_by_node.pop(node, None)
        return frozenset(user for user, _ in proven.values())

    @contextmanager
    def settled_on_failure(self) -> Iterator[None]:
        """Settle what devices said also where the run ends for want of replies."""
        try:
            yield
        except EngineError:
            # Whoever withdraws must not wait until somebody resumes the run.
            self.settle(self._next_number)
            raise

    def _collect_proofs(
        self, said: Mapping[int, str], consents: ConsentRegistry
    ) -> dict[int, tuple[str, int]]:
        """Ask for proofs, and record those that hold: user and enrolment, by node."""
        requests = {node: messages.WithdrawalRequest(challenge=crypto.new_key()) for node in said}
        proven = {}
        for device, reply in self._channel.request(requests, size=0):
            challenge = requests[device.node].challenge
            try:
                proof = ConsentStatement.from_bytes(reply.consent)
            except MessageError as error:
                LOG.warning("%s proves no withdrawal: %s", device.user, error)
                continue
            if consents.record_withdrawal(device.user, proof, challenge=challenge):
                proven[device.node] = (device.user, proof.enrolment)
            else:
                LOG.warning("the withdrawal of %s is not theirs; refused", device.user)
        return proven

    def _finish_deletions(self, consents: ConsentRegistry) -> None:
        """Delete what is left of users who have withdrawn."""
        if not consents.has_withdrawals:
            return
        for records in self._records:
            for user in consents.select_withdrawn(records.list_users()):
                records.delete(user)


def read_withdrawals(folder: Path) -> list[dict[str, int]]:
    """Read how many users withdrew consent during a run, by round.

    Args:
        folder: The job's.

    Returns:
        ``round`` (0 for enrolment) and ``users`` of each time that somebody did.

    Raises:
        ModelError: The record is damaged.
    """
    path = folder / WITHDRAWALS_FILE
    if not path.exists():
        return []
    try:
        record = json.loads(path.read_bytes())
        return [
            {"round": int(one["round"]), "users": int(one["users"])}
            for one in record["withdrawals"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error}); remove it to go on without") from error


def _note_withdrawals(folder: Path, number: int, users: int) -> None:
    """Note in the run's state that users withdrew: how many and when, never who."""
    noted = [*read_withdrawals(folder), {"round": number, "users": users}]
    record = {"schema": _SCHEMA, "withdrawals": noted}
    replace_file(folder / WITHDRAWALS_FILE, (json.dumps(record, indent=1) + "\n").encode())
