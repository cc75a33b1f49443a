"""A privacy ledger: every release, booked before it leaves, for the whole life of who keeps it.

Each device keeps one; a server that noises sums keeps another for what it lets out.

One JSON object a line; each names the SHA-256 of the line before it, so that a line that was
changed, dropped or reordered shows. A line is written in one call and synced to disk before the
release is computed. A torn last line (power cut) counts as spent: as the costliest release the
ledger knows, or as unprotected when it knows none.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sottovoce.shared.errors import BudgetSpent, LedgerError
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.release import Kind, Mechanism, Release, Unit

GENESIS = "0" * 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What may be spent in a life.

    Attributes:
        epsilon: Most privacy loss, above 0 and finite; no budget at all lets everything pass, which
            only an owner who wants no privacy would choose.
        delta: In (0, 1).
        unit: Whose presence it hides.
    """

    epsilon: float
    delta: float
    unit: Unit = Unit.UTTERANCE

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise LedgerError(
                f"the budget's epsilon is {self.epsilon}; it must be finite and above 0"
            )
        if not 0 < self.delta < 1:
            raise LedgerError(f"the budget's delta is {self.delta}; it must be in (0, 1)")


class Ledger:
    """An append-only, hash-chained file of releases.

    Args:
        path: The file; made at the first release.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._releases: list[Release] = []
        self._ids: set[str] = set()
        self._head = GENESIS
        if path.exists():
            self._read()

    @property
    def releases(self) -> tuple[Release, ...]:
        """All releases, first to last."""
        return tuple(self._releases)

    @property
    def head(self) -> str:
        """SHA-256 of the last line: it stands for the whole ledger."""
        return self._head

    def holds(self, name: str) -> bool:
        """Whether a release of this name was booked."""
        return name in self._ids

    def epsilon(self, delta: float, unit: Unit = Unit.UTTERANCE) -> float:
        """What has been spent, at ``delta``."""
        return accountant.epsilon(self._releases, delta, unit=unit)

    def afford(self, releases: Sequence[Release], budgets: Sequence[Budget]) -> None:
        """Refuse releases that would pass one of the budgets; no budgets let everything pass.

        Raises:
            BudgetSpent: They would; nothing was booked.
        """
        after = [*self._releases, *releases]
        for budget in budgets:
            unit, delta = budget.unit, budget.delta
            if accountant.epsilon(after, delta, unit=unit, fast=True) <= budget.epsilon:
                continue
            reached = accountant.epsilon(after, delta, unit=unit)
            if not reached <= budget.epsilon:
                raise BudgetSpent(
                    f"the next release would bring epsilon from {self.epsilon(delta, unit):.4g} to "
                    f"{reached:.4g} for one {unit.value} at delta {delta:g}; the budget is "
                    f"{budget.epsilon:g}. A device keeps receiving models; only its owner can "
                    "raise the budget"
                )

    def book(self, name: str, release: Release, budgets: Sequence[Budget]) -> None:
        """Write a release down, before anything of it exists.

        Args:
            name: Unique name of the release; the same name is never booked twice.
            release: What is about to leave.
            budgets: What may be spent.

        Guarantees:
            - When this returns, the record is on disk and synced.
            - When this raises, nothing was booked and nothing may leave.

        Raises:
            BudgetSpent: The budget would be passed.
            LedgerError: The name was booked before, or the disk refuses.
        """
        if self.holds(name):
            raise LedgerError(f"the release {name!r} is booked already")
        self.afford([release], budgets)
        self._append(name, release)

    def _append(self, name: str, release: Release) -> None:
        """Write one line, synced."""
        record = {"n": len(self._releases), "prev": self._head, "id": name}
        line = json.dumps(record | {"release": release.to_dict()}, sort_keys=True) + "\n"
        whole = self.path.stat().st_size if self.path.exists() else 0
        try:
            _write_synced(self.path, line.encode())
        except OSError as error:
            # Half a line would spoil the next one. Where this fails too, it is charged as torn.
            with suppress(OSError):
                os.truncate(self.path, whole)
            raise LedgerError(
                f"the ledger {self.path.name} cannot be written ({error.strerror}); nothing leaves "
                "this device until it can"
            ) from error
        self._remember(name, release, line)

    def _remember(self, name: str, release: Release, line: str) -> None:
        """Take one line into memory."""
        self._releases.append(release)
        self._ids.add(name)
        self._head = hashlib.sha256(line.encode()).hexdigest()

    def _read(self) -> None:
        """Read and verify the file; a torn last line is set aside and charged."""
        data = self.path.read_bytes()
        whole, _, torn = data.rpartition(b"\n")
        for number, raw in enumerate(whole.split(b"\n") if whole else []):
            self._read_line(number, raw)
        if torn:
            self._charge_torn(len(data) - len(torn), torn)

    def _read_line(self, number: int, raw: bytes) -> None:
        """Verify one line against the chain."""
        try:
            record: dict[str, Any] = json.loads(raw)
            name, release = str(record["id"]), Release.from_dict(record["release"])
            good = record["n"] == number and record["prev"] == self._head
        except (ValueError, KeyError, TypeError) as error:
            raise self._broken(number) from error
        if not good or name in self._ids:
            raise self._broken(number)
        self._remember(name, release, raw.decode() + "\n")

    def _broken(self, number: int) -> LedgerError:
        """The error of a line that breaks the chain."""
        return LedgerError(
            f"line {number + 1} of the ledger {self.path.name} breaks the chain: it was changed, "
            "dropped or reordered. Nothing leaves this device until its owner restores the ledger"
        )

    def _charge_torn(self, whole: int, torn: bytes) -> None:
        """Keep the torn bytes beside the ledger and book the worst they can have been."""
        aside = self.path.with_suffix(".torn")
        _write_synced(aside, torn + b"\n")
        os.truncate(self.path, whole)
        charged = _worst(self._releases)
        self._append(f"torn-{len(self._releases)}", charged)


def _worst(releases: Sequence[Release]) -> Release:
    """At least as costly as any of these, for either unit; unprotected where none is known."""
    protected = [one for one in releases if one.mechanism is Mechanism.GAUSSIAN]
    if not protected:
        return Release(kind=Kind.TORN, mechanism=Mechanism.NONE, run="", round=0)
    worst = max(protected, key=lambda one: accountant.epsilon([one], 1e-5, fast=True))
    users = [one.user for one in protected if one.user]
    user = min(users, key=lambda one: one.noise_multiplier / one.sample_rate, default=None)
    return replace(worst, kind=Kind.TORN, user=user if len(users) == len(protected) else None)


def _write_synced(path: Path, data: bytes) -> None:
    """Append bytes in one call and sync them, and the folder when the file is new."""
    new = not path.exists()
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        if os.write(handle, data) != len(data):
            raise OSError(28, "no space left on device")
        os.fsync(handle)
    finally:
        os.close(handle)
    if new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
