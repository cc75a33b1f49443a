"""Every epsilon of a run, computed again from its ledgers by two accountants that share no code.

An auditor's view: nothing that the run says of itself is taken for granted. The ledgers' chains are
verified, their heads compared with those in ``privacy.json``, and each epsilon computed by
dp-accounting's privacy-loss distributions, as the devices did, and by Opacus' numerical composition
of privacy random variables (Gopi et al. 2021, https://arxiv.org/abs/2106.02848), which they never
asked. Nothing in the run folder is changed.
"""

import math
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from sottovoce.server.sums import OWNER
from sottovoce.shared.errors import LedgerError, SottovoceError
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import GRAIN, Kind, Mechanism, Release, Unit
from sottovoce.simulations.names import file_name, folder_name
from sottovoce.simulations.population import books
from sottovoce.simulations.runfile import Json, read_privacy

SAME = 1e-6
"""Most that the same accountant may differ from itself: ``privacy.json`` keeps ten digits."""

CLOSE = 0.05
"""Most that two accountants may differ; each errs on the high side by its own discretisation."""

_PRV_ERROR = 0.005
History = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sampling rate, steps) of every kind of step."""


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
        """Whether every ledger, both accountants and ``privacy.json`` say the same."""
        return not self.faults and not any(count.faults for count in self.counts)

    def lines(self) -> list[str]:
        """The recount for people: what was counted, what disagrees, the verdict last."""
        wrong = [f"{c.fold} {c.client}: {fault}" for c in self.counts for fault in c.faults]
        faulty = len({(c.fold, c.client) for c in self.counts if c.faults})
        found = [*self.faults, *wrong]
        verdict = "all ledgers agree with privacy.json"
        if found:
            verdict = f"DISAGREES: {faulty} of {len(self.counts)} ledgers, see above"
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
            f"PRV (Opacus, error {_PRV_ERROR:g}): epsilon {_span([count.prv for count in known])}",
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
    return Recount(
        unit=privacy["unit"],
        promised=privacy["epsilon"],
        delta=privacy["delta"],
        counts=tuple(_count(one) for one in kept),
        faults=(
            *_strangers(run_folder / "ledgers", {one.path for one in kept}),
            *(books.faults(database, privacy) if database.exists() else ()),
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """A ledger, what ``privacy.json`` says of it, and the terms of its unit."""

    path: Path
    fold: str
    client: str
    account: Json
    unit: Unit
    terms: Json
    protects: bool


def _kept(ledgers: Path, privacy: Json) -> Iterator[_Kept]:
    """Every ledger that ``privacy.json`` accounts for: users', and the servers' of their sums."""
    common = {"protects": privacy["unit"] != "none"}
    first = Unit.USER if privacy["unit"] == "user" else Unit.UTTERANCE
    for world in privacy["worlds"]:
        fold = str(world["name"])
        folder = ledgers / folder_name(fold)
        crowd = ledgers / books.NAME if "registered" in world else None
        for client, account in world["clients"].items():
            yield _Kept(
                path=crowd or folder / f"{file_name(client)}.jsonl",
                fold=fold,
                client=client,
                account=account,
                unit=first,
                terms=privacy,
                **common,
            )
        if world.get("server"):
            yield _Kept(
                path=folder.with_name(f"{folder.name}.server.jsonl"),
                fold=fold,
                client=OWNER,
                account=world["server"],
                unit=Unit.USER,
                terms=privacy.get("user") or privacy,
                **common,
            )


def _count(kept: _Kept) -> Count:
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
        faults=tuple(_faults(ledger, kept, pld, prv)),
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


def _faults(ledger: Ledger, kept: _Kept, pld: float, prv: float) -> Iterator[str]:
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


def _strangers(ledgers: Path, known: Collection[Path]) -> Iterator[str]:
    """Ledgers of nobody: releases that no line of ``privacy.json`` prices."""
    for path in sorted([*ledgers.glob("*/*.jsonl"), *ledgers.glob("*.jsonl")]):
        if path not in known:
            yield f"{path.parent.name}/{path.name} is a ledger that privacy.json does not mention"


def independent(
    releases: tuple[Release, ...], delta: float, *, unit: Unit = Unit.UTTERANCE
) -> float:
    """Epsilon by Opacus' accountants: an upper bound.

    By its PRV accountant, ``_PRV_ERROR`` loose or less, and a grain for every sum of discrete
    noise; by its RDP accountant where such noise is not known to be fine.

    Args:
        releases: Everything one device, or one server about its users, let out, in any order.
        delta: In (0, 1).
        unit: Whose presence is hidden.

    Returns:
        Epsilon; 0 for nothing but ciphertext, infinite where one release was unprotected.
    """
    if any(release.mechanism is Mechanism.NONE for release in releases):
        return math.inf
    steps: dict[tuple[float, float], int] = {}
    grains, coarse = 0, False
    turns: dict[tuple[str, float, tuple[float, ...]], list[int]] = {}
    for release in releases:
        if release.mechanism is not Mechanism.GAUSSIAN:
            continue
        if unit is Unit.USER and release.kind is Kind.NORMALISER:
            continue  # it leaves only inside updates, which hide the user or cost infinity
        noise, rate, number = _steps(release, unit)
        if not noise > 0:
            return math.inf
        if release.user and release.user.discrete:
            coarse = coarse or not release.user.fine
            grains += number if release.user.fine else 0
        column = _column(release, unit)
        if column:
            turns.setdefault((release.run, noise, column), []).append(release.round)
            continue
        steps[noise, rate] = steps.get((noise, rate), 0) + number
    for (_, noise, column), rounds in turns.items():
        whole = noise * _whole_norm(column, [0]) / _whole_norm(column, rounds)
        steps[whole, 1.0] = steps.get((whole, 1.0), 0) + 1
    history = tuple(sorted((noise, rate, number) for (noise, rate), number in steps.items()))
    if not history:
        return 0.0
    grain = grains * GRAIN
    price = _by_renyi if coarse else _by_prv
    return price(history, delta * math.exp(-grain)) + grain


def _column(release: Release, unit: Unit) -> tuple[float, ...]:
    """The first column of C, where the noise that hides this unit hangs together over rounds."""
    user = release.user
    if user is None or user.bands is None or (unit is Unit.UTTERANCE and release.noise_multiplier):
        return ()
    return user.bands.coefficients


def _whole_norm(column: tuple[float, ...], rounds: Iterable[int]) -> float:
    """How far a user in these rounds moves CG, over the bound on one update.

    C is written out, one column a round, and the user's updates all point one way, which is the
    worst they can do where C has no negative entry. Nothing is taken for granted about supports.
    """
    rounds = list(rounds)
    size = max(rounds) + len(column)
    matrix = np.zeros((size, size))
    for place in range(size):
        for back, weight in enumerate(column[: size - place]):
            matrix[place + back, place] = weight
    updates = np.zeros(size)
    for number in rounds:
        updates[number] += 1.0
    return float(np.linalg.norm(matrix @ updates))


def _steps(release: Release, unit: Unit) -> tuple[float, float, int]:
    """(noise multiplier, sampling rate, steps) of one release, written down anew for one unit."""
    user = release.user
    if unit is Unit.USER:
        return (user.noise_multiplier, user.sample_rate, user.sums) if user else (0.0, 1.0, 1)
    if not release.noise_multiplier and user:
        return user.noise_multiplier / 2, 1.0, user.sums
    return release.noise_multiplier, release.sample_rate, release.steps


@lru_cache(maxsize=1024)
def _by_prv(history: History, delta: float) -> float:
    """Opacus' figure for one history; users with the same releases share it."""
    # The independent witness: the only place but the trainer that asks Opacus anything.
    from opacus.accountants import PRVAccountant

    witness = PRVAccountant()
    witness.history = list(history)
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        # log(1 - rate) is minus infinity at rate 1, which is what the formula wants there.
        # Opacus also tells, of a bound that only sizes its grid, that it could be tighter.
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        return float(witness.get_epsilon(delta, eps_error=_PRV_ERROR))


@lru_cache(maxsize=1024)
def _by_renyi(history: History, delta: float) -> float:
    """Opacus' figure where all that is known of discrete noise is its Renyi divergence."""
    from opacus.accountants import RDPAccountant

    witness = RDPAccountant()
    witness.history = list(history)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        return float(witness.get_epsilon(delta))


def _span(values: list[float]) -> str:
    """Smallest and largest."""
    return f"{min(values):.4f} to {max(values):.4f}"


def _finite(value: float) -> float | None:
    """What JSON can hold."""
    return value if math.isfinite(value) else None
