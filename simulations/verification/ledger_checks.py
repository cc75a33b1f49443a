"""Comparison of the accounts in ``privacy.json`` with their ledgers: every difference is named.

What an account should list is written down independently of ``privacy_record``, which wrote the
accounts: a fault there would otherwise agree with itself.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple, TypeGuard

from sottovoce.server.aggregation.private_sums import LEDGER_OWNER
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import Mechanism, PrivacyUnit, Release, ReleaseKind
from sottovoce.shared.privacy.target import MAX_TUNING_RUNS
from sottovoce.simulations.results.schema import Json, Table

PLD_TOLERANCE = 1e-6
"""Largest difference of the same accountant from itself: ``privacy.json`` has ten digits."""

PRV_TOLERANCE = 0.05
"""Largest difference of two accountants; each errs on the high side by its discretisation."""

_CONSEQUENCES: Final[Mapping[str, str]] = {
    "kind": "readers see another release than was booked",
    "mechanism": "readers see a protection that was not booked",
    "round": "readers see another round than was booked",
    "noise_multiplier": "readers see noise that was not booked",
    "sample_rate": "readers see a sampling that was not booked",
    "steps": "readers see more or fewer steps than were booked",
    "clip_norm": "readers see a bound that was not booked",
    "noised_by": "readers trust somebody else than who was booked for the noise",
    "bands": "readers see noise correlated otherwise than was booked",
    "spacing": "readers see a separation of rounds that was not booked",
    "devices": "readers see noise of more or fewer devices than was booked",
    "colluders": "readers see another coalition than was booked against",
}
"""Every key of a listed release but its epsilon, and the consequence of a difference."""


class TuningCharge(NamedTuple):
    """Charge of one unit for the choice of settings.

    Attributes:
        runs: How many runs are charged for.
        epsilon: What all of them cost together.
        selection: What the best of a random number of runs costs, as many on average; None where
            that is not stated.
    """

    runs: int
    epsilon: float | None
    selection: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountedLedger:
    """A ledger, and the account of it in ``privacy.json``.

    Attributes:
        path: The ledger's file.
        fold: Name of the fold.
        client: Owner of the ledger.
        account: The account in ``privacy.json``.
        unit: Unit of privacy of the account's epsilon.
        guarantee: The guarantee to that unit.
        user_guarantee: The guarantee to a user besides; None where the account is the user's, or
            there is none.
        run_suffix: Last part of the name of the run that the ledger's releases are booked for.
        tuning: Number of runs that are charged for, their epsilon in all, and that of the best
            of a random number; None where the account's unit is charged for one.
        is_private: Whether anything is promised at all.
    """

    path: Path
    fold: str
    client: str
    account: Table
    unit: PrivacyUnit
    guarantee: Table
    user_guarantee: Table | None
    run_suffix: str
    tuning: TuningCharge | None
    is_private: bool


def ledger_mismatches(
    ledger: Ledger, accounted: AccountedLedger, pld: float, prv: float
) -> Iterator[str]:
    """List the mismatches between a ledger and its account, in words with both numbers.

    Args:
        ledger: A ledger whose chain was verified.
        accounted: The account of the ledger.
        pld: Its epsilon by dp-accounting, at the account's delta.
        prv: Its epsilon by Opacus, likewise.
    """
    account = accounted.account
    if ledger.head_hash != account["ledger_sha256"]:
        yield (
            f"the ledger's head is {ledger.head_hash[:12]}, privacy.json has "
            f"{str(account['ledger_sha256'])[:12]}: it is not the ledger that was accounted for"
        )
    stray = next(
        (one.run for one in ledger.releases if one.run.split("/")[-1] != accounted.run_suffix), None
    )
    if stray is not None:
        yield (
            f"the ledger books a release of {stray}, not of {accounted.run_suffix}: it is another "
            "fold's, and what was released here is unaccounted for"
        )
    if len(account["releases"]) != len(ledger.releases):
        yield (
            f"the ledger holds {len(ledger.releases)} releases, privacy.json lists "
            f"{len(account['releases'])}: some were left out, or put in"
        )
    # Lists of different lengths have no lines to pair.
    else:
        yield from _check_releases(ledger.releases, accounted)
    rounds = sum(release.kind is ReleaseKind.GRADIENT for release in ledger.releases)
    if account["rounds"] != rounds:
        yield f"privacy.json says rounds {account['rounds']}, the ledger books {rounds} gradients"
    yield from _check_budget(account, accounted.guarantee)
    if accounted.is_private:
        yield from _check_composition(ledger, accounted)
        yield from _check_epsilon(account, accounted.guarantee, pld, prv)
        yield from _check_guarantees(ledger.releases, accounted)
    else:
        yield from _check_unprotected(ledger, account)


def _check_composition(ledger: Ledger, accounted: AccountedLedger) -> Iterator[str]:
    """An account's rule is the promise's, its order the one that the chained lines begin with."""
    account, promised = accounted.account, accounted.guarantee.get("composition")
    # A server's sums are of a plan fixed in advance, whatever its devices count by.
    if accounted.client != LEDGER_OWNER and account.get("composition") != promised:
        yield (
            f"privacy.json adds this account up by {account.get('composition')}, and promises by "
            f"{promised}: another theorem than readers are told"
        )
    booked = (ledger.first_orders or {}).get(accounted.unit)
    if not is_close(account.get("renyi_order"), booked):
        yield (
            f"privacy.json says renyi_order {account.get('renyi_order')}, the ledger's first line "
            f"has {booked}: an order that is chosen after an answer is no privacy filter"
        )


def _check_unprotected(ledger: Ledger, account: Table) -> Iterator[str]:
    """Where nothing was promised, nothing may look protected."""
    if account["epsilon"] is not None:
        yield f"privacy.json claims epsilon {account['epsilon']} in a run that protects nothing"
    if all(release.mechanism is not Mechanism.NONE for release in ledger.releases):
        yield "the ledger books no unprotected release in a run that protects nothing"


def _check_epsilon(account: Table, terms: Table, pld: float, prv: float) -> Iterator[str]:
    """Claims against what both accountants say; written so that NaN and infinity disagree."""
    claimed, promised = account["epsilon"], terms["epsilon"]
    by, by_opacus = ("PLD", "PRV") if account.get("renyi_order") is None else ("RDP", "Opacus' RDP")
    # "not <=" throughout: NaN and infinity must not pass.
    if claimed is None or not abs(claimed - pld) <= PLD_TOLERANCE:
        yield f"privacy.json says epsilon {claimed}, the ledger costs {pld:.6f} by {by}"
    if claimed is None or not abs(claimed - prv) <= PRV_TOLERANCE:
        yield f"privacy.json says epsilon {claimed}, the ledger costs {prv:.4f} by {by_opacus}"
    if promised is None or not pld <= promised + PLD_TOLERANCE:
        yield f"epsilon {pld:.6f} was spent where {promised} was promised"
    if terms["delta"] is None or not account["delta"] <= terms["delta"]:
        yield f"delta {account['delta']} was spent where {terms['delta']} was promised"
    last = account["releases"][-1]["epsilon_after"] if account["releases"] else 0.0
    # Epsilon after a release may be coarser, so larger, but never below the exact cost.
    if last is None or not last >= pld - PLD_TOLERANCE:
        yield (
            f"privacy.json lists epsilon_after {last} for the last release, the ledger costs "
            f"{pld:.6f}: readers see that less was spent"
        )


def _check_budget(account: Table, terms: Table) -> Iterator[str]:
    """An account's budget is the promise; what remains is budget less epsilon."""
    budget, spent = account["budget"], account["epsilon"]
    names = ("epsilon",) if terms["delta"] is None else ("epsilon", "delta")
    for name in names:  # where nothing is promised, a delta says only at what was counted
        if budget[name] != terms[name]:
            yield (
                f"privacy.json says budget.{name} {budget[name]}, it promises {terms[name]}: "
                "the account is compared with another promise"
            )
    left = None if None in (budget["epsilon"], spent) else max(budget["epsilon"] - spent, 0.0)
    remaining = account["remaining"]
    if (remaining is None) != (left is None) or (
        left is not None and not abs(remaining - left) <= PLD_TOLERANCE
    ):
        yield (
            f"privacy.json says remaining {remaining}, its own budget less its own "
            f"epsilon leave {left}: readers see another remainder than there is"
        )


def _check_releases(releases: tuple[Release, ...], accounted: AccountedLedger) -> Iterator[str]:
    """Every listed release against its line; the first of each kind of difference is shown."""
    lines = [_expected_line(release, accounted.unit) for release in releases]
    # One difference in many lines has one cause: the first is shown, the others are counted.
    for key, meaning in _CONSEQUENCES.items():
        wrong = [
            (index, listed.get(key), line[key])
            for index, (listed, line) in enumerate(
                zip(accounted.account["releases"], lines, strict=True)
            )
            if not is_close(listed.get(key), line[key])
        ]
        if wrong:
            index, there, here = wrong[0]
            more = f", and {len(wrong) - 1} more releases differ in it" if wrong[1:] else ""
            yield (
                f"privacy.json lists {key} {there} for release {index + 1} "
                f"({releases[index].kind.value}, round {releases[index].round}), the ledger's line "
                f"has {here}{more}: {meaning}"
            )


def _expected_line(release: Release, unit: PrivacyUnit) -> Json:
    """What an account in this unit must list of a release."""
    line: Json = {
        "kind": release.kind.value,
        "mechanism": release.mechanism.value,
        "round": release.round,
    }
    user = release.mechanism_for(unit)
    if user is None:
        return line | {
            "noise_multiplier": release.noise_multiplier,
            "sample_rate": release.sample_rate,
            "steps": release.steps,
            "clip_norm": release.sensitivity,
            "noised_by": "shares" if release.shares else None,
            "bands": None,
            "spacing": None,
            "devices": release.shares.devices if release.shares else None,
            "colluders": release.shares.colluders if release.shares else None,
        }
    return line | {
        "noise_multiplier": user.noise_multiplier,
        "sample_rate": user.sample_rate,
        "steps": user.sums,
        "clip_norm": user.clip_norm,
        "noised_by": user.noised_by.value,
        # A release without bands has neither; JSON has null there.
        "bands": user.bands.band_count if user.bands else None,
        "spacing": user.bands.min_separation if user.bands else None,
        "devices": None,
        "colluders": None,
    }


def _check_guarantees(releases: tuple[Release, ...], accounted: AccountedLedger) -> Iterator[str]:
    """A round's noise and bound are those of the promise; the user's promise holds as well."""
    rounds = [
        _expected_line(one, accounted.unit) for one in releases if one.kind is ReleaseKind.GRADIENT
    ]
    for key in ("noise_multiplier", "clip_norm"):
        other = next(
            (line[key] for line in rounds if not is_close(accounted.guarantee[key], line[key])),
            None,
        )
        if other is not None:
            yield (
                f"privacy.json promises {key} {accounted.guarantee[key]} in a round, the ledger "
                f"books {other}: {_CONSEQUENCES[key]}"
            )
    participation = accounted.guarantee.get("participation") or {}
    columns = {one.user.bands.coefficients for one in releases if one.user and one.user.bands}
    for column in columns:
        if not is_close(participation.get("coefficients"), list(column)):
            yield (
                "privacy.json says that noise is correlated by "
                f"{participation.get('coefficients')}, the ledger books {list(column)}: "
                f"{_CONSEQUENCES['bands']}"
            )
    if accounted.tuning:
        delta = accounted.guarantee["delta"]
        yield from _check_tuning(releases, accounted.unit, delta, accounted.tuning)
    user = accounted.user_guarantee
    if user is None or user["epsilon"] is None or user["delta"] is None:
        return
    # Both guarantees are checked: a ledger may keep one and break the other.
    try:
        rule = accounting.rule_from_record(user)
    except SettingError as error:
        yield f"privacy.json's promise to the user: {error}"
        return
    spent = rule.compute_epsilon(releases, user["delta"], unit=PrivacyUnit.USER)
    if not spent <= user["epsilon"] + PLD_TOLERANCE:
        yield (
            f"the ledger costs the user epsilon {spent:.6f} where {user['epsilon']} was promised: "
            "what hides the utterances does not hide the user as it says"
        )


def _check_tuning(
    releases: tuple[Release, ...],
    unit: PrivacyUnit,
    delta: float | None,
    charge: TuningCharge,
) -> Iterator[str]:
    """What all runs that settings were chosen by cost is no less than so many of this ledger."""
    if delta is None:
        return
    runs, claimed = charge.runs, charge.epsilon
    if not runs <= MAX_TUNING_RUNS:  # nobody can have asked for more, and each is composed
        yield f"privacy.json says {runs} tuning runs, at most {MAX_TUNING_RUNS:,} can be charged"
        return
    # Runs under different names, or the accountant would take them for one run's rounds.
    every = [replace(one, run=f"{one.run}/{n}") for n in range(runs) for one in releases]
    spent = accounting.compute_epsilon(every, delta, unit=unit)
    if claimed is None or not claimed >= spent - PLD_TOLERANCE:
        yield (
            f"privacy.json says that {runs} runs cost one {unit.value} epsilon {claimed}, so many "
            f"of this ledger cost {spent:.6f}: choosing settings is charged too little"
        )
    if charge.selection is None:
        return
    stopping = accounting.RandomStopping(mean_runs=runs)
    best = accounting.compute_selection_epsilon(releases, delta, stopping, unit=unit)
    if not charge.selection >= best - PLD_TOLERANCE:
        yield (
            f"privacy.json says that the best of a random number of runs costs one {unit.value} "
            f"epsilon {charge.selection}, by this ledger it is {best:.6f}: choosing settings is "
            "charged too little"
        )


def is_close(one: object, other: object) -> bool:
    """Compare two values of JSON, up to digits that are not stored.

    NaN is close to nothing, and a truth value is no number.

    Example:
        >>> is_close(1.0, 1.0 + 1e-9), is_close(1, True), is_close([1, "a"], [1, "a"])
        (True, False, True)
    """
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_close, one, other))
    if _number(one) and _number(other):
        return math.isclose(
            one, other, rel_tol=PLD_TOLERANCE, abs_tol=PLD_TOLERANCE * PLD_TOLERANCE
        )
    return type(one) is type(other) and one == other


def _number(value: object) -> TypeGuard[float]:
    """A number, and not a truth value."""
    # bool is a subclass of int.
    return isinstance(value, int | float) and not isinstance(value, bool)
