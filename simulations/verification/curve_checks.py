"""Comparison of curves and adversaries in ``privacy.json`` with ledgers and scheme."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.accounting import MAX_GROUP
from sottovoce.shared.privacy.guarantees.privacy_curve import compute_privacy_curve
from sottovoce.shared.privacy.release import PrivacyUnit, Release
from sottovoce.shared.privacy.schemes import find_scheme
from sottovoce.simulations.results.schema import to_plain_json
from sottovoce.simulations.verification.ledger_checks import is_close

_MAX_GROUPS = 16
"""Groups of a curve that are computed again: a record may come from anybody."""


def curve_mismatches(
    privacy: Mapping[str, Any], ledgers: Iterable[tuple[PrivacyUnit, list[Release]]]
) -> Iterator[str]:
    """Compute each curve again from the ledger of its unit that spent most.

    Args:
        privacy: Content of ``privacy.json``.
        ledgers: The releases of every ledger, and the unit that its account is of.
    """
    curves = privacy.get("curves") or {}
    most: dict[str, tuple[float, list[Release]]] = {}
    for unit, releases in ledgers:
        if unit.value in curves:
            delta = _delta_of(curves[unit.value])
            spent = accounting.compute_epsilon(releases, delta, unit=unit)
            if unit.value not in most or spent > most[unit.value][0]:
                most[unit.value] = (spent, releases)
    for name, stated in curves.items():
        if name not in most:
            yield f"privacy.json has a curve for one {name}, of which there is no ledger"
            continue
        groups = [one["changes"] for one in stated["groups"]]
        if len(groups) > _MAX_GROUPS or not all(1 <= size <= MAX_GROUP for size in groups):
            yield (
                f"privacy.json lists {len(groups)} groups for one {name}; there can be "
                f"{_MAX_GROUPS}, of 1 to {MAX_GROUP:,} each"
            )
            continue
        found = compute_privacy_curve(
            most[name][1], _delta_of(stated), unit=PrivacyUnit(name), group_sizes=groups
        )
        wanted = dict(_leaves(to_plain_json(found.to_record() if found else {})))
        there = {
            path: value
            for path, value in _leaves(dict(stated))
            if not path.endswith(".all_of_a_user")
        }
        for path in sorted({*wanted, *there}):
            if not is_close(there.get(path), wanted.get(path)):
                yield (
                    f"privacy.json says curves.{name}{path} {there.get(path)}, the ledger that "
                    f"spent most comes to {wanted.get(path)}"
                )
                break


def adversary_mismatches(privacy: Mapping[str, Any], *, secure: bool) -> Iterator[str]:
    """Compare the table of adversaries with what the scheme says.

    Args:
        privacy: Content of ``privacy.json``.
        secure: Whether sums were asked to be secure.
    """
    stated = privacy.get("adversaries")
    scheme = find_scheme(str(privacy["unit"]), secure=secure)
    if stated is None or scheme is None:
        return
    wanted = [one.to_record() for one in scheme.adversaries()]
    if [dict(row) for row in stated] != wanted:
        yield (
            f"privacy.json states other adversaries than unit {privacy['unit']} does: people read "
            "another promise than was made"
        )


def _delta_of(curve: Mapping[str, Any]) -> float:
    """The curve's delta; one half, which no promise has, where there is none to compute with."""
    delta = curve["delta"]
    return delta if isinstance(delta, float) and 0 < delta < 1 else 0.5


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every number and text, by its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{number}]")
    else:
        yield path, value
