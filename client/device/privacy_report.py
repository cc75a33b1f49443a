"""A device's privacy report for its owner: what was spent, what is left. Nothing is written."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sottovoce.client.device.device import Device
from sottovoce.client.device.vault import FileVault
from sottovoce.shared.errors import BudgetSpent
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind

MAX_ROUNDS: Final = 10_000
"""Where counting further rounds ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetStatus:
    """One budget, and how much of the budget is spent.

    Attributes:
        budget: What may be spent.
        epsilon_spent: Epsilon of everything that left; infinite where something was unprotected.
        epsilon_by_run: Epsilon of each run's releases alone, torn ones included, by the run's name.
        rounds_left: How many more rounds like the last one fit, at most ``MAX_ROUNDS``; None
            where there was no round yet.
    """

    budget: PrivacyBudget
    epsilon_spent: float
    epsilon_by_run: Mapping[str, float]
    rounds_left: int | None

    @property
    def epsilon_left(self) -> float:
        """Epsilon that the device's whole life has left, at least 0."""
        return max(0.0, self.budget.epsilon - self.epsilon_spent)

    def format_lines(self) -> list[str]:
        """Format the budget for people, one line and one more for each run."""
        budget, runs = self.budget, self.epsilon_by_run.items()
        first = (
            f"one {budget.unit.value}, delta {budget.delta:g}: epsilon {self.epsilon_spent:.4f} of "
            f"{budget.epsilon:g} spent, {self.epsilon_left:.4f} left; {self._format_rounds_left()}"
            f"{self._format_filter()}"
        )
        return [
            first,
            *(f"  run {run}: epsilon {spent:.4f}{self._format_run_limit()}" for run, spent in runs),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON object for programs; infinity becomes null."""
        return {
            "unit": self.budget.unit.value,
            "delta": self.budget.delta,
            "epsilon": self.budget.epsilon,
            "per_run": self.budget.per_run,
            "filter": self.budget.filter.name,
            "spent": _finite(self.epsilon_spent),
            "left": self.epsilon_left,
            "more_rounds": self.rounds_left,
            "runs": {run: _finite(spent) for run, spent in self.epsilon_by_run.items()},
        }

    def _format_rounds_left(self) -> str:
        """Say how many more rounds fit."""
        if self.rounds_left is None:
            return "no round yet"
        more = " or more" if self.rounds_left == MAX_ROUNDS else ""
        return f"more rounds like the last one that fit: {self.rounds_left:,}{more}"

    def _format_filter(self) -> str:
        """Say by which filter releases are added up, where the owner chose one."""
        return "" if self.budget.renyi_order is None else f"; by the {self.budget.filter.name}"

    def _format_run_limit(self) -> str:
        """Say what one run may spend."""
        return "" if self.budget.per_run is None else f" of {self.budget.per_run:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyReport:
    """A device's privacy report. That there is one means that chain and anchor verified.

    Attributes:
        user: Whose device.
        ledger_sha256: SHA-256 that stands for the whole ledger.
        anchored_releases: How many releases the anchor knows of; None on a device from before
            anchors.
        releases_by_run: How many releases each run got.
        releases_by_kind: How many releases of each kind there are.
        budgets: One entry a budget.
        enrolment: Number of the owner's enrolment.
        withdrawn: Whether the owner has withdrawn consent.
        confirmations: What servers confirmed to have deleted then.
    """

    user: str
    ledger_sha256: str
    anchored_releases: int | None
    releases_by_run: Mapping[str, int]
    releases_by_kind: Mapping[str, int]
    budgets: tuple[BudgetStatus, ...]
    enrolment: int
    withdrawn: bool
    confirmations: tuple[Mapping[str, Any], ...]

    @property
    def release_count(self) -> int:
        """Number of releases in the ledger."""
        return sum(self.releases_by_run.values())

    def format_lines(self) -> list[str]:
        """Format the report for people, line by line."""
        runs = len(self.releases_by_run)
        budgets = [line for one in self.budgets for line in one.format_lines()]
        return [
            f"device of {self.user}: releases {self.release_count}, runs {runs}",
            *(f"  run {run}: {count}" for run, count in self.releases_by_run.items()),
            *(f"  {kind}: {count}" for kind, count in self.releases_by_kind.items()),
            *(budgets or ["no budget: nothing is promised, and every release passes"]),
            *self._format_consent(),
            f"ledger {self.ledger_sha256}",
            f"chain verified; {self._format_anchor()}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON object for programs."""
        return {
            "user": self.user,
            "releases": self.release_count,
            "ledger_sha256": self.ledger_sha256,
            "chain": True,
            "anchor": self.anchored_releases is not None,
            "anchored": self.anchored_releases,
            "runs": dict(self.releases_by_run),
            "kinds": dict(self.releases_by_kind),
            "budgets": [one.to_dict() for one in self.budgets],
            "enrolment": self.enrolment,
            "withdrawn": self.withdrawn,
            "confirmed_deletions": [dict(one) for one in self.confirmations],
        }

    def _format_consent(self) -> list[str]:
        """Say whether consent is withdrawn, and what servers confirmed."""
        if not self.withdrawn and self.enrolment == 1:
            return []
        state = "consent withdrawn" if self.withdrawn else "consent given anew"
        lines = [f"{state}, enrolment {self.enrolment}"]
        if self.withdrawn and not self.confirmations:
            lines.append("  no server has confirmed a deletion yet")
        return lines + [
            f"  run {one['run']} confirmed at {one['received']} that enrolment {one['enrolment']} "
            f"is deleted: {', '.join(one['deleted']) or 'nothing was held'}"
            for one in self.confirmations
        ]

    def _format_anchor(self) -> str:
        """Say what the anchor verified."""
        if self.anchored_releases is None:
            return "no anchor yet: the device gets one when it takes part the next time"
        if self.anchored_releases < self.release_count:
            return (
                f"anchor verified up to release {self.anchored_releases}, "
                "the rest are counted all the same"
            )
        return "anchor verified"


def build_report(folder: Path, *, vault: FileVault | None = None) -> PrivacyReport:
    """Report what a device has spent.

    Args:
        folder: The device's folder. It may be in use: nothing in it is changed.
        vault: The device's, opened; None opens it.

    Raises:
        SettingError: No device there.
        PrivacyError: It is damaged.
        LedgerError: Its ledger is broken, another user's, or lacks lines that were written.
    """
    device = Device.open(folder, read_only=True, vault=vault)
    ledger = device.ledger
    return PrivacyReport(
        user=device.profile.user,
        ledger_sha256=ledger.head_hash,
        anchored_releases=None if ledger.anchor is None else ledger.anchor.releases,
        releases_by_run=Counter(release.run for release in ledger.releases),
        releases_by_kind=Counter(sorted(release.kind.value for release in ledger.releases)),
        budgets=tuple(_budget_status(ledger, budget) for budget in device.profile.budgets),
        enrolment=device.profile.enrolment,
        withdrawn=device.profile.withdrawn,
        confirmations=tuple(device.confirmed_deletions),
    )


def _budget_status(ledger: Ledger, budget: PrivacyBudget) -> BudgetStatus:
    """Status of one budget under a ledger."""
    runs = dict.fromkeys(release.run for release in ledger.releases)
    return BudgetStatus(
        budget=budget,
        epsilon_spent=ledger.charged_epsilon(budget),
        epsilon_by_run={run: ledger.charged_epsilon_of(run, budget) for run in runs},
        rounds_left=_count_rounds_left(ledger, budget),
    )


def _count_rounds_left(ledger: Ledger, budget: PrivacyBudget) -> int | None:
    """Count the rounds like the last one that the ledger would still book under a budget."""
    last = _last_round(ledger.releases)
    if not last:
        return None
    # Doubling, then bisection: accounting is slow, and a budget may bear thousands of rounds.
    fits, fails = 0, 1
    while fails <= MAX_ROUNDS and _fits_budget(ledger, _repeat_round(last, fails), budget):
        fits, fails = fails, 2 * fails
    while fails - fits > 1 and fits < MAX_ROUNDS:
        middle = (fits + fails) // 2
        fit = _fits_budget(ledger, _repeat_round(last, middle), budget)
        fits, fails = (middle, fails) if fit else (fits, middle)
    return min(fits, MAX_ROUNDS)


def _last_round(releases: tuple[Release, ...]) -> list[Release]:
    """List the last round's releases, once each; a request that came twice is not two rounds."""
    rounds = [
        one
        for one in releases
        if one.round
        and one.kind is not ReleaseKind.TORN
        # Ciphertext has a round, too, but costs nothing.
        and one.mechanism is not Mechanism.ENCRYPTION
    ]
    where = [(one.run, one.round) for one in rounds]
    return [*dict.fromkeys(one for one, at in zip(rounds, where, strict=True) if at == where[-1])]


def _repeat_round(last: list[Release], times: int) -> list[Release]:
    """Repeat the last round; where noise is correlated, by its minimum separation."""
    return [
        replace(one, round=one.round + repeat * one.user.bands.min_separation)
        if one.user and one.user.bands
        else one
        for repeat in range(1, times + 1)
        for one in last
    ]


def _fits_budget(ledger: Ledger, releases: list[Release], budget: PrivacyBudget) -> bool:
    """Whether a budget bears these releases too."""
    try:
        ledger.check_budget(releases, (budget,))
    except BudgetSpent:
        return False
    return True


def _finite(value: float) -> float | None:
    """Replace infinity by None, for JSON."""
    return value if math.isfinite(value) else None
