"""Accounts of ``privacy.json`` beside their ledgers: whatever is not alike is named."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import Mechanism, Unit
from sottovoce.simulations.runfile import Json

SAME = 1e-6
"""Most that the same accountant may differ from itself: ``privacy.json`` keeps ten digits."""

CLOSE = 0.05
"""Most that two accountants may differ; each errs on the high side by its own discretisation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A ledger, what ``privacy.json`` says of it, and the terms of its unit."""

    path: Path
    fold: str
    client: str
    account: Json
    unit: Unit
    terms: Json
    protects: bool


def faults(ledger: Ledger, kept: Kept, pld: float, prv: float) -> Iterator[str]:
    """What does not agree, in words with both numbers."""
    account = kept.account
    if ledger.head != account["ledger_sha256"]:
        yield (
            f"the ledger's head is {ledger.head[:12]}, privacy.json has "
            f"{str(account['ledger_sha256'])[:12]}: it is not the ledger that was priced"
        )
    if len(account["releases"]) != len(ledger.releases):
        yield (
            f"the ledger holds {len(ledger.releases)} releases, privacy.json lists "
            f"{len(account['releases'])}"
        )
    if kept.protects:
        yield from _priced(account, kept.terms, pld, prv)
    else:
        yield from _unprotected(ledger, account)


def _unprotected(ledger: Ledger, account: Json) -> Iterator[str]:
    """Where nothing was promised, nothing may look protected."""
    if account["epsilon"] is not None:
        yield f"privacy.json claims epsilon {account['epsilon']} in a run that protects nothing"
    if all(release.mechanism is not Mechanism.NONE for release in ledger.releases):
        yield "the ledger books no unprotected release in a run that protects nothing"


def _priced(account: Json, terms: Json, pld: float, prv: float) -> Iterator[str]:
    """Claims against what both accountants say; written so that NaN and infinity disagree."""
    claimed, promised = account["epsilon"], terms["epsilon"]
    if claimed is None or not abs(claimed - pld) <= SAME:
        yield f"privacy.json says epsilon {claimed}, the ledger costs {pld:.6f} by PLD"
    if claimed is None or not abs(claimed - prv) <= CLOSE:
        yield f"privacy.json says epsilon {claimed}, the ledger costs {prv:.4f} by PRV"
    if promised is None or not pld <= promised + SAME:
        yield f"epsilon {pld:.6f} was spent where {promised} was promised"
    if terms["delta"] is None or not account["delta"] <= terms["delta"]:
        yield f"delta {account['delta']} was spent where {terms['delta']} was promised"
