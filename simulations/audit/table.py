"""Plain-text table of an audit's results."""

from collections.abc import Iterator

from sottovoce.simulations.results.schema import Attacks, AttacksByVariant, AuditRecord, Table

_HEADS = {"as_run": "this run", "noise_off": "privacy off"}
_BOUND_NAMES = {
    "many_run": "epsilon of an utterance",
    "first_message": "epsilon of the first message",
    "last_message": "epsilon of the last message",
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
            yield words, f">= {found[key]['epsilon']:.2f} ({found[key]['trials']} trials)"
            yield f"  if Gaussian ({words})", f">= {found[key]['epsilon_gaussian']:.2f}"
    if "one_run" in found:
        one = found["one_run"]
        yield f"epsilon, one run, {one['canaries']} canaries", f">= {one['epsilon']:.2f}"
    for whose, member in found["membership"].items():
        yield f"membership of one {whose}: AUC", f"{member['auc']:.3f}"
        yield f"  found at 1 % false alarms ({whose})", f"{member['tpr']:.3f}"
    for rounds, parts in found.get("gender", {}).items():
        yield from _parts(f"gender after {_rounds(rounds)}: UAR", parts)
    for rounds, parts in found["speaker"].items():
        yield from _parts(f"speaker after {_rounds(rounds)}: share named right", parts)
    for batch, cosine in found["inversion"].items():
        yield f"features from a batch of {batch}: cosine", f"{cosine:.3f}"


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
    """Format whether the attacks stayed below the claim."""
    lower, claim = audit["epsilon_lower"], audit["epsilon"]
    if claim is None:
        return f"epsilon is at least {lower:.2f}; this run claims nothing"
    if audit["holds"]:
        return f"no attack showed more than epsilon {lower:.2f}: below the claim, {claim:g}"
    return f"BROKEN: an attack showed epsilon {lower:.2f}; the run claims {claim:g}"
