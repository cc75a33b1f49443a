"""Accounts of ``privacy.json`` beside their ledgers: whatever is not alike is named.

What an account should list is written down anew here, not asked of ``statement``, which wrote it: a
fault there would otherwise agree with itself.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeGuard

from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import Kind, Mechanism, Release, Unit
from sottovoce.simulations.runfile import Json

SAME = 1e-6
"""Most that the same accountant may differ from itself: ``privacy.json`` keeps ten digits."""

CLOSE = 0.05
"""Most that two accountants may differ; each errs on the high side by its own discretisation."""

_MEANING: Final[Mapping[str, str]] = {
    "kind": "readers are told of another release than was booked",
    "mechanism": "readers are told of a protection that was not booked",
    "round": "readers are told of another round than was booked",
    "noise_multiplier": "readers are told of noise that was not booked",
    "sample_rate": "readers are told of a sampling that was not booked",
    "steps": "readers are told of more or fewer steps than were booked",
    "clip_norm": "readers are told of a bound that was not booked",
    "noised_by": "readers are told to trust somebody else than who was booked for the noise",
    "bands": "readers are told of noise that hangs together otherwise than was booked",
    "spacing": "readers are told of turns that were not booked",
}
"""Every key of a listed release but its price, and what it means where it is not the ledger's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A ledger, and what ``privacy.json`` says of it.

    Attributes:
        path: The ledger's file.
        fold: Which world.
        client: Whose.
        account: What ``privacy.json`` lists.
        unit: Whose presence the account prices.
        terms: What that unit is promised.
        user: What a user is promised besides; None where the account is the user's, or nobody is.
        run: How the name ends of the run that the ledger's releases are booked for.
        tuned: How many runs are charged for, and what they are said to cost together; None where
            the account's unit is charged for one.
        protects: Whether anything is promised at all.
    """

    path: Path
    fold: str
    client: str
    account: Json
    unit: Unit
    terms: Json
    user: Json | None
    run: str
    tuned: tuple[int, float | None] | None
    protects: bool


def faults(ledger: Ledger, kept: Kept, pld: float, prv: float) -> Iterator[str]:
    """What does not agree, in words with both numbers.

    Args:
        ledger: Its chain holds.
        kept: What is said of it.
        pld: What it costs by dp-accounting, at the account's delta.
        prv: By Opacus, likewise.
    """
    account = kept.account
    if ledger.head != account["ledger_sha256"]:
        yield (
            f"the ledger's head is {ledger.head[:12]}, privacy.json has "
            f"{str(account['ledger_sha256'])[:12]}: it is not the ledger that was priced"
        )
    stray = next((one.run for one in ledger.releases if one.run.split("/")[-1] != kept.run), None)
    if stray is not None:
        yield (
            f"the ledger books a release of {stray}, not of {kept.run}: it is another world's, and "
            "what was let out here is unaccounted for"
        )
    if len(account["releases"]) != len(ledger.releases):
        yield (
            f"the ledger holds {len(ledger.releases)} releases, privacy.json lists "
            f"{len(account['releases'])}: some were left out, or put in"
        )
    else:
        yield from _listed(ledger.releases, kept)
    rounds = sum(release.kind is Kind.GRADIENT for release in ledger.releases)
    if account["rounds"] != rounds:
        yield f"privacy.json says rounds {account['rounds']}, the ledger books {rounds} gradients"
    yield from _allowed(account, kept.terms)
    if kept.protects:
        yield from _priced(account, kept.terms, pld, prv)
        yield from _as_promised(ledger.releases, kept)
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
    last = account["releases"][-1]["epsilon_after"] if account["releases"] else 0.0
    if last is None or not last >= pld - SAME:
        yield (
            f"privacy.json lists epsilon_after {last} for the last release, the ledger costs "
            f"{pld:.6f}: readers are told that less was spent"
        )


def _allowed(account: Json, terms: Json) -> Iterator[str]:
    """The budget that an account tells of is the promise; what is left is their difference."""
    budget, spent = account["budget"], account["epsilon"]
    names = ("epsilon",) if terms["delta"] is None else ("epsilon", "delta")
    for name in names:  # where nothing is promised, a delta says only at what was counted
        if budget[name] != terms[name]:
            yield (
                f"privacy.json says budget.{name} {budget[name]}, it promises {terms[name]}: "
                "the account is held against another promise"
            )
    left = None if None in (budget["epsilon"], spent) else max(budget["epsilon"] - spent, 0.0)
    told = account["remaining"]
    if (told is None) != (left is None) or (left is not None and not abs(told - left) <= SAME):
        yield (
            f"privacy.json says remaining {told}, its own budget less its own "
            f"epsilon leave {left}: readers are told of another rest than there is"
        )


def _listed(releases: tuple[Release, ...], kept: Kept) -> Iterator[str]:
    """Every listed release against its line; the first of each kind of difference is shown."""
    lines = [_line(release, kept.unit) for release in releases]
    for key, meaning in _MEANING.items():
        wrong = [
            (place, listed.get(key), line[key])
            for place, (listed, line) in enumerate(
                zip(kept.account["releases"], lines, strict=True)
            )
            if not alike(listed.get(key), line[key])
        ]
        if wrong:
            place, there, here = wrong[0]
            more = f", and {len(wrong) - 1} more releases differ in it" if wrong[1:] else ""
            yield (
                f"privacy.json lists {key} {there} for release {place + 1} "
                f"({releases[place].kind.value}, round {releases[place].round}), the ledger's line "
                f"has {here}{more}: {meaning}"
            )


def _line(release: Release, unit: Unit) -> Json:
    """What an account in this unit must list of a release."""
    line: Json = {
        "kind": release.kind.value,
        "mechanism": release.mechanism.value,
        "round": release.round,
    }
    user = release.user
    if unit is Unit.UTTERANCE or user is None:
        return line | {
            "noise_multiplier": release.noise_multiplier,
            "sample_rate": release.sample_rate,
            "steps": release.steps,
            "clip_norm": release.sensitivity,
            "noised_by": None,
            "bands": None,
            "spacing": None,
        }
    return line | {
        "noise_multiplier": user.noise_multiplier,
        "sample_rate": user.sample_rate,
        "steps": user.sums,
        "clip_norm": user.clip_norm,
        "noised_by": user.noised_by.value,
        "bands": user.bands.count if user.bands else None,
        "spacing": user.bands.spacing if user.bands else None,
    }


def _as_promised(releases: tuple[Release, ...], kept: Kept) -> Iterator[str]:
    """A round's noise and bound are those of the promise; the user's promise holds as well."""
    rounds = [_line(one, kept.unit) for one in releases if one.kind is Kind.GRADIENT]
    for key in ("noise_multiplier", "clip_norm"):
        other = next((line[key] for line in rounds if not alike(kept.terms[key], line[key])), None)
        if other is not None:
            yield (
                f"privacy.json promises {key} {kept.terms[key]} in a round, the ledger books "
                f"{other}: {_MEANING[key]}"
            )
    turns = kept.terms.get("participation") or {}
    columns = {one.user.bands.coefficients for one in releases if one.user and one.user.bands}
    for column in columns:
        if not alike(turns.get("coefficients"), list(column)):
            yield (
                f"privacy.json says that noise hangs together by {turns.get('coefficients')}, the "
                f"ledger books {list(column)}: {_MEANING['bands']}"
            )
    if kept.tuned:
        yield from _tuned(releases, kept.unit, kept.terms["delta"], *kept.tuned)
    if kept.user is None or kept.user["epsilon"] is None or kept.user["delta"] is None:
        return
    spent = accountant.epsilon(releases, kept.user["delta"], unit=Unit.USER)
    if not spent <= kept.user["epsilon"] + SAME:
        yield (
            f"the ledger costs the user epsilon {spent:.6f} where {kept.user['epsilon']} was "
            "promised: what hides the utterances does not hide the user as told"
        )


def _tuned(
    releases: tuple[Release, ...], unit: Unit, delta: float | None, runs: int, told: float | None
) -> Iterator[str]:
    """What all runs that settings were chosen by cost is no less than so many of this ledger."""
    if delta is None:
        return
    every = [replace(one, run=f"{one.run}/{n}") for n in range(runs) for one in releases]
    spent = accountant.epsilon(every, delta, unit=unit)
    if told is None or not told >= spent - SAME:
        yield (
            f"privacy.json says that {runs} runs cost one {unit.value} epsilon {told}, so many of "
            f"this ledger cost {spent:.6f}: choosing settings is charged too little"
        )


def alike(one: object, other: object) -> bool:
    """Whether two values of JSON are the same, but for digits that it does not keep.

    NaN is like nothing; a truth value is no number.
    """
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if _number(one) and _number(other):
        return math.isclose(one, other, rel_tol=SAME, abs_tol=SAME * SAME)
    return type(one) is type(other) and one == other


def _number(value: object) -> TypeGuard[float]:
    """A number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)
