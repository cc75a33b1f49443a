"""Recomputation of every epsilon of a run from its ledgers, by two independent accountants.

This is an auditor's view: no claim of the run is taken for granted. The ledgers' chains are
verified, and each epsilon computed by dp-accounting's privacy-loss distributions, as the devices
did, and by Opacus (``second_accountant``), which shares no code with it. Each account in
``privacy.json`` is compared with its ledger line by line (``ledger_checks``), and the run's files
with each other, so that nobody is left out and no promise changed (``consistency_checks``).
Nothing in the run folder is changed.
"""

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sottovoce.server.aggregation.private_sums import LEDGER_OWNER
from sottovoce.shared.errors import LedgerError, SottovoceError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import PrivacyUnit, Release
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.simulations.population import ledger_groups
from sottovoce.simulations.results.path_names import file_name, folder_name
from sottovoce.simulations.results.schema import Json, Table, read_privacy
from sottovoce.simulations.verification import (
    consistency_checks,
    curve_checks,
    ledger_checks,
    prediction_checks,
)
from sottovoce.simulations.verification.ledger_checks import (
    PLD_TOLERANCE,
    PRV_TOLERANCE,
    AccountedLedger,
    TuningCharge,
)
from sottovoce.simulations.verification.second_accountant import PRV_ERROR, opacus_epsilon


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerCheck:
    """Result of recomputing one client's ledger.

    Attributes:
        fold: Name of the fold.
        client: Owner of the ledger.
        release_count: Number of releases in the ledger.
        claimed_epsilon: Epsilon in ``privacy.json``; None where it claims none.
        pld_epsilon: Epsilon by dp-accounting; infinite if a release was unprotected, NaN if the
            ledger cannot be trusted.
        prv_epsilon: Epsilon by Opacus, likewise.
        mismatches: Mismatches in words; empty where all agrees.
        composition: The theorem by which its releases were added up; empty where it is unknown.
    """

    fold: str
    client: str
    release_count: int
    claimed_epsilon: float | None
    pld_epsilon: float
    prv_epsilon: float
    mismatches: tuple[str, ...]
    composition: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunVerification:
    """Result of recomputing a whole run.

    Attributes:
        unit: Unit of privacy that the run claims.
        promised_epsilon: The promised epsilon; None where nothing was promised.
        delta: The promised delta.
        ledger_checks: One check for every client in every fold.
        inconsistencies: Contradictions that concern no single client.
        prediction_count: How many predictions accuracy was computed again from; None where the run
            kept none.
    """

    unit: str
    promised_epsilon: float | None
    delta: float | None
    ledger_checks: tuple[LedgerCheck, ...]
    inconsistencies: tuple[str, ...]
    prediction_count: int | None = None

    @property
    def is_consistent(self) -> bool:
        """Tell whether all ledgers, both accountants and the run's files agree."""
        return not self.inconsistencies and not any(
            count.mismatches for count in self.ledger_checks
        )

    def report_lines(self) -> list[str]:
        """Format the verification for people: results, mismatches, the verdict last."""
        wrong = [
            f"{c.fold} {c.client}: {fault}" for c in self.ledger_checks for fault in c.mismatches
        ]
        faulty = len({(c.fold, c.client) for c in self.ledger_checks if c.mismatches})
        found = [*self.inconsistencies, *wrong]
        verdict = "all ledgers agree with privacy.json"
        if found:
            verdict = (
                f"DISAGREES: {faulty} of {len(self.ledger_checks)} ledgers, and "
                f"{len(self.inconsistencies)} times beside them, see above"
            )
        return [*self._heading(), self._accuracy_line(), *found, verdict]

    def to_dict(self) -> Json:
        """Convert the verification for JSON; infinity and NaN become null."""
        return {
            "agrees": self.is_consistent,
            "unit": self.unit,
            "epsilon": self.promised_epsilon,
            "delta": self.delta,
            "tolerance": {"pld": PLD_TOLERANCE, "prv": PRV_TOLERANCE},
            "predictions": self.prediction_count,
            "faults": list(self.inconsistencies),
            "clients": [
                {
                    "fold": count.fold,
                    "client": count.client,
                    "releases": count.release_count,
                    "claimed": count.claimed_epsilon,
                    "pld": _finite(count.pld_epsilon),
                    "prv": _finite(count.prv_epsilon),
                    "composition": count.composition,
                    "faults": list(count.mismatches),
                }
                for count in self.ledger_checks
            ],
        }

    def _accuracy_line(self) -> str:
        """From what accuracy was computed again, if at all."""
        if self.prediction_count is None:
            return "accuracy was not computed again: no table of predictions was kept"
        return f"accuracy and calibration: from {self.prediction_count:,} predictions"

    def _heading(self) -> list[str]:
        """How much was counted, and by whom."""
        folds = len({count.fold for count in self.ledger_checks})
        releases = sum(count.release_count for count in self.ledger_checks)
        first = (
            f"{len(self.ledger_checks)} ledgers of {folds} folds, {releases} releases, chains read"
        )
        if not scheme_for(self.unit).promised:
            return [first, "unit none: every release should be booked as unprotected"]
        known = [
            count
            # NaN or infinity in either is neither.
            for count in self.ledger_checks
            if math.isfinite(count.pld_epsilon + count.prv_epsilon)
        ]
        if not known:
            return [first, "no ledger could be counted"]
        pld, prv = (
            _span([getattr(count, name) for count in known])
            for name in ("pld_epsilon", "prv_epsilon")
        )
        most = max(abs(count.pld_epsilon - count.prv_epsilon) for count in known)
        return [
            first,
            f"{accounting.ACCOUNTANT_NAME}: epsilon {pld}",
            f"PRV (Opacus, error {PRV_ERROR:g}): epsilon {prv}",
            f"added up by: {', '.join(sorted({count.composition for count in known}))}",
            f"the two differ by at most {most:.4f}; {PRV_TOLERANCE:g} is allowed",
        ]


def verify_run(run_folder: Path) -> RunVerification:
    """Recompute a run's privacy from its ledgers.

    Args:
        run_folder: The folder that ``simulate --out`` made.

    Returns:
        The verification; ``is_consistent`` says whether the run's own account holds.

    Raises:
        SettingError: The folder holds no run.
        MessageError: Its ``privacy.json`` is damaged or of another release.
    """
    privacy = read_privacy(run_folder)
    accounted = list(_accounted_ledgers(run_folder / "ledgers", privacy))
    database = run_folder / "ledgers" / ledger_groups.DATABASE_NAME
    synthetic = any("registered" in fold for fold in privacy["folds"][:1])
    return RunVerification(
        unit=privacy["unit"],
        promised_epsilon=privacy["epsilon"],
        delta=privacy["delta"],
        ledger_checks=tuple(_check_ledger(one) for one in accounted),
        inconsistencies=(
            *consistency_checks.inconsistencies(run_folder, privacy),
            *curve_checks.curve_mismatches(privacy, _charged_releases(accounted, privacy)),
            *prediction_checks.prediction_mismatches(run_folder),
            *_unaccounted_ledgers(run_folder / "ledgers", {one.path for one in accounted}),
            *(
                ledger_groups.group_mismatches(database, privacy)
                if synthetic and database.exists()
                else ()
            ),
        ),
        prediction_count=prediction_checks.count_predictions(run_folder),
    )


def _accounted_ledgers(ledgers: Path, privacy: Table) -> Iterator[AccountedLedger]:
    """Every ledger that ``privacy.json`` accounts for: users', and the servers' of their sums."""
    scheme, user = scheme_for(privacy["unit"]), privacy.get("user")
    protects, first = bool(scheme.promised), scheme.account_unit
    for record in privacy["folds"]:
        fold = str(record["name"])
        folder = ledgers / folder_name(fold)
        # Populations have one database of ledgers instead of a file for each device.
        database = ledgers / ledger_groups.DATABASE_NAME if "registered" in record else None
        run = "population" if database else fold
        for client, account in record["clients"].items():
            yield AccountedLedger(
                path=database or folder / f"{file_name(client)}.jsonl",
                fold=fold,
                client=client,
                account=account,
                unit=first,
                guarantee=privacy,
                user_guarantee=user,
                run_suffix=run,
                tuning=_tuning_charge(privacy, first),
                is_private=protects,
            )
        if record.get("server"):
            yield AccountedLedger(
                path=folder.with_name(f"{folder.name}.server.jsonl"),
                fold=fold,
                client=LEDGER_OWNER,
                account=record["server"],
                unit=PrivacyUnit.USER,
                guarantee=user or privacy,
                user_guarantee=None,
                run_suffix=run,
                tuning=_tuning_charge(privacy, PrivacyUnit.USER),
                is_private=protects,
            )


def _charged_releases(
    accounted: Sequence[AccountedLedger], privacy: Table
) -> Iterator[tuple[PrivacyUnit, list[Release]]]:
    """Releases that a curve is of: the sums' for a user, devices' messages for an utterance."""
    of_messages = scheme_for(privacy["unit"]).has_private_messages
    for one in accounted:
        if one.client == LEDGER_OWNER or of_messages:
            # One that cannot be trusted is named by its own check.
            with contextlib.suppress(SottovoceError):
                yield one.unit, list(_open_ledger(one.path, one.client).releases)


def _tuning_charge(privacy: Table, unit: PrivacyUnit) -> TuningCharge | None:
    """What this unit is charged for choosing settings; None where it is one run."""
    tuned = privacy.get("tuned")
    if not tuned:
        return None
    best = tuned.get("selection") or {}
    return TuningCharge(tuned["runs"], tuned.get(unit.value), best.get(unit.value))


def _check_ledger(accounted: AccountedLedger) -> LedgerCheck:
    """One ledger: read, verify, compute, compare."""
    fold, client, account = accounted.fold, accounted.client, accounted.account
    try:
        ledger = _open_ledger(accounted.path, client)
        if not isinstance(account["delta"], float) or not 0 < account["delta"] < 1:
            raise LedgerError(
                f"privacy.json says delta {account['delta']}, it must be in (0, 1): no epsilon can "
                "be computed"
            )
        rule = accounting.rule_from_record(account)
    # A ledger that cannot be trusted has no epsilon: NaN disagrees with every claim.
    except SottovoceError as error:
        return LedgerCheck(
            fold=fold,
            client=client,
            release_count=0,
            claimed_epsilon=account["epsilon"],
            pld_epsilon=math.nan,
            prv_epsilon=math.nan,
            mismatches=(str(error),),
        )
    delta = float(account["delta"])
    pld = rule.compute_epsilon(ledger.releases, delta, unit=accounted.unit)
    prv = opacus_epsilon(
        ledger.releases,
        delta,
        unit=accounted.unit,
        composition=rule.kind,
        renyi_order=rule.renyi_order,
    )
    return LedgerCheck(
        fold=fold,
        client=client,
        release_count=len(ledger.releases),
        claimed_epsilon=account["epsilon"],
        pld_epsilon=pld,
        prv_epsilon=prv,
        composition=rule.name,
        mismatches=tuple(ledger_checks.ledger_mismatches(ledger, accounted, pld, prv)),
    )


def _open_ledger(path: Path, client: str) -> Ledger:
    """A client's own ledger whose chain holds; a torn one is refused here and left as it is."""
    if path.name == ledger_groups.DATABASE_NAME:
        return ledger_groups.find_ledger(path, client)
    try:
        whole = path.read_bytes().endswith(b"\n")
    except OSError as error:
        reason = error.strerror or error
        raise LedgerError(f"its ledger {path.name} cannot be read: {reason}") from error
    # Opening for writing would repair the torn line; evidence stays as it was found.
    if not whole:
        raise LedgerError(f"its ledger {path.name} ends in a torn line; it was cut off")
    return Ledger(path, owner=client, read_only=True)


def _unaccounted_ledgers(ledgers: Path, known: Collection[Path]) -> Iterator[str]:
    """Ledgers of nobody: releases that no line of ``privacy.json`` accounts for."""
    for path in sorted(
        [
            *ledgers.glob("*/*.jsonl"),
            *ledgers.glob("*.jsonl"),
            ledgers / ledger_groups.DATABASE_NAME,
        ]
    ):
        # A ledger without an account would be loss that nobody sees.
        if path not in known and path.exists():
            yield f"{path.parent.name}/{path.name} is a ledger that privacy.json does not mention"


def _span(values: list[float]) -> str:
    """Smallest and largest."""
    return f"{min(values):.4f} to {max(values):.4f}"


def _finite(value: float) -> float | None:
    """What JSON can hold."""
    return value if math.isfinite(value) else None
