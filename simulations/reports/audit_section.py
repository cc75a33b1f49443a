"""Section of privacy.html on the audit: results of the attacks on a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from sottovoce.simulations.reports.wording import format_number, format_percent
from sottovoce.simulations.results.schema import Table

ATTACK_COLUMNS: Mapping[str, str] = {"as_run": "this run", "noise_off": "its privacy switched off"}
_BOUNDS = {
    "many_run": "one utterance, many trials",
    "first_message": "one utterance, first message alone",
    "last_message": "one utterance, last message alone",
    "one_run": "one utterance, one run with many canaries",
    "one_run_f_dp": "one utterance, one run with many canaries, by f-DP",
    "summed_scores": "one utterance, one run with many canaries, by their scores",
    "many_run_user": "one user, many trials",
}


def build_audit_context(audit: Table) -> dict[str, Any]:
    """Build the template's context: headings of both tables, and their rows."""
    found = audit["attacks"]
    return {
        "attack_columns": [ATTACK_COLUMNS[name] for name in found],
        "bound_rows": list(_bounds(audit)),
        "attack_rows": list(_joined(found)),
    }


def _bounds(audit: Table) -> Iterator[list[str]]:
    """Lower bounds on epsilon: what was attacked, how, how often, what it showed."""
    for column, found in audit["attacks"].items():
        for name, words in _BOUNDS.items():
            if name in found:
                bound = found[name]
                yield [ATTACK_COLUMNS[column], words, _trials(bound), *_shown(bound)]
    # Only runs with a normaliser have this attack; it audits a variant that the run never used.
    bound = audit.get("exact_normaliser_attack")
    if bound:
        words = "one utterance, if training used the exact mean of a user and booked nothing for it"
        yield ["exact normaliser", words, _trials(bound), *_shown(bound)]


def _trials(bound: Table) -> str:
    """How often it was tried."""
    if "trials" in bound:
        return f"{format_number(bound['trials'])} trials"
    return f"{format_number(bound['canaries'])} canaries"


def _shown(bound: Table) -> list[str]:
    """The bound that supposes nothing, and the one for Gaussian mechanisms."""
    return [format_number(bound.get("epsilon")), format_number(bound.get("epsilon_gaussian"))]


def _joined(found: Table) -> Iterator[list[str]]:
    """One row an attack, one column for each way of running it."""
    columns = [dict(_rates(one)) for one in found.values()]
    # A dictionary of names, in order and once each: the columns need not have the same attacks.
    for name in dict.fromkeys(name for column in columns for name in column):
        yield [name, *(column.get(name, "–") for column in columns)]


def _rates(found: Table) -> Iterator[tuple[str, str]]:
    """Every rate of one column, by its name."""
    for whose, member in found["membership"].items():
        yield f"was this {whose} in it: AUC (½: blind)", format_number(member["auc"])
        yield (
            f"was this {whose} in it: found at 1\u202f% false alarms",
            format_percent(member["tpr"]),
        )
    for kind, words in (("gender", "gender: UAR (½: blind)"), ("speaker", "name of the user")):
        for rounds, parts in found.get(kind, {}).items():
            for part, share in parts.items():
                yield f"{words}, {_rounds_seen(rounds)}, {part}", format_number(share)
    for batch, cosine in found["inversion"].items():
        yield f"features from a batch of {batch}: cosine (0: blind)", format_number(cosine)


def _rounds_seen(rounds: str) -> str:
    """Rounds in words."""
    return "1 round seen" if rounds == "1" else f"{rounds} rounds seen"
