"""A privacy ledger: every release, booked before it leaves, for the whole life of its owner.

Each device keeps one; a server that noises sums keeps another for what it releases.

One JSON object a line; each names the SHA-256 of the line before it, so that a line that was
changed, dropped or reordered shows; the first names its owner's genesis, so that another's ledger
shows; and an anchor kept elsewhere shows lines dropped at the end (see ``hash_chain``). A line is
written in one call and synced to disk before the release is computed. A torn last line (power cut)
counts as spent: as the costliest release the ledger knows, or as unprotected when it knows none.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from sottovoce.shared import atomic_files
from sottovoce.shared.errors import (
    BudgetSpent,
    FileChangedError,
    LedgerError,
    SettingError,
    StorageError,
)
from sottovoce.shared.privacy import accounting, hash_chain
from sottovoce.shared.privacy.accounting import CompositionRule
from sottovoce.shared.privacy.hash_chain import GENESIS, Anchor, AnchorStore
from sottovoce.shared.privacy.release import Mechanism, PrivacyUnit, Release, ReleaseKind

_MAX_EPSILON: Final = 1e9
"""No promise at all long before; numbers of files end here."""

_MAX_LEDGER_BYTES: Final = 2**28
"""Some half a million releases; a longer file is no ledger, and would fill the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyBudget:
    """Limits on the privacy loss of a device's life, and of one run.

    Attributes:
        epsilon: Most privacy loss, above 0 and finite; no budget at all lets everything pass, which
            only an owner who wants no privacy would choose.
        delta: In (0, 1).
        unit: Whose presence it hides.
        per_run: Most privacy loss that the releases of any one run may come to together, above 0
            and finite; None where a single run may spend all.
        renyi_order: The filter by which releases are added up, valid whatever a server asks next:
            the order of a Renyi filter, which amplifies sampled steps, or None for the Gaussian
            filter, which charges them as if they were not sampled. Its owner fixes it before the
            first release: see :meth:`Ledger.check_budget`.
    """

    epsilon: float
    delta: float
    unit: PrivacyUnit = PrivacyUnit.UTTERANCE
    per_run: float | None = None
    renyi_order: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= _MAX_EPSILON:
            raise LedgerError(
                f"the budget's epsilon is {self.epsilon}; it must be finite and above 0, "
                f"at most {_MAX_EPSILON:g}"
            )
        if not accounting.MIN_DELTA <= self.delta < 1:
            raise LedgerError(
                f"the budget's delta is {self.delta}; it must be in (0, 1), "
                f"at least {accounting.MIN_DELTA:g}"
            )
        if self.per_run is not None and not 0 < self.per_run <= _MAX_EPSILON:
            raise LedgerError(
                f"the budget's per_run is {self.per_run}; it must be finite and above 0, at most "
                f"{_MAX_EPSILON:g}, or left "
                "out where a single run may spend all"
            )
        try:
            accounting.filter_of_order(self.renyi_order)
        except SettingError as error:
            raise LedgerError(f"the budget's {error}") from error

    @property
    def filter(self) -> CompositionRule:
        """The privacy filter that releases are added up by."""
        return accounting.filter_of_order(self.renyi_order)

    def to_dict(self) -> dict[str, Any]:
        """JSON's view; without an order as it always was."""
        record = asdict(self)
        if self.renyi_order is None:
            del record["renyi_order"]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "PrivacyBudget":
        """Read it back; the caller turns what is raised into its own error."""
        return cls(**dict(record) | {"unit": PrivacyUnit(record["unit"])})


_DEVICE_WAY_OUT = (
    "Put the newest copy of the ledger back. Without one, what this device spent is "
    "unknown: `sottovoce device retire FOLDER` lets it only receive models"
)


class Ledger:
    """An append-only, hash-chained file of releases.

    Args:
        path: The file; made at the first release, or by :meth:`create`.
        owner: Whose it is. Without one any owner's is read, which is enough to verify it.
        anchor_store: Keeps its anchor. Without one, lines dropped at the end do not show here.
        read_only: Whether nothing may be written: a torn line is charged in memory alone.
        way_out: What to do about a ledger that disagrees with its anchor.
        plan_is_fixed: Whether all of its releases are of one plan that was fixed before the first,
            as a server's of its own job: then they compose as such while they are of one run.

    Raises:
        LedgerError: The chain is broken, the ledger is another owner's, or it is behind its anchor
            or disagrees with it.
    """

    def __init__(
        self,
        path: Path,
        *,
        owner: str | None = None,
        anchor_store: AnchorStore | None = None,
        read_only: bool = False,
        way_out: str = _DEVICE_WAY_OUT,
        plan_is_fixed: bool = False,
    ) -> None:
        self.path = path
        self._way_out, self._plan_is_fixed = way_out, plan_is_fixed
        self._first_orders: Mapping[PrivacyUnit, float] | None = None
        self._owner, self._anchor_store, self._read_only = owner, anchor_store, read_only
        self._releases: list[Release] = []
        self._names: dict[str, None] = {}  # in the order of booking
        self._has_opening = False
        # The head after each release; before the first one, where the chain begins.
        self._heads = [GENESIS if owner is None else hash_chain.genesis_hash(owner)]
        # Read before the file: were it the other way round, a booking in between would look like
        # a ledger that lost lines.
        self._anchor = anchor_store.read() if anchor_store else None
        data = self._load()
        self._known_size = len(data)  # lines that another writer added are never built on
        whole, torn = self._read_lines(data)
        # Before the torn line is charged: a ledger that is refused must not be written to.
        self._check_anchor()
        if torn:
            self._charge_torn(whole, torn)
        self.sync_anchor()

    @classmethod
    def create(cls, path: Path, owner: str) -> None:
        """Write the opening line of a new ledger, which binds it to its owner by random bytes.

        Raises:
            LedgerError: There is a ledger already, or the disk refuses.
        """
        if path.exists():
            raise LedgerError(f"{path} exists already; a ledger is continued, never begun again")
        try:
            atomic_files.append_to_file(
                path, _encode_line(hash_chain.opening_record(owner)), expected_size=0
            )
        except StorageError as error:
            raise _write_error(path, error) from error

    @classmethod
    def replace_with_spent(
        cls, path: Path, owner: str, anchor_store: AnchorStore, *, with_opening: bool
    ) -> Path | None:
        """Replace a refused ledger by a spent one, from which no budget can pay.

        Args:
            path: The ledger that is refused, if it is there still.
            owner: Whose the new one is.
            anchor_store: Keeps its anchor, which is written over.
            with_opening: Whether it gets an opening line of random bytes, as a real device's does.

        Returns:
            Where the refused ledger was set aside, None where there was none.

        Guarantees:
            - The new ledger holds one line from its first moment on: a torn release without any
              protection, of infinite epsilon.
            - After a crash in between, the old ledger, which is refused, lies there, or the new one
              beside an anchor that disagrees with it, which is refused too, or agrees.

        Raises:
            LedgerError: The disk refuses.
            PrivacyError: The anchor cannot be written.
        """
        start = _encode_line(hash_chain.opening_record(owner)) if with_opening else b""
        head = hash_chain.sha256_hex(start) if with_opening else hash_chain.genesis_hash(owner)
        record = {
            "n": 0,
            "prev": head,
            "id": "retired",
            "release": find_costliest_release(()).to_dict(),
        }
        line = _encode_line(record)
        refused = path.read_bytes() if path.exists() else None
        aside = None if refused is None else _refused_path(path)
        try:
            if refused is not None and aside is not None:
                atomic_files.append_to_file(aside, refused)
            # Refused where another program booked meanwhile: what it booked is not set aside yet.
            size = None if refused is None else len(refused)
            atomic_files.replace_file(path, start + line, secret=True, expected_size=size)
        except StorageError as error:
            raise _write_error(path, error) from error
        anchor_store.write(Anchor(releases=1, head=hash_chain.sha256_hex(line)))
        return aside

    @property
    def releases(self) -> tuple[Release, ...]:
        """All releases, first to last."""
        return tuple(self._releases)

    @property
    def raw_bytes(self) -> bytes:
        """All that is written, as it is written."""
        return self._load()

    @property
    def head_hash(self) -> str:
        """SHA-256 of the last line: it stands for the whole ledger, and whose it is."""
        return self._heads[-1]

    @property
    def anchor(self) -> Anchor | None:
        """How far its anchor knows this ledger to have come; None where there is none."""
        return self._anchor

    @property
    def first_orders(self) -> Mapping[PrivacyUnit, float] | None:
        """Orders of the Renyi filters under which this life began, of units that have one.

        None where nothing was booked yet. Torn lines do not begin a life: nobody knows their order.
        """
        return self._first_orders

    @property
    def has_opening(self) -> bool:
        """Whether it begins with random bytes, as a real device's does and no simulated one's."""
        return self._has_opening

    def is_booked(self, name: str) -> bool:
        """Whether a release of this name was booked."""
        return name in self._names

    @property
    def release_names(self) -> tuple[str, ...]:
        """Names of all releases, first to last; a torn line's is its own."""
        return tuple(self._names)

    def epsilon_spent(self, delta: float, unit: PrivacyUnit = PrivacyUnit.UTTERANCE) -> float:
        """Privacy loss of all releases, if they were fixed in advance, at ``delta``."""
        return accounting.compute_epsilon(self._releases, delta, unit=unit)

    def charged_epsilon(self, budget: PrivacyBudget) -> float:
        """Privacy loss that a budget is charged, the most of all filters that apply."""
        return _charge(self._rules(budget, self._releases), self._releases, budget)

    def charged_epsilon_of(self, run: str, budget: PrivacyBudget) -> float:
        """Privacy loss that a budget is charged for one run alone, torn releases and all."""
        return _charge(self._rules(budget, self._releases), self.releases_of(run), budget)

    def projected_epsilon(
        self, releases: Iterable[Release], delta: float, unit: PrivacyUnit = PrivacyUnit.UTTERANCE
    ) -> float:
        """Privacy loss once these releases are booked too; nothing is booked."""
        return accounting.compute_epsilon([*self._releases, *releases], delta, unit=unit)

    def releases_of(self, run: str) -> tuple[Release, ...]:
        """Releases attributed to one run: its own, and every torn release."""
        return tuple(
            one for one in self._releases if one.run == run or one.kind is ReleaseKind.TORN
        )

    def check_budget(self, releases: Sequence[Release], budgets: Sequence[PrivacyBudget]) -> None:
        """Refuse releases that would pass one of the budgets; no budgets let everything pass.

        What costs nothing may leave whatever was spent before.

        Guarantees:
            - Whoever chooses each release after seeing all answers, the releases that pass cost
              each budget's unit at most its epsilon: they are added up by a valid filter.
            - The filter of the first release counts for the whole life. Under a budget of another
              order releases must pass both, for an order that is chosen after an answer is no
              filter.

        Raises:
            BudgetSpent: They would, over the whole life or in their run; nothing was booked.
        """
        releases = [one for one in releases if one.mechanism is not Mechanism.ENCRYPTION]
        for budget in budgets if releases else ():
            rules = self._rules(budget, [*self._releases, *releases])
            require = partial(_require_within, budget, rules)
            require(budget.epsilon, self._releases, releases, "the budget")
            if budget.per_run is None:
                continue
            for run in {release.run for release in releases}:
                new = [release for release in releases if release.run == run]
                whose = f"the allowance of the run {run[:24]!r}"
                require(budget.per_run, self.releases_of(run), new, whose)

    def _rules(
        self, budget: PrivacyBudget, releases: Sequence[Release]
    ) -> tuple[CompositionRule, ...]:
        """The rules that all have to hold for these releases."""
        if self._plan_is_fixed and len({release.run for release in releases}) <= 1:
            return (accounting.FIXED_PLAN,)
        orders = {budget.renyi_order: None}
        if self._first_orders is not None:
            orders[self._first_orders.get(budget.unit)] = None
        return tuple(map(accounting.filter_of_order, orders))

    def book_release(self, name: str, release: Release, budgets: Sequence[PrivacyBudget]) -> None:
        """Write a release down, before anything of it exists.

        Args:
            name: Unique name of the release; the same name is never booked twice.
            release: What is about to leave.
            budgets: What may be spent.

        Guarantees:
            - When this returns, the record is on disk and synced, and the anchor was written.
            - When this raises, nothing may leave. Nothing was booked either, but where it was the
              anchor that could not be written; :meth:`sync_anchor` tries that again.
            - Two programs never build on the same line: the slower one is refused.

        Raises:
            BudgetSpent: The budget would be passed.
            LedgerError: The name was booked before, another program booked since this ledger was
                read, or the disk refuses.
            PrivacyError: The anchor cannot be written.
        """
        if self._read_only:
            raise LedgerError(f"{self.path} was opened to be read; open the device to book in it")
        if self.is_booked(name):
            raise LedgerError(f"the release {name!r} is booked already")
        # Another program that books after this check is found by the size of the file.
        self.check_budget([release], budgets)
        # In the chained line: a profile can be edited, and is no part of a ledger that is copied.
        orders = {one.unit: one.renyi_order for one in budgets if one.renyi_order is not None}
        self._append(name, release, orders)
        self.sync_anchor()

    def sync_anchor(self) -> None:
        """Bring the anchor up to the last line; nothing is written where it is there already.

        Raises:
            PrivacyError: It cannot be written; nothing may leave until it can.
        """
        anchor = Anchor(releases=len(self._releases), head=self.head_hash)
        if self._anchor_store is not None and not self._read_only and anchor != self._anchor:
            self._anchor_store.write(anchor)
            self._anchor = anchor

    def _append(self, name: str, release: Release, orders: Mapping[PrivacyUnit, float]) -> None:
        """Write one line, synced."""
        line = self._next_line(name, release, orders)
        try:
            self._write_line(line)
        except StorageError as error:
            raise _write_error(self.path, error) from error
        self._known_size += len(line)
        self._remember(name, release, line, orders)

    def _load(self) -> bytes:
        """All that is written, whole lines and perhaps a torn one."""
        try:
            if not self.path.exists():
                return b""
            # Asked first: a pipe would never end, and what is too long would fill the memory.
            if not self.path.is_file() or self.path.stat().st_size > _MAX_LEDGER_BYTES:
                raise LedgerError(
                    f"{self.path} is no ledger: it is no regular file, or has more than "
                    f"{_MAX_LEDGER_BYTES >> 20} MiB. {self._way_out}"
                )
            return self.path.read_bytes()
        except OSError as error:
            raise LedgerError(
                f"the ledger {self.path} cannot be read ({error.strerror or error}); check its "
                "permissions: nothing leaves this device until it can be read"
            ) from error

    def _write_line(self, line: bytes) -> None:
        """Write one line behind those that are known; ``StorageError`` where the disk refuses."""
        atomic_files.append_to_file(self.path, line, expected_size=self._known_size)

    def _next_line(self, name: str, release: Release, orders: Mapping[PrivacyUnit, float]) -> bytes:
        """The line that comes next; without orders it has the keys that it always had."""
        record = {"n": len(self._releases), "prev": self.head_hash, "id": name}
        named = {"renyi_orders": {unit.value: order for unit, order in orders.items()}}
        return _encode_line(record | {"release": release.to_dict()} | (named if orders else {}))

    def _remember(
        self, name: str, release: Release, line: bytes, orders: Mapping[PrivacyUnit, float]
    ) -> None:
        """Add one line to what is in memory."""
        if self._first_orders is None and release.kind is not ReleaseKind.TORN:
            self._first_orders = dict(orders)
        self._releases.append(release)
        self._names[name] = None
        self._heads.append(hash_chain.sha256_hex(line))

    def _read_lines(self, data: bytes) -> tuple[bytes, bytes]:
        """Verify all whole lines; returns them, and what is left of a torn one."""
        *lines, torn = data.split(b"\n")
        for number, raw in enumerate(lines):
            if number or not self._read_opening(raw):
                self._read_line(number, raw)
        return data[: len(data) - len(torn)], torn

    def _read_opening(self, raw: bytes) -> bool:
        """Learn from the first line where the chain begins; whether it is an opening line.

        The first ledgers begin with zeros and name nobody; they are read and continued.
        """
        try:
            record: dict[str, Any] = json.loads(raw)
            opens = "salt" in record
            begins = record["owner"] if opens else record["prev"]
            salt = bytes.fromhex(record["salt"]) if opens else b""
            good = hash_chain.is_sha256_hex(begins)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._chain_error(0) from error
        if not good:
            raise self._chain_error(0)
        named = self._owner is not None and (opens or begins != GENESIS)
        if named and begins != hash_chain.genesis_hash(str(self._owner), salt):
            self._refuse_other_owner()
        self._heads = [hash_chain.sha256_hex(raw + b"\n") if opens else begins]
        self._has_opening = opens
        return opens

    def _read_line(self, number: int, raw: bytes) -> None:
        """Verify one line against the chain."""
        try:
            record: dict[str, Any] = json.loads(raw)
            name, release = str(record["id"]), Release.from_dict(record["release"])
            orders = _read_orders(record.get("renyi_orders", {}))
            good = record["n"] == len(self._releases) and record["prev"] == self.head_hash
        except LedgerError as error:
            # The chain can hold: whoever wrote the line can have chained it anew.
            raise LedgerError(
                f"line {number + 1} of the ledger {self.path.name} is no release: {error}. "
                f"{self._way_out}"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._chain_error(number) from error
        if not good or name in self._names:
            raise self._chain_error(number)
        self._remember(name, release, raw + b"\n", orders)

    def _check_anchor(self) -> None:
        """Refuse a ledger that lost lines, or that is not the one that was anchored.

        Lines beyond the anchor are what a crash between the two writes leaves: they count.
        """
        if self._anchor is None:
            return
        known, found = self._anchor.releases, len(self._releases)
        if found < known:
            raise LedgerError(
                f"the ledger {self.path.name} holds {found} releases, its owner has booked {known}:"
                f" lines were dropped at its end. {self._way_out}"
            )
        # At the anchor's place, not at the end: lines beyond it may have been booked since.
        if self._heads[known] != self._anchor.head:
            raise LedgerError(
                f"the ledger {self.path.name} is not the one that its owner has written: after "
                f"{known} releases its hash is {self._heads[known][:12]}, the anchor says "
                f"{self._anchor.head[:12]}. {self._way_out}"
            )

    def _chain_error(self, number: int) -> LedgerError:
        """The error of a line that breaks the chain."""
        return LedgerError(
            f"line {number + 1} of the ledger {self.path.name} breaks the chain: it was changed, "
            "dropped or reordered. Nothing leaves this device until its owner restores the ledger; "
            "where that cannot be, `sottovoce device retire FOLDER` lets it only receive models"
        )

    def _refuse_other_owner(self) -> NoReturn:
        """Refuse somebody else's ledger."""
        raise LedgerError(
            f"the ledger {self.path.name} is not that of {self._owner!r}: it was begun for somebody"
            " else. Put the user's own ledger back; nothing leaves this device until then"
        )

    def _charge_torn(self, whole: bytes, torn: bytes) -> None:
        """Set the torn bytes aside and book the costliest release they can have been."""
        orders = self._first_orders or {}
        charged = find_costliest_release(self._releases, orders)
        name = f"torn-{len(self._releases)}"
        line = self._next_line(name, charged, {})
        if not self._read_only:
            try:
                atomic_files.append_to_file(self.path.with_suffix(".torn"), torn + b"\n")
                # In one step: a crash must leave the torn line or the charge for it.
                atomic_files.replace_file(
                    self.path, whole + line, secret=True, expected_size=self._known_size
                )
            except StorageError as error:
                raise _write_error(self.path, error) from error
            self._known_size = len(whole + line)
        self._remember(name, charged, line, {})


def _require_within(
    budget: PrivacyBudget,
    rules: Sequence[CompositionRule],
    limit: float,
    before: Sequence[Release],
    new: Sequence[Release],
    whose: str,
) -> None:
    """Refuse new releases that would bring those before them over a limit, by any of the rules."""
    after, unit, delta = [*before, *new], budget.unit, budget.delta
    for rule in rules:
        quick = rule.compute_epsilon(after, delta, unit=unit, fast=True)
        # Then the exact figure, which is the published one, is within the limit too.
        if quick + accounting.MAX_DISCRETISATION_ERROR <= limit:
            continue
        # Near the limit, a finer bound before the exact figure, which composes everything anew.
        if rule is accounting.FIXED_PLAN and (
            accounting.bound_epsilon(after, delta, unit=unit) <= limit
        ):
            continue
        reached = rule.compute_epsilon(after, delta, unit=unit)
        if not reached <= limit:
            spent = rule.compute_epsilon(before, delta, unit=unit)
            counted = _filter_note(rule, after)
            raise BudgetSpent(
                f"the next release would bring epsilon from {spent:.4g} to {reached:.4g} for one "
                f"{unit.value} at delta {delta:g}; {whose} is {limit:g}{counted}. A device keeps "
                "receiving models; only its owner can raise the budget"
            )


def _filter_note(rule: CompositionRule, releases: Sequence[Release]) -> str:
    """By which filter it was counted, where that makes a difference: where steps are sampled."""
    rates = {
        rate
        for one in releases
        for rate in (one.sample_rate, one.user.sample_rate if one.user else 1.0)
    }
    return "" if rates <= {1.0} else f", counted by the {rule.name}{rule.hint}"


def _charge(
    rules: Sequence[CompositionRule], releases: Sequence[Release], budget: PrivacyBudget
) -> float:
    """The most that any of the rules charges."""
    return max(rule.compute_epsilon(releases, budget.delta, unit=budget.unit) for rule in rules)


def _read_orders(record: Mapping[str, Any]) -> dict[PrivacyUnit, float]:
    """Orders of Renyi filters in a line.

    Raises:
        TypeError, ValueError, AttributeError: They are none.
    """
    orders = {PrivacyUnit(unit): order for unit, order in record.items()}
    for order in orders.values():
        # A truth value is no number, and None would be another filter.
        if type(order) not in (int, float):
            raise TypeError(f"renyi_orders has {order!r:.20}, which is no number")
        try:
            accounting.filter_of_order(order)
        except SettingError as error:
            raise ValueError(str(error)) from error
    return {unit: float(order) for unit, order in orders.items()}


def _encode_line(record: dict[str, Any]) -> bytes:
    """A record as a line."""
    return (json.dumps(record, sort_keys=True) + "\n").encode()


def _refused_path(path: Path) -> Path:
    """A new name beside a ledger."""
    names = (path.with_name(f"{path.stem}-refused-{number}.jsonl") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _write_error(path: Path, error: StorageError) -> LedgerError:
    """What to say of a disk that refuses, or of another program that was quicker."""
    if isinstance(error, FileChangedError):
        return LedgerError(
            f"{path.name} has changed since it was read: another program books on this device. "
            "Nothing leaves; ask again once that one is done"
        )
    cause = error.__cause__
    reason = (cause.strerror if isinstance(cause, OSError) else None) or error
    return LedgerError(
        f"the ledger {path.name} cannot be written ({reason}); nothing leaves this device until it "
        "can"
    )


def find_costliest_release(
    releases: Sequence[Release], orders: Mapping[PrivacyUnit, float] | None = None
) -> Release:
    """Find what a torn line is charged as: the costliest of these releases, for either unit.

    Args:
        releases: All that was booked before the torn line.
        orders: Orders of the Renyi filters that releases are added up by; the Gaussian filter and
            composition of a fixed plan are looked at in any case.

    Returns:
        A release as costly as any of these by every rule, of the kind TORN; of infinite epsilon
        where none of them is protected. Where rules disagree which is the costliest, it is charged
        without its sampling, which is no cheaper by any.
    """
    # Ciphertext costs nothing: the torn line may have been of anything that costs.
    protected = [one for one in releases if one.mechanism is Mechanism.GAUSSIAN]
    if not protected:
        return Release(kind=ReleaseKind.TORN, mechanism=Mechanism.NONE, run="", round=0)
    orders = orders or {}
    worst = _costliest_for(PrivacyUnit.UTTERANCE, protected, orders)
    user = _costliest_for(PrivacyUnit.USER, protected, orders).user
    if worst.user and not worst.noise_multiplier:
        # The user's noise protects an utterance too: against another user's noise, or none.
        noise, bound = worst.user.noise_multiplier / 2, worst.user.clip_norm
        worst = replace(worst, noise_multiplier=noise, sensitivity=bound, sample_rate=1.0, steps=1)
    return replace(worst, kind=ReleaseKind.TORN, user=user)


def _costliest_for(
    unit: PrivacyUnit, releases: Sequence[Release], orders: Mapping[PrivacyUnit, float]
) -> Release:
    """The release that costs one unit most by every rule."""
    rules = {accounting.FIXED_PLAN, accounting.GAUSSIAN_FILTER}
    rules.add(accounting.filter_of_order(orders.get(unit)))

    def cost(rule: CompositionRule, release: Release) -> float:
        # Only the order counts; any delta of the usual size serves.
        return rule.compute_epsilon([release], 1e-5, unit=unit, fast=True)

    whole = max(releases, key=partial(cost, accounting.GAUSSIAN_FILTER))
    if all(max(releases, key=partial(cost, rule)) == whole for rule in rules):
        return whole
    user = replace(whole.user, sample_rate=1.0) if whole.user else None
    return replace(whole, sample_rate=1.0, user=user)
