"""What attacks on a run reached, told for people: the audit's section of privacy.html."""

from collections.abc import Iterator, Mapping
from typing import Any

from sottovoce.simulations.reports.words import number, percent

Json = Mapping[str, Any]

COLUMNS: Mapping[str, str] = {"as_run": "this run", "noise_off": "its privacy switched off"}
_BOUNDS = {
    "many_run": "one utterance, many lives",
    "first_message": "one utterance, first message alone",
    "last_message": "one utterance, last message alone",
    "one_run": "one utterance, one life with many canaries",
    "many_run_user": "one user, many lives",
}


def sections(audit: Json) -> dict[str, Any]:
    """What the template needs: heads of both tables and their rows."""
    found = audit["attacks"]
    return {
        "attack_columns": [COLUMNS[name] for name in found],
        "bound_rows": list(_bounds(audit)),
        "attack_rows": list(_joined(found)),
    }


def _bounds(audit: Json) -> Iterator[list[str]]:
    """Lower bounds on epsilon: what was attacked, how, how often, what it showed."""
    for column, found in audit["attacks"].items():
        for name, words in _BOUNDS.items():
            if name in found:
                bound = found[name]
                lives = f"{number(bound['lives'])} lives" if "lives" in bound else "1 life"
                yield [COLUMNS[column], words, lives, *_shown(bound)]
    trap = audit.get("normaliser_trap")
    if trap:
        words = "one utterance, if training used the exact mean of a user and booked nothing for it"
        yield ["the trap", words, f"{number(trap['lives'])} lives", *_shown(trap)]


def _shown(bound: Json) -> list[str]:
    """The bound that supposes nothing, and the one for Gaussian mechanisms."""
    return [number(bound["epsilon"]), number(bound.get("epsilon_gaussian"))]


def _joined(found: Json) -> Iterator[list[str]]:
    """One row an attack, one column for each way of running it."""
    columns = [dict(_rates(one)) for one in found.values()]
    for name in dict.fromkeys(name for column in columns for name in column):
        yield [name, *(column.get(name, "–") for column in columns)]


def _rates(found: Json) -> Iterator[tuple[str, str]]:
    """Every rate of one column, by its name."""
    for whose, member in found["membership"].items():
        yield f"was this {whose} in it: AUC (½: blind)", number(member["auc"])
        yield f"was this {whose} in it: found at 1\u202f% false alarms", percent(member["tpr"])
    for kind, words in (("gender", "gender: UAR (½: blind)"), ("speaker", "name of the user")):
        for rounds, parts in found.get(kind, {}).items():
            for part, share in parts.items():
                yield f"{words}, {_seen(rounds)}, {part}", number(share)
    for batch, cosine in found["inversion"].items():
        yield f"features from a batch of {batch}: cosine (0: blind)", number(cosine)


def _seen(rounds: str) -> str:
    """Rounds in words."""
    return "1 round seen" if rounds == "1" else f"{rounds} rounds seen"
