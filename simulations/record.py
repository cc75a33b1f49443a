"""From scored predictions to the sections of run.json.

The pipeline hands over :class:`Scored` tables; everything here is a pure function of them.
Accuracy and fairness are those of the table's ``after`` column: the pipeline puts the shared
model's probabilities there, without any label of the user, and the users' heads only for
calibration. Keys follow the run folder's schema (:mod:`sottovoce.simulations.runfile`).
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from sottovoce.shared import bootstrap, metrics, seeds
from sottovoce.shared.metrics import Counts, Floats
from sottovoce.simulations import certainty
from sottovoce.simulations.runfile import (
    SCHEMA,
    Json,
    plain,
    validate_privacy,
    validate_run,
    write_json,
)
from sottovoce.simulations.scored import AGE_BANDS, UNKNOWN, Scored, age_band, gather, natural

__all__ = [
    "Scored",
    "accuracy",
    "assemble",
    "calibration",
    "fairness",
    "gather",
    "learning_curve",
    "privacy_section",
    "validate_privacy",
    "validate_run",
    "write_json",
]

_COVERAGES = np.arange(1, 21) / 20


def accuracy(scored: Scored, *, seed: int, curve: Sequence[Json] = ()) -> Json:
    """The section "accuracy".

    Args:
        scored: Predictions of all folds.
        seed: The run's seed; the interval over speakers is drawn from it.
        curve: What :func:`learning_curve` gave; empty where nothing was scored during training.
    """
    speakers = scored.confusions(scored.speakers)
    total = np.sum(list(speakers.values()), axis=0)
    draws = seeds.numpy_rng(seed, "record", "uar interval")
    sure = bootstrap.interval(np.stack(list(speakers.values())), draws)
    raw = scored.confusion_before()
    return {
        "uar": metrics.uar(total),
        "uar_interval": [sure.low, sure.high],
        "wa": metrics.wa(total),
        "macro_f1": metrics.macro_f1(total),
        "per_emotion": dict(zip(scored.emotions, metrics.recalls(total).tolist(), strict=True)),
        "confusion": total.tolist(),
        "per_fold": [
            {
                "fold": fold,
                "uar": metrics.uar(matrix),
                "wa": metrics.wa(matrix),
                "macro_f1": metrics.macro_f1(matrix),
                "n": int(matrix.sum()),
            }
            for fold, matrix in scored.confusions(scored.folds).items()
        ],
        "per_speaker": {name: _rate(matrix) for name, matrix in speakers.items()},
        "by_round": list(curve),
        "before_heads": {"uar": metrics.uar(raw), "wa": metrics.wa(raw)},
    }


def learning_curve(folds: Mapping[str, Sequence[tuple[int, float]]]) -> list[Json]:
    """Accuracy by round: per fold and their mean.

    Args:
        folds: For every fold its (round, UAR) points; folds may have been scored in other rounds.
    """
    points = {fold: dict(folds[fold]) for fold in sorted(folds, key=natural)}
    curve: list[Json] = []
    for number in sorted({number for scored in points.values() for number in scored}):
        here = {fold: scored[number] for fold, scored in points.items() if number in scored}
        curve.append({"round": number, "uar": float(np.mean([*here.values()])), "per_fold": here})
    return curve


def calibration(scored: Scored, *, seed: int = 0) -> Json:
    """The section "calibration": errors before and after heads, their bins, and abstention.

    Args:
        scored: Predictions of all folds.
        seed: The run's; intervals over users are drawn from it.
    """
    sets = certainty.sets(scored, seed=seed)
    curve = metrics.abstention(scored.after, scored.labels)
    return {
        "before": _errors(scored.before, scored.labels),
        "after": _errors(scored.after, scored.labels),
        "abstention": {
            "coverage": _COVERAGES.tolist(),
            "selective_accuracy": [curve.at(float(share)) for share in _COVERAGES],
            "aurc": curve.aurc,
            "aurc_before": metrics.abstention(scored.before, scored.labels).aurc,
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
        "intervals": certainty.intervals(scored, seed=seed),
        "per_speaker": certainty.per_speaker(scored),
        **({"sets": sets} if sets else {}),
    }


def fairness(scored: Scored) -> Json:
    """The section "fairness": UAR by group, its gap between known groups, and over speakers."""
    speakers = {name: metrics.uar(m) for name, m in scored.confusions(scored.speakers).items()}
    rates = list(speakers.values())
    worst = min(speakers, key=lambda name: speakers[name])
    return {
        "gender": _groups(scored, scored.genders),
        "age": _groups(scored, [age_band(age) for age in scored.ages], order=AGE_BANDS),
        "language": _groups(scored, scored.languages),
        "speaker": {
            "worst": speakers[worst],
            "worst_speaker": worst,
            "p10": metrics.percentile(rates, 10),
            "median": metrics.percentile(rates, 50),
            "gini": metrics.gini(rates),
        },
    }


def privacy_section(privacy: Mapping[str, Any], *, audit: float | None = None) -> Json:
    """The section "privacy", from what privacy.json holds, so that the two cannot disagree.

    A client that took part in several folds has one ledger in each. Each fold is a world of its
    own; the client's line is that of the world that spent most.

    Args:
        privacy: Content of privacy.json.
        audit: Lower bound on epsilon that an audit measured; None when there was none.
    """
    spent: dict[str, Json] = {}
    for world in privacy["worlds"]:
        for client, account in world["clients"].items():
            if client not in spent or (account["epsilon"] or 0) > (spent[client]["epsilon"] or 0):
                spent[client] = {key: account[key] for key in ("epsilon", "remaining", "rounds")}
    accounts = [a for w in privacy["worlds"] for a in w["clients"].values()]
    servers = [world["server"] for world in privacy["worlds"] if world.get("server")]
    promised = ("unit", "epsilon", "delta", "neighbouring", "sampling", "accountant")
    section = {key: privacy[key] for key in (*promised, "noise_multiplier", "clip_norm")}
    section["releases"] = sum(len(account["releases"]) for account in accounts + servers)
    epsilons = [line["epsilon"] for line in spent.values() if line["epsilon"] is not None]
    if servers:
        terms = privacy.get("user") or privacy
        worst = max(server["epsilon"] for server in servers)
        section["user"] = {"epsilon": worst, "delta": terms["delta"]}
    if epsilons:
        here = section.setdefault("user" if privacy["unit"] == "user" else "utterance", {})
        if privacy["unit"] == "user":
            here.setdefault("epsilon", max(epsilons))
        here.update(
            epsilon_max=max(epsilons),
            epsilon_median=median(epsilons),
            per_client={name: spent[name] for name in sorted(spent, key=natural)},
        )
    if audit is not None:
        section["audit"] = {"epsilon_lower": audit}
    return section


def assemble(
    *,
    corpus: Json,
    protocol: Json,
    seed: int,
    engine: str,
    unit: str,
    clients: int,
    rounds: int,
    model: Json,
    accuracy: Json,
    calibration: Json,
    fairness: Json,
    privacy: Json,
    timing: Json,
    baselines: Json | None = None,
    exclusions: Mapping[str, int] | None = None,
) -> Json:
    """Put run.json together, in the schema's order, and check it.

    Raises:
        MessageError: A section that breaks the schema.
    """
    run: Json = {
        "schema": SCHEMA,
        "corpus": corpus,
        "protocol": protocol,
        "seed": seed,
        "engine": engine,
        "unit": unit,
        "clients": clients,
        "rounds": rounds,
        "model": model,
        "accuracy": accuracy,
        **({"baselines": baselines} if baselines else {}),
        "calibration": calibration,
        "fairness": fairness,
        "privacy": privacy,
        "timing": timing,
        **({"exclusions": dict(exclusions)} if exclusions else {}),
    }
    return validate_run(plain(run))


def _rate(matrix: Counts) -> Json:
    """UAR and size of one speaker or group."""
    return {"uar": metrics.uar(matrix), "n": int(matrix.sum())}


def _errors(probabilities: Floats, labels: Counts) -> Json:
    """Calibration errors of one set of probabilities."""
    return {
        "ece": metrics.ece(probabilities, labels),
        "classwise_ece": metrics.classwise_ece(probabilities, labels),
        "nll": metrics.nll(probabilities, labels),
        "brier": metrics.brier(probabilities, labels),
    }


def _bins(probabilities: Floats, labels: Counts) -> list[Json]:
    """The reliability diagram's points."""
    return _points(metrics.reliability(probabilities, labels))


def _bins_by_class(probabilities: Floats, labels: Counts) -> list[list[Json]]:
    """The same for each class's probability."""
    return [_points(bins) for bins in metrics.reliabilities(probabilities, labels)]


def _points(bins: metrics.Reliability) -> list[Json]:
    """Bins as plain numbers."""
    return [
        {"count": count, "confidence": sure / count, "accuracy": right / count}
        for count, sure, right in zip(bins.count, bins.confidence, bins.correct, strict=True)
    ]


def _groups(scored: Scored, names: Sequence[str], *, order: Sequence[str] = ()) -> Json:
    """UAR by group; the gap is between known groups, null where there are fewer than two."""
    names = [name or UNKNOWN for name in names] or [UNKNOWN] * len(scored.clips)
    speakers: dict[str, set[str]] = {}
    for name, speaker in zip(names, scored.speakers, strict=True):
        speakers.setdefault(name, set()).add(speaker)
    found = scored.confusions(names)
    listed = [name for name in order if name in found] or list(found)
    groups = {name: {**_rate(found[name]), "speakers": len(speakers[name])} for name in listed}
    known = [group["uar"] for name, group in groups.items() if name != UNKNOWN]
    return {"groups": groups, "gap": metrics.gap(known) if len(known) > 1 else None}
