"""Plain-text table of an audit's results."""

from collections.abc import Iterator

from sottovoce.simulations.results.schema import Attacks, AttacksByVariant, AuditRecord, Table

_HEADS = {"as_run": "this run", "noise_off": "privacy off"}
_BOUND_NAMES = {
    "many_run": "epsilon of an utterance",
    "first_message": "epsilon of the first message",
    "last_message": "epsilon of the last message",
    "one_run": "epsilon, one run by (epsilon, delta)",
    "one_run_f_dp": "epsilon, one run by f-DP",
    "summed_scores": "epsilon, one run by summed scores",
    "many_run_user": "epsilon of a user",
}


def format_table(audit: AuditRecord) -> list[str]:
    """Format the audit for people: each attack's result, the verdict last."""
    attacks = audit["attacks"]
    columns = {key: dict(_cells(found)) for key, found in _variants(attacks)}
    names = list(dict.fromkeys(name for cells in columns.values() for name in cells))
    rows = [("attack", *(_HEADS[name] for name in columns))]
    rows += [(name, *(cells.get(name, "") for cells in columns.values())) for name in names]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [
        _heading(audit),
        f"the attacker sees {audit.get('threat_model', 'all')}",
        "",
        lines[0],
        "  ".join("-" * width for width in widths),
        *lines[1:],
        "",
        *_exact_normaliser_lines(audit),
        format_verdict(audit),
    ]


def _variants(attacks: AttacksByVariant) -> Iterator[tuple[str, Attacks]]:
    """The run as it was, and with its noise off where that was tried."""
    yield "as_run", attacks["as_run"]
    if noiseless := attacks.get("noise_off"):
        yield "noise_off", noiseless


def _heading(audit: Table) -> str:
    """What was attacked."""
    claim = "nothing is claimed" if audit["epsilon"] is None else f"claim {audit['epsilon']:g}"
    return (
        f"unit {audit['unit']}, {claim} at delta {audit['delta']:g}; {audit['fold']}, "
        f"{audit['users']} users, {audit['rounds']} rounds; confidence {audit['confidence']:g}"
    )


def _cells(found: Table) -> Iterator[tuple[str, str]]:
    """Every figure of one column, by its name."""
    # The dictionary's order is the table's.
    for key, words in _BOUND_NAMES.items():
        if key in found:
            yield from _bound_cells(words, found[key])
    for whose, member in found["membership"].items():
        yield f"membership of one {whose}: AUC", f"{member['auc']:.3f}"
        yield f"  found at 1 % false alarms ({whose})", f"{member['tpr']:.3f}"
    for rounds, parts in found.get("gender", {}).items():
        yield from _parts(f"gender after {_rounds(rounds)}: UAR", parts)
    for rounds, parts in found["speaker"].items():
        yield from _parts(f"speaker after {_rounds(rounds)}: share named right", parts)
    for batch, cosine in found["inversion"].items():
        yield f"features from a batch of {batch}: cosine", f"{cosine:.3f}"


def _bound_cells(words: str, bound: Table) -> Iterator[tuple[str, str]]:
    """A bound, what its trials or canaries could have shown at most, and the Gaussian reading."""
    tried = f"{bound['trials']} trials" if "trials" in bound else f"{bound['canaries']} canaries"
    if "epsilon" in bound:
        # Audits of earlier versions did not say the ceiling of one run.
        most = f" of at most {bound['ceiling']:.2f}" if "ceiling" in bound else ""
        yield words, f">= {bound['epsilon']:.2f}{most} ({tried})"
    if "epsilon_gaussian" in bound:
        yield f"  if Gaussian ({words})", f">= {bound['epsilon_gaussian']:.2f} ({tried})"


def _rounds(number: str) -> str:
    """Rounds in words."""
    return "1 round" if number == "1" else f"{number} rounds"


def _parts(name: str, parts: Table) -> Iterator[tuple[str, str]]:
    """What each part of the messages gives, in a line of its own."""
    for part, value in parts.items():
        yield f"{name}, from {part}", f"{value:.3f}"


def _exact_normaliser_lines(audit: Table) -> Iterator[str]:
    """What an exact normaliser would have cost."""
    attack = audit.get("exact_normaliser_attack")
    if attack:
        yield (
            "with an exact normaliser that nobody booked: "
            f"epsilon >= {attack['epsilon']:.2f}, if it were Gaussian >= "
            f"{attack['epsilon_gaussian']:.2f} ({attack['trials']} trials)"
        )


def format_verdict(audit: AuditRecord) -> str:
    """Format the tightest bounds of all, and whether they stayed below the claim."""
    lower, gaussian = audit["epsilon_lower"], audit["epsilon_lower_gaussian"]
    shown, claim = f"epsilon {lower:.2f}, if Gaussian {gaussian:.2f}", audit["epsilon"]
    if claim is None:
        return f"tightest of all: at least {shown}; this run claims nothing"
    if audit["holds"]:
        return f"no attack showed more than {shown}: below the claim, {claim:g}"
    return f"BROKEN: an attack showed {shown}; the run claims {claim:g}"
