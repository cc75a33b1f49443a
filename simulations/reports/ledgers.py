"""What the ledgers of a run say, told for people: rows of tables, and checks anybody can repeat."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from sottovoce.simulations.reports.words import number

Json = Mapping[str, Any]

MOST_ROWS = 2_000  # a page of all the clients of a large population would not open
_OPEN_ROWS = 200
_CLOSE = 1e-6
_LOOSE = 0.06  # prices on the way may come from a faster, coarser accountant: some 4 % high

SERVER = "the server"


def accounts(world: Json) -> dict[str, Json]:
    """Every ledger of one world, the server's included."""
    server = world.get("server")
    return {**world["clients"], **({SERVER: server} if server else {})}


def world_rows(worlds: Sequence[Json]) -> list[list[str]]:
    """Least, median and most epsilon of each world's clients."""
    rows = []
    for world in worlds:
        spent = [a["epsilon"] for a in accounts(world).values() if a["epsilon"] is not None]
        if spent:
            ends = [number(value) for value in (min(spent), median(spent), max(spent))]
            rows.append([world["name"], number(len(spent)), *ends])
    return rows


def release_rows(worlds: Sequence[Json]) -> list[list[str]]:
    """Releases by kind: how many, and the range of their settings."""
    kinds: dict[str, list[Json]] = {}
    for world in worlds:
        for keeper, account in accounts(world).items():
            for release in account["releases"]:
                kind = f"sum of {release['kind']}s" if keeper == SERVER else release["kind"]
                kinds.setdefault(kind.replace("ss", "s"), []).append(release)
    settings = ("noise_multiplier", "clip_norm", "sample_rate", "steps")
    return [
        [kind, number(len(found)), *(_range(release[key] for release in found) for key in settings)]
        for kind, found in sorted(kinds.items())
    ]


def tables(worlds: Sequence[Json]) -> list[dict[str, Any]]:
    """One table a world; in a very large one only the ledgers that spent most are listed."""
    size = sum(len(accounts(world)) for world in worlds)
    return [
        {
            "name": world["name"],
            "open": index == 0 or size <= _OPEN_ROWS,
            "rows": [_row(client, account) for client, account in _listed(world)],
            "left": max(0, len(accounts(world)) - MOST_ROWS),
        }
        for index, world in enumerate(worlds)
    ]


def checks(privacy: Json) -> list[tuple[bool, str]]:
    """What the file claims, checked against itself; empty where nothing was promised."""
    kept = [a for world in privacy["worlds"] for a in accounts(world).values()]
    if privacy["epsilon"] is None or not kept:
        return []
    size = f"{len(kept):,} ledgers" if len(kept) > 1 else "1 ledger"
    return [
        (all(_within(account) for account in kept), f"No client passed its budget ({size})."),
        (all(_rising(account) for account in kept), "In no ledger does ε fall."),
        (
            all(_last(account) for account in kept),
            "Every client's ε agrees with that booked at its ledger's last release.",
        ),
        (
            all(_at_most(account["delta"], account["budget"]["delta"]) for account in kept),
            "No client's δ is above its budget's.",
        ),
    ]


def _row(client: str, account: Json) -> dict[str, Any]:
    """One ledger's line."""
    limit, spent = account["budget"]["epsilon"], account["epsilon"]
    kinds = Counter(release["kind"] for release in account["releases"])
    used = round(100 * min(1.0, spent / limit), 1) if limit and spent is not None else None
    return {
        "client": client,
        "epsilon": number(spent, 4),
        "limit": number(limit),
        "remaining": number(account["remaining"], 2),
        "delta": number(account["delta"]),
        "rounds": number(account["rounds"]),
        "releases": ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items())),
        "hash": account["ledger_sha256"],
        "used": used,
    }


def _listed(world: Json) -> list[tuple[str, Json]]:
    """The ledgers a table lists, in the file's order unless there are too many."""
    kept = list(accounts(world).items())
    if len(kept) <= MOST_ROWS:
        return kept
    return sorted(kept, key=lambda one: -(one[1]["epsilon"] or 0))[:MOST_ROWS]


def _range(values: Iterable[float | None]) -> str:
    """One number, or the least and the most."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, high = number(min(known)), number(max(known))
    return low if low == high else f"{low} to {high}"


def _at_most(value: float | None, limit: float | None) -> bool:
    """Not above the limit; where there is a limit, null passes nothing."""
    return limit is None or (value is not None and value <= limit * (1 + _CLOSE))


def _within(account: Json) -> bool:
    """Spent no more than allowed."""
    return _at_most(account["epsilon"], account["budget"]["epsilon"])


def _rising(account: Json) -> bool:
    """Epsilon after each release is at least that before it."""
    after = [r["epsilon_after"] for r in account["releases"] if r["epsilon_after"] is not None]
    return all(two >= one - _CLOSE for one, two in itertools.pairwise(after))


def _last(account: Json) -> bool:
    """The account's epsilon is that after its last release, priced at least as finely."""
    after = [release["epsilon_after"] for release in account["releases"]]
    if not after or after[-1] is None or account["epsilon"] is None:
        return not after and not account["epsilon"]
    return bool(abs(after[-1] - account["epsilon"]) <= _LOOSE * max(after[-1], 1.0))
