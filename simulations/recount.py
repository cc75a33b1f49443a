"""Every epsilon of a run, computed again from its ledgers by two accountants that share no code.

An auditor's view: nothing that the run says of itself is taken for granted. The ledgers' chains are
verified, and each epsilon computed by dp-accounting's privacy-loss distributions, as the devices
did, and by Opacus (``witness``), which they never asked. Each account in ``privacy.json`` is held
against its ledger line by line (``accounts``), and the run's files against each other, so that
nobody is left out and no promise changed (``claims``). Nothing in the run folder is changed.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sottovoce.server.sums import OWNER
from sottovoce.shared.errors import LedgerError, SottovoceError
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import Unit
from sottovoce.simulations import accounts, claims
from sottovoce.simulations.accounts import CLOSE, SAME, Kept
from sottovoce.simulations.names import file_name, folder_name
from sottovoce.simulations.population import books
from sottovoce.simulations.runfile import Json, read_privacy
from sottovoce.simulations.witness import PRV_ERROR, independent


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """One client's ledger, counted again.

    Attributes:
        fold: Which world.
        client: Whose.
        releases: How many releases the ledger holds.
        claimed: Epsilon in ``privacy.json``; None where it claims none.
        pld: By dp-accounting; infinite where a release was unprotected, NaN where the ledger
            cannot be trusted.
        prv: By Opacus, likewise.
        faults: What is wrong; empty where all agrees.
    """

    fold: str
    client: str
    releases: int
    claimed: float | None
    pld: float
    prv: float
    faults: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recount:
    """A whole run, counted again.

    Attributes:
        unit: What the run says it protects.
        promised: Epsilon that it promised; None where it promised nothing.
        delta: Of that promise.
        counts: One of every client in every world.
        faults: What is wrong beside single clients.
    """

    unit: str
    promised: float | None
    delta: float | None
    counts: tuple[Count, ...]
    faults: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether all ledgers, both accountants and the run's files say the same."""
        return not self.faults and not any(count.faults for count in self.counts)

    def lines(self) -> list[str]:
        """The recount for people: what was counted, what disagrees, the verdict last."""
        wrong = [f"{c.fold} {c.client}: {fault}" for c in self.counts for fault in c.faults]
        faulty = len({(c.fold, c.client) for c in self.counts if c.faults})
        found = [*self.faults, *wrong]
        verdict = "all ledgers agree with privacy.json"
        if found:
            verdict = (
                f"DISAGREES: {faulty} of {len(self.counts)} ledgers, and {len(self.faults)} times "
                "beside them, see above"
            )
        return [*self._heading(), *found, verdict]

    def to_dict(self) -> Json:
        """The recount for a program; infinity and NaN become null."""
        return {
            "agrees": self.agrees,
            "unit": self.unit,
            "epsilon": self.promised,
            "delta": self.delta,
            "tolerance": {"pld": SAME, "prv": CLOSE},
            "faults": list(self.faults),
            "clients": [
                {
                    "fold": count.fold,
                    "client": count.client,
                    "releases": count.releases,
                    "claimed": count.claimed,
                    "pld": _finite(count.pld),
                    "prv": _finite(count.prv),
                    "faults": list(count.faults),
                }
                for count in self.counts
            ],
        }

    def _heading(self) -> list[str]:
        """How much was counted, and by whom."""
        worlds = len({count.fold for count in self.counts})
        releases = sum(count.releases for count in self.counts)
        first = f"{len(self.counts)} ledgers of {worlds} folds, {releases} releases, chains read"
        if self.unit == "none":
            return [first, "unit none: every release should be booked as unprotected"]
        known = [count for count in self.counts if math.isfinite(count.pld + count.prv)]
        if not known:
            return [first, "no ledger could be counted"]
        apart = max(abs(count.pld - count.prv) for count in known)
        return [
            first,
            f"{accountant.NAME}: epsilon {_span([count.pld for count in known])}",
            f"PRV (Opacus, error {PRV_ERROR:g}): epsilon {_span([count.prv for count in known])}",
            f"the two differ by at most {apart:.4f}; {CLOSE:g} is allowed",
        ]


def recount(run_folder: Path) -> Recount:
    """Count a run's privacy again.

    Args:
        run_folder: What ``simulate --out`` made.

    Returns:
        The recount; ``agrees`` says whether the run's own account holds.

    Raises:
        SettingError: The folder holds no run.
        MessageError: Its ``privacy.json`` is damaged or of a newer release.
    """
    privacy = read_privacy(run_folder)
    kept = list(_kept(run_folder / "ledgers", privacy))
    database = run_folder / "ledgers" / books.NAME
    crowd = any("registered" in world for world in privacy["worlds"][:1])
    return Recount(
        unit=privacy["unit"],
        promised=privacy["epsilon"],
        delta=privacy["delta"],
        counts=tuple(_count(one) for one in kept),
        faults=(
            *claims.faults(run_folder, privacy),
            *_strangers(run_folder / "ledgers", {one.path for one in kept}),
            *(books.faults(database, privacy) if crowd and database.exists() else ()),
        ),
    )


def _kept(ledgers: Path, privacy: Json) -> Iterator[Kept]:
    """Every ledger that ``privacy.json`` accounts for: users', and the servers' of their sums."""
    protects, user = privacy["unit"] != "none", privacy.get("user")
    first = Unit.USER if privacy["unit"] == "user" else Unit.UTTERANCE
    for world in privacy["worlds"]:
        fold = str(world["name"])
        folder = ledgers / folder_name(fold)
        crowd = ledgers / books.NAME if "registered" in world else None
        run = "population" if crowd else fold
        for client, account in world["clients"].items():
            yield Kept(
                path=crowd or folder / f"{file_name(client)}.jsonl",
                fold=fold,
                client=client,
                account=account,
                unit=first,
                terms=privacy,
                user=user,
                run=run,
                tuned=_tuned(privacy, first),
                protects=protects,
            )
        if world.get("server"):
            yield Kept(
                path=folder.with_name(f"{folder.name}.server.jsonl"),
                fold=fold,
                client=OWNER,
                account=world["server"],
                unit=Unit.USER,
                terms=user or privacy,
                user=None,
                run=run,
                tuned=_tuned(privacy, Unit.USER),
                protects=protects,
            )


def _tuned(privacy: Json, unit: Unit) -> tuple[int, float | None] | None:
    """How many runs this unit is charged for, and their price; None where it is for one."""
    tuned = privacy.get("tuned")
    return (tuned["runs"], tuned.get(unit.value)) if tuned else None


def _count(kept: Kept) -> Count:
    """One ledger: read, verify, price, compare."""
    fold, client, account = kept.fold, kept.client, kept.account
    try:
        ledger = _ledger(kept.path, client)
    except SottovoceError as error:
        return Count(
            fold=fold,
            client=client,
            releases=0,
            claimed=account["epsilon"],
            pld=math.nan,
            prv=math.nan,
            faults=(str(error),),
        )
    delta = float(account["delta"])
    pld = accountant.epsilon(ledger.releases, delta, unit=kept.unit)
    prv = independent(ledger.releases, delta, unit=kept.unit)
    return Count(
        fold=fold,
        client=client,
        releases=len(ledger.releases),
        claimed=account["epsilon"],
        pld=pld,
        prv=prv,
        faults=tuple(accounts.faults(ledger, kept, pld, prv)),
    )


def _ledger(path: Path, client: str) -> Ledger:
    """A client's own ledger whose chain holds; a torn one is refused here and left as it is."""
    if path.name == books.NAME:
        return books.ledger_of(path, client)
    try:
        whole = path.read_bytes().endswith(b"\n")
    except OSError as error:
        reason = error.strerror or error
        raise LedgerError(f"its ledger {path.name} cannot be read: {reason}") from error
    if not whole:
        raise LedgerError(f"its ledger {path.name} ends in a torn line; it was cut off")
    return Ledger(path, owner=client, read_only=True)


def _strangers(ledgers: Path, known: Collection[Path]) -> Iterator[str]:
    """Ledgers of nobody: releases that no line of ``privacy.json`` prices."""
    for path in sorted(
        [*ledgers.glob("*/*.jsonl"), *ledgers.glob("*.jsonl"), ledgers / books.NAME]
    ):
        if path not in known and path.exists():
            yield f"{path.parent.name}/{path.name} is a ledger that privacy.json does not mention"


def _span(values: list[float]) -> str:
    """Smallest and largest."""
    return f"{min(values):.4f} to {max(values):.4f}"


def _finite(value: float) -> float | None:
    """What JSON can hold."""
    return value if math.isfinite(value) else None
