"""Wording of privacy guarantees for readers who do not know differential privacy."""

import math
from collections.abc import Mapping
from typing import Any

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.release import PrivacyUnit
from sottovoce.shared.privacy.schemes import scheme_for

_WHO = {
    PrivacyUnit.UTTERANCE: "Whoever sees everything that a device sends, the server included,",
    PrivacyUnit.USER: "Whoever sees every model that was released",
}
_DOUBT = {
    PrivacyUnit.UTTERANCE: "and doubts whether one given recording was used, can become",
    PrivacyUnit.USER: "and doubts whether one given person's recordings were used, can become",
}
_BUT = "starting from even odds, but for a chance of"
_NO_PROMISE = (
    "This run made no privacy promise: epsilon is unbounded, and what devices sent may reveal "
    "their recordings. It shows what the task allows without privacy. Do not deploy it."
)


def format_percent(share: float | None, digits: int = 1) -> str:
    r"""Format a share as a percentage, kept on one line; a dash where nothing was measured.

    Example:
        >>> format_percent(0.7312), format_percent(None)
        ('73.1\u202f%', '–')
    """
    return "–" if share is None else f"{100 * share:.{digits}f}\u202f%"


def format_number(value: float | None, digits: int = 3) -> str:
    """Format a number with so many significant digits, whole numbers in full; a dash for None.

    Example:
        >>> format_number(7.9164), format_number(120_000), format_number(1e-05), format_number(None)
        ('7.92', '120,000', '1e-5', '–')
    """
    if value is None:
        return "–"
    # Above 1e15 a double no longer has its last digit: the short form is more honest.
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.{digits}g}".replace("e-0", "e-")


def format_signed(value: float) -> str:
    """Format a change with its sign and three significant digits.

    Example:
        >>> format_signed(-0.01234), format_signed(0.5)
        ('-0.0123', '+0.5')
    """
    return f"{value:+.3g}".replace("e-0", "e-")


def format_chance(delta: float | None) -> str:
    """Format a small probability in words, as in "1 in 100,000".

    Example:
        >>> format_chance(1e-5), format_chance(0)
        ('1 in 100,000', 'none')
    """
    if delta is None:
        return "–"
    return f"1 in {round(1 / delta):,}" if delta > 0 else "none"


def attacker_certainty(epsilon: float) -> str:
    r"""Compute how sure an attacker at even odds can become under epsilon, at worst.

    From the odds ratio e^epsilon (Kasiviswanathan & Smith, On the 'Semantics' of Differential
    Privacy, 2014).

    Example:
        >>> attacker_certainty(1.0), attacker_certainty(8.0)
        ('73.1\u202f%', '99.97\u202f%')
    """
    sure = 1 / (1 + math.exp(-epsilon))
    # Rounded to two digits it would read 100 %, which no finite epsilon allows.
    if sure >= 0.9999:
        return "more than 99.99\u202f%"
    return format_percent(sure, 1 if sure < 0.999 else 2)


def promise_strength(epsilon: float | None) -> str:
    """Name the strength of a guarantee, after the tiers of Ponomareva et al. (2023).

    How to DP-fy ML: a practical guide to machine learning with differential privacy.

    Example:
        >>> promise_strength(0.5), promise_strength(8.0), promise_strength(None)
        ('strong', 'moderate', 'none')
    """
    if epsilon is None:
        return "none"
    # "not >=": NaN must not be called weak.
    if not epsilon >= 0:
        raise SettingError(f"epsilon is {epsilon}; it must be 0 or above")
    return "strong" if epsilon <= 1 else "moderate" if epsilon <= 10 else "weak"


def is_promised(privacy: Mapping[str, Any]) -> bool:
    """Tell whether a record promises an epsilon: its unit does, and the record names one.

    Example:
        >>> is_promised({"unit": "user", "epsilon": 1.0})
        True
        >>> is_promised({"unit": "none", "epsilon": 1.0})
        False
    """
    return bool(scheme_for(privacy["unit"]).promised) and privacy["epsilon"] is not None


def summarise_promise(privacy: Mapping[str, Any]) -> str:
    """Summarise the guarantee in one line, for a heading.

    Example:
        >>> summarise_promise({"unit": "user", "epsilon": 8.0, "delta": 1e-5})
        'ε = 8 per user, δ = 1e-5'
    """
    if not is_promised(privacy):
        return "no guarantee"
    unit = scheme_for(privacy["unit"]).wording.name
    return (
        f"ε = {format_number(privacy['epsilon'])} per {unit}, δ = {format_number(privacy['delta'])}"
    )


def explain_promise(privacy: Mapping[str, Any]) -> list[str]:
    """Explain the guarantee in plain sentences.

    Args:
        privacy: Content of privacy.json, or the section "privacy" of run.json.

    Example:
        >>> explain_promise({"unit": "none", "epsilon": None})[0][:37]
        'This run made no privacy promise: eps'
    """
    if not is_promised(privacy):
        return [_NO_PROMISE]
    epsilon, scheme = privacy["epsilon"], scheme_for(privacy["unit"])
    # Further units have terms of their own.
    terms = [privacy, *(privacy.get(unit.value) or {} for unit in scheme.promised[1:])]
    sentences = [
        _explain_unit(unit, one)
        for unit, one in zip(scheme.promised, terms, strict=True)
        if one.get("epsilon") is not None
    ]
    sentences.append(
        f"As a worst-case bound, ε = {format_number(epsilon)} is {promise_strength(epsilon)}: "
        "smaller is stronger, and below 1 is strong. It holds against any attack, also one not yet "
        "invented."
    )
    return [*sentences, scheme.wording.limits] if scheme.wording.limits else sentences


def _explain_unit(unit: PrivacyUnit, terms: Mapping[str, Any]) -> str:
    """What an attacker can learn of one unit, in a sentence."""
    sure, chance = attacker_certainty(terms["epsilon"]), format_chance(terms["delta"])
    return f"{_WHO[unit]} {_DOUBT[unit]} at most {sure} sure of it, {_BUT} {chance}."
