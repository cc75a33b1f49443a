"""What left a device, line by line, in words that its owner understands."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sottovoce.client.device.privacy_report import BudgetStatus, PrivacyReport
from sottovoce.shared.privacy.release import Mechanism, PrivacyUnit, Release, ReleaseKind

_WHAT: Final = {
    ReleaseKind.CENTRE: "a share in the mean of all users' recordings",
    ReleaseKind.NORMALISER: "the mean of your voice, as training sees it",
    ReleaseKind.LABEL_COUNTS: "how many of your recordings have each label",
    ReleaseKind.GRADIENT: "how the shared model should change, by your recordings",
    ReleaseKind.HEAD_STATISTICS: "numbers about how well the shared model fits you",
    ReleaseKind.SEALED_HEAD: "your own settings of the model, locked so that only you can open "
    "them",
    ReleaseKind.TORN: "a line that was cut off by a crash; it is counted in full",
}

_PROTECTION: Final = {
    Mechanism.GAUSSIAN: "hidden in random noise",
    Mechanism.ENCRYPTION: "encrypted; nobody else has the key",
    Mechanism.NONE: "not protected",
}

_UNITS: Final = {
    PrivacyUnit.UTTERANCE: "any one recording",
    PrivacyUnit.USER: "you taking part at all",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLine:
    """Line of the log, for one release or for several alike in one round.

    Attributes:
        run: Of which training.
        round: Of which round; 0 before the first.
        what: What it was, in words.
        protection: What protected it, likewise.
        count: How many releases of this kind the line stands for.
        details: The entry of the ledger, exact.
    """

    run: str
    round: int
    what: str
    protection: str
    count: int
    details: dict[str, Any]


def describe_releases(releases: Iterable[Release]) -> tuple[LogLine, ...]:
    """Describe what left a device, in the order in which it left.

    The ledger keeps order and no dates: when a device answers would tell a thief of the ledger more
    than its owner needs.

    Args:
        releases: Of the ledger.

    Example:
        >>> describe_releases([])
        ()
    """
    lines: list[LogLine] = []
    for one in releases:
        line = LogLine(
            run=one.run,
            round=one.round,
            what=_WHAT[one.kind],
            protection=_PROTECTION[one.mechanism],
            count=1,
            details=one.to_dict(),
        )
        last = lines[-1] if lines else None
        if last and (last.run, last.round, last.details) == (line.run, line.round, line.details):
            lines[-1] = LogLine(
                run=line.run,
                round=line.round,
                what=line.what,
                protection=line.protection,
                count=last.count + 1,
                details=line.details,
            )
        else:
            lines.append(line)
    return tuple(lines)


def describe_budgets(report: PrivacyReport) -> tuple[str, ...]:
    """Describe how much of each promise is used, one sentence a budget.

    Args:
        report: The device's.
    """
    if not report.budgets:
        return ("Nothing is promised: this device has no budget.",)
    return tuple(_describe_budget(status) for status in report.budgets)


def _describe_budget(status: BudgetStatus) -> str:
    budget, who = status.budget, _UNITS[status.budget.unit]
    if not status.epsilon_spent:
        return (
            f"Nothing is used of the protection of {who}: nothing has left this device that could "
            "tell of it."
        )
    share = status.epsilon_spent / budget.epsilon
    if share >= 1:
        return (
            f"The protection of {who} is used up: this device gives nothing more, and goes on "
            "receiving models."
        )
    return (
        f"{share:.0%} of what may be used is used, of the protection of {who}. What left carries "
        "random noise, which limits what anybody can learn from it."
    )
