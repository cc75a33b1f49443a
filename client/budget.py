"""What a device has spent and what is left, told to its owner. Nothing is written here."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sottovoce.client.device import Device
from sottovoce.client.vault import Vault
from sottovoce.shared.errors import BudgetSpent
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Budget, Ledger
from sottovoce.shared.privacy.release import Kind, Mechanism, Release

MOST_ROUNDS: Final = 10_000
"""Where counting further rounds ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """One budget, and what became of it.

    Attributes:
        budget: What may be spent.
        spent: Epsilon of everything that left; infinite where something was unprotected.
        runs: Epsilon of each run's releases alone, torn ones included, by the run's name.
        more_rounds: How many more rounds like the last one fit, at most ``MOST_ROUNDS``; None
            where there was no round yet.
    """

    budget: Budget
    spent: float
    runs: Mapping[str, float]
    more_rounds: int | None

    @property
    def left(self) -> float:
        """How much the life's epsilon may still rise, at least 0."""
        return max(0.0, self.budget.epsilon - self.spent)

    def lines(self) -> list[str]:
        """For people."""
        budget, runs = self.budget, self.runs.items()
        first = (
            f"one {budget.unit.value}, delta {budget.delta:g}: epsilon {self.spent:.4f} of "
            f"{budget.epsilon:g} spent, {self.left:.4f} left; {self._rounds()}"
        )
        return [first, *(f"  run {run}: epsilon {spent:.4f}{self._share()}" for run, spent in runs)]

    def to_dict(self) -> dict[str, Any]:
        """For a program; infinity becomes null."""
        return {
            "unit": self.budget.unit.value,
            "delta": self.budget.delta,
            "epsilon": self.budget.epsilon,
            "per_run": self.budget.per_run,
            "spent": _finite(self.spent),
            "left": self.left,
            "more_rounds": self.more_rounds,
            "runs": {run: _finite(spent) for run, spent in self.runs.items()},
        }

    def _rounds(self) -> str:
        """How many more rounds fit."""
        if self.more_rounds is None:
            return "no round yet"
        more = " or more" if self.more_rounds == MOST_ROUNDS else ""
        return f"more rounds like the last one that fit: {self.more_rounds:,}{more}"

    def _share(self) -> str:
        """What one run may spend."""
        return "" if self.budget.per_run is None else f" of {self.budget.per_run:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """A device's account. That there is one means that chain and anchor verified.

    Attributes:
        user: Whose device.
        ledger: SHA-256 that stands for the whole ledger.
        anchored: How many releases the anchor knows of; None on a device from before anchors.
        runs: How many releases each run got.
        kinds: How many releases of each kind there are.
        spending: One entry a budget.
    """

    user: str
    ledger: str
    anchored: int | None
    runs: Mapping[str, int]
    kinds: Mapping[str, int]
    spending: tuple[Spending, ...]

    @property
    def releases(self) -> int:
        """How many releases the ledger holds."""
        return sum(self.runs.values())

    def lines(self) -> list[str]:
        """The account for people."""
        promises = [line for one in self.spending for line in one.lines()]
        return [
            f"device of {self.user}: releases {self.releases}, runs {len(self.runs)}",
            *(f"  run {run}: {count}" for run, count in self.runs.items()),
            *(f"  {kind}: {count}" for kind, count in self.kinds.items()),
            *(promises or ["no budget: nothing is promised, and every release passes"]),
            f"ledger {self.ledger}",
            f"chain verified; {self._anchor()}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """The account for a program."""
        return {
            "user": self.user,
            "releases": self.releases,
            "ledger_sha256": self.ledger,
            "chain": True,
            "anchor": self.anchored is not None,
            "anchored": self.anchored,
            "runs": dict(self.runs),
            "kinds": dict(self.kinds),
            "budgets": [one.to_dict() for one in self.spending],
        }

    def _anchor(self) -> str:
        """What the anchor says."""
        if self.anchored is None:
            return "no anchor yet: the device gets one when it takes part the next time"
        if self.anchored < self.releases:
            return (
                f"anchor verified up to release {self.anchored}, the rest are counted all the same"
            )
        return "anchor verified"


def account(folder: Path, *, vault: Vault | None = None) -> Account:
    """What a device has spent.

    Args:
        folder: The device's folder. It may be in use: nothing in it is changed.
        vault: The device's, opened; None opens it.

    Raises:
        SettingError: No device there.
        PrivacyError: It is damaged.
        LedgerError: Its ledger is broken, another user's, or lacks lines that were written.
    """
    device = Device(folder, read_only=True, vault=vault)
    ledger = device.ledger
    return Account(
        user=device.facts.user,
        ledger=ledger.head,
        anchored=None if ledger.anchor is None else ledger.anchor.releases,
        runs=Counter(release.run for release in ledger.releases),
        kinds=Counter(sorted(release.kind.value for release in ledger.releases)),
        spending=tuple(_spending(ledger, budget) for budget in device.facts.budgets),
    )


def _spending(ledger: Ledger, budget: Budget) -> Spending:
    """What became of one budget."""
    delta, unit = budget.delta, budget.unit
    runs = dict.fromkeys(release.run for release in ledger.releases)
    return Spending(
        budget=budget,
        spent=ledger.epsilon(delta, unit),
        runs={run: accountant.epsilon(ledger.of_run(run), delta, unit=unit) for run in runs},
        more_rounds=_more_rounds(ledger, budget),
    )


def _more_rounds(ledger: Ledger, budget: Budget) -> int | None:
    """How many more rounds like the last one the ledger would book under a budget."""
    last = _last_round(ledger.releases)
    if not last:
        return None
    fits, fails = 0, 1
    while fails <= MOST_ROUNDS and _fit(ledger, _again(last, fails), budget):
        fits, fails = fails, 2 * fails
    while fails - fits > 1 and fits < MOST_ROUNDS:
        middle = (fits + fails) // 2
        fit = _fit(ledger, _again(last, middle), budget)
        fits, fails = (middle, fails) if fit else (fits, middle)
    return min(fits, MOST_ROUNDS)


def _last_round(releases: tuple[Release, ...]) -> list[Release]:
    """What the last round let out, once each; a request that came twice is not two rounds."""
    rounds = [
        one
        for one in releases
        if one.round and one.kind is not Kind.TORN and one.mechanism is not Mechanism.ENCRYPTION
    ]
    where = [(one.run, one.round) for one in rounds]
    return [*dict.fromkeys(one for one, at in zip(rounds, where, strict=True) if at == where[-1])]


def _again(last: list[Release], times: int) -> list[Release]:
    """The last round so many times more; where users take turns, no nearer than they may."""
    return [
        replace(one, round=one.round + turn * one.user.bands.spacing)
        if one.user and one.user.bands
        else one
        for turn in range(1, times + 1)
        for one in last
    ]


def _fit(ledger: Ledger, releases: list[Release], budget: Budget) -> bool:
    """Whether a budget bears these releases too."""
    try:
        ledger.afford(releases, (budget,))
    except BudgetSpent:
        return False
    return True


def _finite(value: float) -> float | None:
    """What JSON can hold."""
    return value if math.isfinite(value) else None
