"""The whole guarantee on privacy.html: adversaries, privacy curve, groups, and the choice of delta.

Everything comes from privacy.json, where a run's scheme and ledgers wrote it; a run of an earlier
release has none of it, and its page says nothing about it.
"""

from typing import Any, Final

from sottovoce.shared.privacy.guarantees.adversaries import NEIGHBOURING_NOTE
from sottovoce.shared.privacy.guarantees.privacy_curve import USUAL_FALSE_ALARM
from sottovoce.shared.privacy.release import PrivacyUnit
from sottovoce.simulations.reports import figures, wording
from sottovoce.simulations.results.schema import Table

_UNITS: Final = {
    PrivacyUnit.UTTERANCE: ("utterance", "utterances"),
    PrivacyUnit.USER: ("user", "users"),
}
PRODUCTION_NOTE: Final = (
    "Production systems state it at smaller δ: Gboard's language models "
    "have ε from 0.994 to 13.69 per user at δ = 1e-10 (Google, 2024)."
)
_WHOLE_USER: Final = {
    PrivacyUnit.UTTERANCE: (),
    PrivacyUnit.USER: ("All utterances of a user count as one user: ε covers them together.",),
}
"""What a unit says of all that one user has, beside the groups in the record."""
_DELTA_REASONS: Final = {
    PrivacyUnit.UTTERANCE: (
        "δ bounds the chance that the promise fails altogether, so it must be well below one over "
        "the number of utterances."
    ),
    PrivacyUnit.USER: (
        "δ bounds the chance that the promise fails altogether, so it must be well below one over "
        "the number of users. Corpora have tens of users, hence 1e-3; a population needs less."
    ),
}


def build_guarantee_context(privacy: Table) -> dict[str, Any]:
    """Build what the template shows of adversaries and curves.

    Args:
        privacy: Content of privacy.json.
    """
    curves = privacy.get("curves") or {}
    rows = privacy.get("adversaries") or []
    return {
        "adversary_rows": [[one["adversary"], one["holds"], one["assumption"]] for one in rows],
        "neighbouring_note": NEIGHBOURING_NOTE,
        "curve_sections": [
            _curve_section(unit, curves[unit.value]) for unit in PrivacyUnit if unit.value in curves
        ],
    }


def _curve_section(unit: PrivacyUnit, curve: Table) -> dict[str, Any]:
    """One unit's curve: a picture, its numbers and what they mean in sentences."""
    points = list(zip(curve["tradeoff"]["alpha"], curve["tradeoff"]["beta"], strict=True))
    one, many = _UNITS[unit]
    return {
        "title": f"The whole curve, for one {one}",
        "plot": figures.plot_tradeoff(unit.value, points, curve["mu"]) if points else None,
        "points": [[wording.format_number(a, 4), wording.format_number(b, 4)] for a, b in points],
        "facts": [
            ("μ of Gaussian DP", wording.format_number(curve["mu"], 4)),
            ("ε at other δ", _other_deltas(curve)),
            ("Computed by", curve["basis"]),
        ],
        "group_rows": [
            [_group_name(group, many), _epsilon(group["epsilon"])] for group in curve["groups"]
        ],
        "sentences": [
            *([_test_sentence(one, points)] if points else []),
            *explain_groups(unit, curve),
            _DELTA_REASONS[unit],
            f"The same noise has {_other_deltas(curve)}. {PRODUCTION_NOTE}",
        ],
    }


def _test_sentence(one: str, points: list[tuple[float, float]]) -> str:
    """What the curve means at the usual level of a test."""
    beta = dict(points)[USUAL_FALSE_ALARM]
    return (
        f"Whoever tests from everything that was released whether one given {one} was there, and "
        f"is wrong about an absent one in {wording.format_percent(USUAL_FALSE_ALARM, 0)} of all "
        f"cases, recognises a present one in at most {wording.format_percent(1 - beta)}. Guessing "
        f"recognises {wording.format_percent(USUAL_FALSE_ALARM, 0)}."
    )


def explain_groups(unit: PrivacyUnit, curve: Table) -> list[str]:
    """Say what several units together are promised, in sentences that an owner understands.

    Args:
        unit: Whose presence the curve hides.
        curve: Its record in privacy.json.

    Example:
        >>> groups = [{"changes": 2, "epsilon": 19.12}]
        >>> explain_groups(PrivacyUnit.UTTERANCE, {"groups": groups, "delta": 1e-05})[0]
        'Several utterances together are protected less: ε is 19.1 for 2, at the same δ.'
    """
    _, many = _UNITS[unit]
    usual = [group for group in curve["groups"] if not group.get("all_of_a_user")]
    listed = ", ".join(f"{_epsilon(group['epsilon'])} for {group['changes']}" for group in usual)
    sentences = [f"Several {many} together are protected less: ε is {listed}, at the same δ."]
    return [
        *sentences,
        *_WHOLE_USER[unit],
        *(
            f"For all {group['changes']} utterances of the user who has most, ε is "
            f"{_epsilon(group['epsilon'])}{_no_protection(group['epsilon'])}."
            for group in curve["groups"]
            if group.get("all_of_a_user")
        ),
    ]


def _no_protection(epsilon: float | None) -> str:
    """What a large epsilon comes to."""
    if epsilon is not None and wording.promise_strength(epsilon) != "weak":
        return ""
    return (
        ": that the user took part can become as good as certain, and this promise does not "
        "prevent it"
    )


def _group_name(group: Table, many: str) -> str:
    """How many units are hidden together."""
    whole = ", all of the user who has most" if group.get("all_of_a_user") else ""
    return f"{group['changes']} {many}{whole}"


def _other_deltas(curve: Table) -> str:
    """Epsilon of the same noise at other deltas, in a row."""
    return ", ".join(
        f"ε = {_epsilon(one['epsilon'])} at δ = {wording.format_number(one['delta'])}"
        for one in curve["other_deltas"]
    )


def _epsilon(value: float | None) -> str:
    """An epsilon with three digits; the sign of infinity where there is none."""
    return "∞" if value is None else wording.format_number(float(f"{value:.3g}"))
