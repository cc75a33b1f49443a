"""Rendering of the two pages of a run: report.html and privacy.html."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.printable import clean_inserted_value, clean_record
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.reports import (
    audit_section,
    figures,
    guarantee_section,
    ledger_tables,
    wording,
)
from sottovoce.simulations.results.schema import (
    AuditRecord,
    PrivacyRecord,
    RunRecord,
    Table,
    read_audit,
    read_privacy,
    read_run,
)

TEMPLATE_FOLDER = Path(__file__).parent
_MAX_SPEAKERS = 500
_UNKNOWN = "unknown"
_BASELINES = {
    "central": "central, all recordings in one place",
    "local_only": "each speaker alone",
    "federated_no_privacy": "federated, no privacy",
}
_TIMING = {
    "wall_s": ("Time, all in all", "s"),
    "feature_s": ("Time for features", "s"),
    "rounds_per_s": ("Rounds a second", ""),
    "client_rounds_per_s": ("Client-rounds a second", ""),
    "peak_rss_mb": ("Most memory", "MB"),
}
_ERRORS = {
    "ece": "expected calibration error",
    "classwise_ece": "the same, over all classes",
    "nll": "negative log-likelihood, nats",
    "brier": "Brier score, 0 to 2",
    "aurc": "area under the risk-coverage curve",
}


def write_pages(folder: Path) -> tuple[Path, Path]:
    """Write both pages; see :func:`sottovoce.simulations.reports.render_pages`."""
    run, privacy, audit = read_run(folder), read_privacy(folder), read_audit(folder)
    written = folder / "report.html", folder / "privacy.html"
    pages = render_report(run, privacy), render_privacy_record(run, privacy, audit)
    # Both are rendered before either is written: a failure leaves the old pages.
    for path, page in zip(written, pages, strict=True):
        replace_text(path, page)
    return written


def render_report(run: RunRecord, privacy: PrivacyRecord) -> str:
    """Render the page on how well the model works, and for whom."""
    run, privacy = clean_record(run), clean_record(privacy)  # pictures hold names, too
    return _page("report", run, privacy, _results(run) | _run(run))


def render_privacy_record(
    run: RunRecord, privacy: PrivacyRecord, audit: AuditRecord | None = None
) -> str:
    """Render the page for an auditor, and for the people whose voices were used."""
    run, privacy, audit = clean_record(run), clean_record(privacy), clean_record(audit)
    return _page(
        "privacy",
        run,
        privacy,
        {
            "checks": ledger_tables.check_claims(privacy),
            "release_rows": ledger_tables.release_rows(privacy["folds"]),
            "folds": ledger_tables.build_tables(privacy["folds"]),
            "audit": audit,
            **(audit_section.build_audit_context(audit) if audit else {}),
            "plots": {},
            **guarantee_section.build_guarantee_context(privacy),
        },
    )


def _page(page: str, run: Table, privacy: Table, more: dict[str, Any]) -> str:
    """Fill a template with what both pages share and with its own."""
    context = _promise(run, privacy) | more
    context["plots"] = more["plots"] | {"budget": _budget_plot(privacy)}
    css = (TEMPLATE_FOLDER / "page.css").read_text(encoding="utf-8")
    template = _environment().get_template(f"{page}.html.j2")
    return template.render(page=page, css=css, run=run, privacy=privacy, **context)


def _environment() -> Environment:
    """Templates beside this file; whatever is inserted is escaped, and nothing may be missing."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        # Names of speakers and emotions come from the data: unescaped they could be HTML.
        autoescape=True,
        undefined=StrictUndefined,
        finalize=clean_inserted_value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=wording.format_percent, number=wording.format_number)
    return environment


def _promise(run: Table, privacy: Table) -> dict[str, Any]:
    """What both pages say about privacy."""
    section = run["privacy"]
    spent = (section.get("utterance") or {}).get("epsilon_max")
    # Under user-level privacy there is no epsilon of an utterance.
    spent = (section.get("user") or {}).get("epsilon") if spent is None else spent
    audited = (section.get("audit") or {}).get("epsilon_lower")
    return {
        "promised": wording.is_promised(privacy),
        "plain": wording.explain_promise(privacy),
        "unit_words": scheme_for(privacy["unit"]).wording.protects,
        "most_spent": spent,
        "audited": audited,
        "spent_rows": ledger_tables.fold_rows(privacy["folds"]),
        "promise_facts": _promise_facts(privacy, spent, audited),
    }


def _promise_facts(privacy: Table, spent: float | None, audited: float | None) -> list[Any]:
    """The promise's terms, as an auditor names them."""
    if not wording.is_promised(privacy):
        return [("Protects", "nothing"), ("ε promised", "none: it is unbounded")]
    terms = [
        ("Protects", scheme_for(privacy["unit"]).wording.protects.removeprefix("for ")),
        ("ε promised", wording.format_number(privacy["epsilon"])),
        ("Most spent", None if spent is None else wording.format_number(spent, 5)),
        (
            "δ",
            _delta_with_chance(privacy["delta"]),
        ),
        ("Neighbouring", privacy["neighbouring"]),
        ("Sampling", privacy["sampling"]),
        *_participation_terms(privacy),
        ("Clip norm", wording.format_number(privacy["clip_norm"])),
        ("Noise multiplier", wording.format_number(privacy["noise_multiplier"])),
        ("Accountant", privacy["accountant"]),
        ("Added up by", accounting.rule_from_record(privacy).name),
        *_user_terms(privacy),
        *_tuning_terms(privacy),
        (
            "Audited lower bound",
            "not audited" if audited is None else wording.format_number(audited),
        ),
    ]
    # Terms that a unit does not have are dashes, and left out.
    return [(name, value) for name, value in terms if value and not value.startswith("–")]


def _participation_terms(privacy: Table) -> list[tuple[str, str]]:
    """Minimum separation of a user's rounds and correlation of their noise, where there is any."""
    terms = privacy.get("participation")
    if not terms:
        return []
    rounds = (
        f"at most {terms['most']} of {terms['rounds']}, "
        f"at least {terms['spacing']} from one to the next"
    )
    noise = f"correlated across {terms['bands']} rounds (banded matrix factorisation)"
    return [
        ("Rounds of one user", rounds),
        ("Noise of rounds", noise if terms["bands"] > 1 else "independent"),
    ]


def _user_terms(privacy: Table) -> list[tuple[str, str]]:
    """The terms of a second promise, to the user, where there is one."""
    user = privacy.get("user") or {}
    if user.get("epsilon") is None:
        return []
    return [
        ("For one person: ε", wording.format_number(user["epsilon"])),
        (
            "δ for a person",
            _delta_with_chance(user["delta"]),
        ),
        ("Neighbouring, for a person", user["neighbouring"]),
        ("Clip norm for a person", wording.format_number(user["clip_norm"])),
        ("Noise for a person", wording.format_number(user["noise_multiplier"])),
    ]


def _delta_with_chance(delta: float) -> str:
    """Delta as a number and as people say it."""
    return f"{wording.format_number(delta)} ({wording.format_chance(delta)})"


def _tuning_terms(privacy: Table) -> list[tuple[str, str]]:
    """What all runs cost that settings were chosen by."""
    tuned = privacy.get("tuned") or {}
    best = tuned.get("selection") or {}
    terms = []
    for unit in ("utterance", "user"):
        if unit in tuned:
            whole = wording.format_number(tuned[unit], 4)
            terms.append((f"ε of one {unit} over {tuned['runs']} tuning runs", whole))
        if unit in best:
            gain = wording.format_number(tuned[unit] - best[unit], 4)
            text = (
                f"{wording.format_number(best[unit], 4)}, {gain} less; {best['against']}, and "
                f"{best['score']}"
            )
            terms.append((f"ε of one {unit}, only the best released of {_random_runs(best)}", text))
    if "refused" in best:
        terms.append((f"ε of the best of {_random_runs(best)}", f"unknown: {best['refused']}"))
    return terms


def _random_runs(selection: Table) -> str:
    """How many runs a private selection makes, in words."""
    return f"a random number of runs ({selection['distribution']}, mean {selection['mean_runs']})"


def _budget_plot(privacy: Table) -> str | None:
    """The budget over rounds; None where no ledger has an epsilon."""
    spent = ledger_tables.fold_rows(privacy["folds"])
    return figures.plot_budget(privacy["folds"], privacy["epsilon"]) if spent else None


def _results(run: Table) -> dict[str, Any]:
    """Plots and tables of accuracy, calibration and fairness."""
    return {
        "chance": 1 / len(run["corpus"]["emotions"]),
        "plots": _plots(run),
        **_accuracy_rows(run),
        **_calibration_rows(run["calibration"]),
        **_fairness_rows(run),
    }


def _plots(run: Table) -> dict[str, str | None]:
    """The report's pictures; None where a section is not there."""
    accuracy, calibration = run["accuracy"], run["calibration"]
    emotions, known = run["corpus"]["emotions"], known_groups(run["fairness"])
    curve, bins = accuracy.get("by_round"), calibration.get("reliability")
    answered, by_emotion = calibration["abstention"], calibration.get("reliability_by_emotion")
    chance = 1 / len(emotions)
    return {
        "by_round": figures.plot_uar_by_round(curve, chance) if curve else None,
        "confusion": figures.plot_confusion(accuracy["confusion"], emotions),
        "reliability": figures.plot_reliability(bins["before"], bins["after"]) if bins else None,
        "emotions": figures.plot_reliability_by_emotion(by_emotion) if by_emotion else None,
        "abstention": (
            figures.plot_abstention(answered["coverage"], answered["selective_accuracy"])
            if answered["coverage"]
            else None
        ),
        "sets": figures.plot_prediction_sets(calibration["sets"])
        if calibration.get("sets")
        else None,
        "speakers": figures.plot_speakers(accuracy["per_speaker"], chance),
        "groups": figures.plot_groups(known, accuracy["uar"]) if known else None,
    }


def _accuracy_rows(run: Table) -> dict[str, Any]:
    """Tables of the section on accuracy."""
    accuracy, emotions = run["accuracy"], run["corpus"]["emotions"]
    recalls = metrics.class_recalls(accuracy["confusion"])
    curve = accuracy.get("by_round") or []
    # With one fold, the fold's column would repeat the total.
    folds = [fold["fold"] for fold in accuracy["per_fold"]] if len(accuracy["per_fold"]) > 1 else []
    here = {"this run": accuracy} | dict(run.get("baselines") or {})
    sums = [sum(row) for row in accuracy["confusion"]]
    return {
        "fold_names": folds,
        "round_rows": [
            [p["round"], _share(p, "uar"), *(_share(p.get("per_fold") or {}, f) for f in folds)]
            for p in curve
        ],
        "confusion_rows": [
            [emotion, *row] for emotion, row in zip(emotions, accuracy["confusion"], strict=True)
        ],
        "emotion_rows": [
            [
                emotion,
                wording.format_percent(float(recall)) if size else "–",
                wording.format_number(size),
            ]
            for emotion, recall, size in zip(emotions, recalls, sums, strict=True)
        ],
        "fold_rows": [
            [
                fold["fold"],
                _share(fold, "uar"),
                _share(fold, "wa"),
                wording.format_number(fold["n"]),
            ]
            for fold in accuracy["per_fold"]
        ],
        "baseline_rows": [
            [_BASELINES.get(name, name), *(_share(line, key) for key in ("uar", "wa", "macro_f1"))]
            for name, line in here.items()
            if len(here) > 1
        ],
    }


def _calibration_rows(calibration: Table) -> dict[str, Any]:
    """Tables of the section on calibration."""
    answered, bins = calibration["abstention"], calibration.get("reliability") or {}
    before = {**calibration["before"], "aurc": answered.get("aurc_before")}
    after = {**calibration["after"], "aurc": answered.get("aurc")}
    intervals = calibration.get("intervals") or {}
    curve = zip(answered["coverage"], answered["selective_accuracy"], strict=True)
    return {
        "error_rows": [
            [
                text,
                wording.format_number(before[key]),
                wording.format_number(after[key]),
                _ends(intervals, key),
            ]
            for key, text in _ERRORS.items()
            if before.get(key) is not None and after.get(key) is not None
        ],
        "set_rows": _set_rows(calibration.get("sets") or {}),
        "bin_rows": _bin_rows(bins),
        "emotion_bin_rows": [
            [emotion, *row]
            for emotion, sides in (calibration.get("reliability_by_emotion") or {}).items()
            for row in _bin_rows(sides)
        ],
        "abstention_rows": [
            [wording.format_percent(x, 0), wording.format_percent(y)] for x, y in curve
        ],
    }


def _bin_rows(sides: Table) -> list[list[str]]:
    """The bins of a reliability diagram, before and after heads."""
    return [
        [
            heads,
            _share(one, "confidence"),
            _share(one, "accuracy"),
            wording.format_number(one["count"]),
        ]
        for heads, found in sides.items()
        for one in found
    ]


def _ends(intervals: Table, name: str) -> str:
    """The interval of what heads change, a dash where it was not measured."""
    low, high = (intervals.get(name) or {}).get("difference", (None, None))
    return "–" if low is None else f"{wording.format_signed(low)} to {wording.format_signed(high)}"


def _set_rows(sets: Table) -> list[list[str]]:
    """Each speaker's prediction sets, the worst covered first."""
    lines = (sets.get("per_speaker") or {}).items()
    # Ties by name, so that the same run gives the same page.
    order = sorted(lines, key=lambda line: (line[1]["covered"] or 0, line[0]))
    return [
        [name, wording.format_percent(line["covered"]), wording.format_number(line["size"])]
        for name, line in order[:_MAX_SPEAKERS]
    ]


def _fairness_rows(run: Table) -> dict[str, Any]:
    """Tables of the section on fairness."""
    speakers = run["accuracy"]["per_speaker"]
    order = sorted(speakers, key=lambda name: (speakers[name]["uar"] or 0, name))
    known = known_groups(run["fairness"])
    return {
        "speaker_rows": [
            [name, _share(speakers[name], "uar"), wording.format_number(speakers[name]["n"])]
            for name in order[:_MAX_SPEAKERS]
        ],
        "speakers_left": max(0, len(order) - _MAX_SPEAKERS),
        "group_rows": [
            [
                f"{kind}: {name}",
                _share(group, "uar"),
                wording.format_number(group["n"]),
                wording.format_number(group.get("speakers")),
            ]
            for kind, groups in known.items()
            for name, group in groups.items()
        ],
        "gaps": [
            (kind, run["fairness"][kind]["gap"])
            for kind in known
            if run["fairness"][kind]["gap"] is not None
        ],
    }


def known_groups(fairness: Table) -> dict[str, Any]:
    """Select the attributes of which at least one group is known, in the schema's order.

    Example:
        >>> nobody, women = {"groups": {"unknown": {}}}, {"groups": {"female": {}}}
        >>> list(known_groups({"gender": women, "age": nobody, "language": nobody}))
        ['gender']
    """
    found = {kind: fairness[kind]["groups"] for kind in ("gender", "age", "language")}
    return {kind: groups for kind, groups in found.items() if set(groups) - {_UNKNOWN}}


def _run(run: Table) -> dict[str, Any]:
    """The facts at the foot of the report."""
    timing = {name: value for name, value in run["timing"].items() if value is not None}
    facts = [
        ("Corpus", f"{run['corpus']['name']}, {run['corpus']['clips']:,} clips"),
        ("Emotions", ", ".join(run["corpus"]["emotions"])),
        ("Engine and seed", f"{run['engine']}, {run['seed']}"),
        ("Public corpora", ", ".join(run["model"]["public_corpora"]) or "none"),
        *(_timing(name, value) for name, value in timing.items()),
    ]
    excluded = run.get("exclusions") or {}
    rows = [[reason, wording.format_number(count)] for reason, count in excluded.items()]
    return {"run_facts": facts, "exclusion_rows": rows}


def _timing(name: str, value: float) -> tuple[str, str]:
    """One measure of time or memory, with its unit."""
    text, unit = _TIMING.get(name, (name, ""))
    return text, f"{wording.format_number(value)} {unit}".rstrip()


def _share(line: Mapping[str, Any], key: str) -> str:
    """A share of a table, a dash where it is not there."""
    return wording.format_percent(line.get(key))
