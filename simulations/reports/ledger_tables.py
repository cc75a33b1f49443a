"""Tables of a run's ledgers, and checks that any reader can repeat."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from sottovoce.simulations.reports.wording import format_number
from sottovoce.simulations.results.schema import Table

MAX_ROWS = 2_000  # a page with all clients of a large population would not open
# Above this number, tables start closed: the page opens quickly.
_OPEN_ROWS = 200
_TOLERANCE = 1e-6
# Epsilon after a release may come from a faster, coarser accountant: some 4 % high.
_COARSE_TOLERANCE = 0.06

SERVER_NAME = "the server"


def fold_accounts(fold: Table) -> dict[str, Table]:
    """List every ledger of one fold by owner, the server's included.

    Example:
        >>> list(fold_accounts({"clients": {"anna": {}}, "server": {"epsilon": 8.0}}))
        ['anna', 'the server']
    """
    server = fold.get("server")
    return {**fold["clients"], **({SERVER_NAME: server} if server else {})}


def accounts_by_round(fold: Table) -> list[Table]:
    """List the ledgers of a fold that book each round when it is made.

    Example:
        >>> ahead = {"releases": [{"kind": "gradient", "round": 0}]}
        >>> accounts_by_round({"clients": {"anna": ahead}, "server": {"epsilon": 8.0}})
        [{'epsilon': 8.0}]
    """
    server = [account for account in [fold.get("server")] if account]
    if server and is_booked_ahead(fold):
        return server
    return [*fold["clients"].values()] or server


def is_booked_ahead(fold: Table) -> bool:
    """Whether clients book all rounds before the first, as they do where cohorts are secret."""
    return any(
        release["kind"] == "gradient" and not release["round"]
        for account in fold["clients"].values()
        for release in account["releases"]
    )


def epsilon_by_round(account: Table, rounds: int) -> list[float]:
    """List the epsilon spent after each round, from 0; the last one twice, for a width in a figure.

    An epsilon on the way may be coarser than the final one, which bounds them all.

    Args:
        account: A ledger's account.
        rounds: The last round.

    Example:
        >>> enrolment = {"round": 0, "epsilon_after": 1.0}
        >>> gradient = {"round": 1, "epsilon_after": 5.0}
        >>> head_statistics = {"round": 0, "epsilon_after": 6.0}
        >>> releases = [enrolment, gradient, head_statistics]
        >>> epsilon_by_round({"epsilon": 6.0, "releases": releases}, 1)
        [1.0, 6.0, 6.0]
    """
    most = account["epsilon"] or math.inf
    after = dict.fromkeys(range(rounds + 1), 0.0)
    reached = 0
    for release in account["releases"]:
        # In the order of booking: head statistics belong to no round and come after the last.
        reached = max(reached, release["round"])
        here = min(release["epsilon_after"] or 0.0, most)
        after[reached] = max(after[reached], here)
    spent = list(itertools.accumulate(after.values(), max))
    return [*spent, spent[-1]]


def fold_rows(folds: Sequence[Table]) -> list[list[str]]:
    """Make rows of the least, median and largest epsilon of each fold's clients."""
    rows = []
    for fold in folds:
        spent = [a["epsilon"] for a in fold_accounts(fold).values() if a["epsilon"] is not None]
        if spent:
            ends = [format_number(value) for value in (min(spent), median(spent), max(spent))]
            rows.append([fold["name"], format_number(len(spent)), *ends])
    return rows


def release_rows(folds: Sequence[Table]) -> list[list[str]]:
    """Make rows of releases by kind: their number, and the range of their settings."""
    kinds: dict[str, list[Table]] = {}
    for fold in folds:
        for owner, account in fold_accounts(fold).items():
            for release in account["releases"]:
                # "head statistics" is a plural already.
                kind = f"sum of {release['kind']}s" if owner == SERVER_NAME else release["kind"]
                kinds.setdefault(kind.replace("ss", "s"), []).append(release)
    settings = ("noise_multiplier", "clip_norm", "sample_rate", "steps")
    return [
        [
            kind,
            format_number(len(found)),
            *(_range(release[key] for release in found) for key in settings),
        ]
        for kind, found in sorted(kinds.items())
    ]


def build_tables(folds: Sequence[Table]) -> list[dict[str, Any]]:
    """Build one table a fold; of a very large fold only the ledgers that spent most."""
    size = sum(len(fold_accounts(fold)) for fold in folds)
    return [
        {
            "name": fold["name"],
            "open": index == 0 or size <= _OPEN_ROWS,
            "rows": [_row(client, account) for client, account in _listed(fold)],
            "left": max(0, len(fold_accounts(fold)) - MAX_ROWS),
        }
        for index, fold in enumerate(folds)
    ]


def check_claims(privacy: Table) -> list[tuple[bool, str]]:
    """Check what the file claims against itself; empty where nothing was promised.

    Returns:
        Pairs of a verdict and the claim in words, for the page.
    """
    accounts = [a for fold in privacy["folds"] for a in fold_accounts(fold).values()]
    if privacy["epsilon"] is None or not accounts:
        return []
    size = f"{len(accounts):,} ledgers" if len(accounts) > 1 else "1 ledger"
    return [
        (all(_within(account) for account in accounts), f"No client passed its budget ({size})."),
        # Composition can only add: a falling epsilon would mean that lines were removed.
        (all(_rising(account) for account in accounts), "In no ledger does ε fall."),
        (
            all(_last(account) for account in accounts),
            "Every client's ε agrees with that booked at its ledger's last release.",
        ),
        (
            all(_at_most(account["delta"], account["budget"]["delta"]) for account in accounts),
            "No client's δ is above its budget's.",
        ),
    ]


def _row(client: str, account: Table) -> dict[str, Any]:
    """One ledger's line."""
    limit, spent = account["budget"]["epsilon"], account["epsilon"]
    kinds = Counter(release["kind"] for release in account["releases"])
    used = round(100 * min(1.0, spent / limit), 1) if limit and spent is not None else None
    return {
        "client": client,
        "epsilon": format_number(spent, 4),
        "limit": format_number(limit),
        "remaining": format_number(account["remaining"], 2),
        "delta": format_number(account["delta"]),
        "rounds": format_number(account["rounds"]),
        "releases": ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items())),
        "hash": account["ledger_sha256"],
        "used": used,
    }


def _listed(fold: Table) -> list[tuple[str, Table]]:
    """The ledgers a table lists, in the file's order unless there are too many."""
    accounts = list(fold_accounts(fold).items())
    if len(accounts) <= MAX_ROWS:
        return accounts
    return sorted(accounts, key=lambda one: -(one[1]["epsilon"] or 0))[:MAX_ROWS]


def _range(values: Iterable[float | None]) -> str:
    """One number, or the least and the most."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, high = format_number(min(known)), format_number(max(known))
    return low if low == high else f"{low} to {high}"


def _at_most(value: float | None, limit: float | None) -> bool:
    """Not above the limit; where there is a limit, null passes nothing."""
    # null fails: an unbounded epsilon must not pass as within a limit.
    return limit is None or (value is not None and value <= limit * (1 + _TOLERANCE))


def _within(account: Table) -> bool:
    """Spent no more than allowed."""
    return _at_most(account["epsilon"], account["budget"]["epsilon"])


def _rising(account: Table) -> bool:
    """Epsilon after each release is at least that before it."""
    after = [r["epsilon_after"] for r in account["releases"] if r["epsilon_after"] is not None]
    return all(two >= one - _TOLERANCE for one, two in itertools.pairwise(after))


def _last(account: Table) -> bool:
    """The account's epsilon is that after its last release, computed at least as finely."""
    after = [release["epsilon_after"] for release in account["releases"]]
    if not after or after[-1] is None or account["epsilon"] is None:
        return not after and not account["epsilon"]
    return bool(abs(after[-1] - account["epsilon"]) <= _COARSE_TOLERANCE * max(after[-1], 1.0))
