"""From scored predictions to the sections of run.json.

A run hands over :class:`Predictions` tables; everything here is a pure function of them.
Accuracy and fairness are those of the table's ``after`` column: the run puts the shared
model's probabilities there, without any label of the user, and the users' heads only for
calibration. Keys follow the run folder's schema (:mod:`sottovoce.simulations.results.schema`).
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import cast

import numpy as np

from sottovoce.shared import seeding
from sottovoce.shared.privacy.release import PrivacyUnit
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.simulations.evaluation import bootstrap, calibration, metrics
from sottovoce.simulations.evaluation.fairness.run_section import measure_group
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray
from sottovoce.simulations.evaluation.predictions import (
    Predictions,
    concatenate_predictions,
    natural_sort_key,
)
from sottovoce.simulations.results.schema import (
    Accuracy,
    BeforeAfter,
    Bin,
    Calibration,
    CalibrationErrors,
    CurvePoint,
    PrivacyRecord,
    RunPrivacy,
    RunRecord,
    Spending,
    UserPrivacy,
    to_plain_json,
    validate_privacy,
    validate_run,
    write_json,
)

__all__ = [
    "Predictions",
    "accuracy_section",
    "assemble_run_record",
    "calibration_section",
    "concatenate_predictions",
    "learning_curve",
    "privacy_section",
    "uar_before_after",
    "validate_privacy",
    "validate_run",
    "write_json",
]

# Integers first: arange with steps of 0.05 may or may not hold its end.
_COVERAGES = np.arange(1, 21) / 20


def accuracy_section(
    scored: Predictions, *, seed: int, curve: Sequence[CurvePoint] = ()
) -> Accuracy:
    """Build the section "accuracy" of run.json.

    Args:
        scored: Predictions of all folds.
        seed: The run's seed; the interval over speakers is drawn from it.
        curve: What :func:`learning_curve` gave; empty where nothing was scored during training.
    """
    speakers = scored.confusion_by_group(scored.speakers)
    total = np.sum(list(speakers.values()), axis=0)
    draws = seeding.numpy_rng(seed, "record", "uar interval")
    sure = bootstrap.uar_interval(np.stack(list(speakers.values())), draws)
    raw = scored.confusion_without_heads()
    return {
        "uar": metrics.uar(total),
        "uar_interval": [sure.low, sure.high],
        "wa": metrics.weighted_accuracy(total),
        "macro_f1": metrics.macro_f1(total),
        "per_emotion": dict(
            zip(scored.emotions, metrics.class_recalls(total).tolist(), strict=True)
        ),
        "confusion": total.tolist(),
        "per_fold": [
            {
                "fold": fold,
                "uar": metrics.uar(matrix),
                "wa": metrics.weighted_accuracy(matrix),
                "macro_f1": metrics.macro_f1(matrix),
                "n": int(matrix.sum()),
            }
            for fold, matrix in scored.confusion_by_group(scored.folds).items()
        ],
        "per_speaker": {name: measure_group(matrix) for name, matrix in speakers.items()},
        "by_round": list(curve),
        "before_heads": {"uar": metrics.uar(raw), "wa": metrics.weighted_accuracy(raw)},
    }


def learning_curve(folds: Mapping[str, Sequence[tuple[int, float]]]) -> list[CurvePoint]:
    """Accuracy by round: per fold and their mean.

    Args:
        folds: For every fold its (round, UAR) points; folds may have been scored in other rounds.
    """
    points = {fold: dict(folds[fold]) for fold in sorted(folds, key=natural_sort_key)}
    curve: list[CurvePoint] = []
    for number in sorted({number for scored in points.values() for number in scored}):
        here = {fold: scored[number] for fold, scored in points.items() if number in scored}
        curve.append({"round": number, "uar": float(np.mean([*here.values()])), "per_fold": here})
    return curve


def calibration_section(scored: Predictions, *, seed: int = 0) -> Calibration:
    """The section "calibration": errors before and after heads, their bins, and abstention.

    Args:
        scored: Predictions of all folds.
        seed: The run's; intervals over users are drawn from it.
    """
    sets = calibration.evaluate_prediction_sets(scored, seed=seed)
    curve = metrics.risk_coverage_curve(scored.after, scored.labels)
    section: Calibration = {
        "before": _errors(scored.before, scored.labels),
        "after": _errors(scored.after, scored.labels),
        "abstention": {
            "coverage": _COVERAGES.tolist(),
            "selective_accuracy": [curve.accuracy_at(float(share)) for share in _COVERAGES],
            "aurc": curve.aurc,
            "aurc_before": metrics.risk_coverage_curve(scored.before, scored.labels).aurc,
        },
        "reliability": {
            "before": _bins(scored.before, scored.labels),
            "after": _bins(scored.after, scored.labels),
        },
        "reliability_by_emotion": {
            name: {"before": before, "after": after}
            for name, before, after in zip(
                scored.emotions,
                *(_bins_by_class(rows, scored.labels) for rows in (scored.before, scored.after)),
                strict=True,
            )
        },
        "intervals": calibration.bootstrap_intervals(scored, seed=seed),
        "per_speaker": calibration.metrics_by_speaker(scored),
    }
    if sets:
        section["sets"] = sets
    return section


def uar_before_after(scored: Predictions) -> BeforeAfter:
    """UAR on the same clips before and after heads.

    Args:
        scored: Predictions of all folds.
    """
    after = np.sum(list(scored.confusion_by_group(scored.speakers).values()), axis=0)
    return {"before": metrics.uar(scored.confusion_without_heads()), "after": metrics.uar(after)}


def privacy_section(privacy: PrivacyRecord, *, audit: float | None = None) -> RunPrivacy:
    """The section "privacy", from what privacy.json holds, so that the two cannot disagree.

    A client that took part in several folds has one ledger in each. Each fold is an experiment of
    its own; the client's line is that of the fold that spent most.

    Args:
        privacy: Content of privacy.json.
        audit: Lower bound on epsilon that an audit measured; None when there was none.
    """
    spent: dict[str, Spending] = {}
    for fold in privacy["folds"]:
        for client, account in fold["clients"].items():
            if client not in spent or (account["epsilon"] or 0) > (spent[client]["epsilon"] or 0):
                spent[client] = {
                    "epsilon": account["epsilon"],
                    "remaining": account["remaining"],
                    "rounds": account["rounds"],
                }
    accounts = [account for fold in privacy["folds"] for account in fold["clients"].values()]
    servers = [server for fold in privacy["folds"] if (server := fold.get("server"))]
    section: RunPrivacy = {
        "unit": privacy["unit"],
        "epsilon": privacy["epsilon"],
        "delta": privacy["delta"],
        "neighbouring": privacy["neighbouring"],
        "sampling": privacy["sampling"],
        "accountant": privacy["accountant"],
        "noise_multiplier": privacy["noise_multiplier"],
        "clip_norm": privacy["clip_norm"],
        "releases": sum(len(account["releases"]) for account in accounts + servers),
    }
    epsilons = [line["epsilon"] for line in spent.values() if line["epsilon"] is not None]
    ordered = {name: spent[name] for name in sorted(spent, key=natural_sort_key)}
    user: UserPrivacy | None = None
    if servers:
        terms = privacy.get("user") or privacy
        found = [one["epsilon"] for one in servers]
        known = [epsilon for epsilon in found if epsilon is not None]
        # One fold without a guarantee leaves the run without one.
        worst = max(known) if len(known) == len(found) else None
        user = {"epsilon": worst, "delta": terms["delta"]}
        section["user"] = user
    if epsilons:
        unit = scheme_for(privacy["unit"]).account_unit
        own = {PrivacyUnit.UTTERANCE: {}, PrivacyUnit.USER: user or {"epsilon": max(epsilons)}}
        figures = {
            "epsilon_max": max(epsilons),
            "epsilon_median": median(epsilons),
            "per_client": ordered,
        }
        section = cast("RunPrivacy", {**section, unit.value: {**own[unit], **figures}})
    if audit is not None:
        section["audit"] = {"epsilon_lower": audit}
    return section


def assemble_run_record(sections: RunRecord) -> RunRecord:
    """Assemble run.json: round its numbers, leave out empty sections and validate the result.

    Args:
        sections: All of it, in the schema's order; numbers may be NumPy's.

    Raises:
        MessageError: A section that breaks the schema.
    """
    run = to_plain_json(sections)
    for name in ("baselines", "exclusions"):
        if not run.get(name):
            run.pop(name, None)
    return validate_run(run)


def _errors(probabilities: FloatArray, labels: CountArray) -> CalibrationErrors:
    """Calibration errors of one set of probabilities."""
    return {
        "ece": metrics.ece(probabilities, labels),
        "classwise_ece": metrics.classwise_ece(probabilities, labels),
        "nll": metrics.negative_log_likelihood(probabilities, labels),
        "brier": metrics.brier_score(probabilities, labels),
    }


def _bins(probabilities: FloatArray, labels: CountArray) -> list[Bin]:
    """The reliability diagram's points."""
    return _points(metrics.reliability_bins(probabilities, labels))


def _bins_by_class(probabilities: FloatArray, labels: CountArray) -> list[list[Bin]]:
    """The same for each class's probability."""
    return [_points(bins) for bins in metrics.classwise_reliability_bins(probabilities, labels)]


def _points(bins: metrics.ReliabilityBins) -> list[Bin]:
    """Bins as plain numbers."""
    return [
        {"count": count, "confidence": sure / count, "accuracy": right / count}
        for count, sure, right in zip(bins.count, bins.confidence, bins.correct, strict=True)
    ]
