"""A run's guarantee as one paragraph that leaves no assumption out.

Everything is read from ``privacy.json``, so it is only as good as ``verify`` finds that file; the
command prints a statement of a run that agrees with its ledgers, and of no other.
"""

from collections.abc import Mapping
from typing import Any, Final

from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.guarantees.adversaries import NEIGHBOURING_NOTE, Adversary
from sottovoce.shared.privacy.release import PrivacyUnit
from sottovoce.shared.privacy.schemes import scheme_for

_NOT_STATED: Final = "The record of this earlier release does not state them."


def list_statement_parts(privacy: Mapping[str, Any]) -> dict[str, str]:
    """List what a statement of the guarantee says, by subject, in the order of its sentences.

    Args:
        privacy: Content of ``privacy.json``.

    Returns:
        Whole sentences by subject: ``guarantee``, ``unit``, ``neighbouring``, ``sampling``,
        ``clip``, ``noise``, ``delta``, ``accountant``, ``curve``, ``composition``,
        ``colluders``, ``assumptions`` and ``not_protected``. A run without a promise has no terms.
    """
    parts = {"guarantee": privacy["statement"]}
    terms = _promised_terms(privacy)
    if terms:
        parts |= {
            "unit": f"Unit of privacy: {' and '.join(unit.value for unit in terms)}.",
            "neighbouring": "Neighbouring relation: "
            f"{'; '.join(one['neighbouring'] for one in terms.values())}. {NEIGHBOURING_NOTE}",
            "sampling": f"Sampling: {privacy['sampling']}.",
            "clip": _sentence("L2 bound of a round", terms, "clip_norm"),
            "noise": _sentence("Noise multiplier of a round", terms, "noise_multiplier"),
            "delta": _sentence("Delta", terms, "delta"),
            "accountant": f"Accountant: {privacy['accountant']}; most spent {_spent(privacy)}.",
            "curve": f"Whole curve: {_curves(privacy)}",
            "composition": "Adaptive composition: "
            + "; ".join(
                f"for one {unit.value} by the {accounting.rule_from_record(one).name}"
                for unit, one in terms.items()
            )
            + ".",
            "colluders": f"Colluders: {_colluders(privacy)}",
        }
    parts["assumptions"] = f"It rests on this: {' '.join(privacy['assumptions'])}"
    parts["not_protected"] = f"Not protected: {' '.join(privacy['not_protected'])}"
    return parts


def write_statement(privacy: Mapping[str, Any]) -> str:
    """Write the guarantee as one paragraph with every assumption.

    Args:
        privacy: Content of ``privacy.json``.
    """
    return " ".join(list_statement_parts(privacy).values())


def _promised_terms(privacy: Mapping[str, Any]) -> dict[PrivacyUnit, Mapping[str, Any]]:
    """The terms of each promised unit: the first one's are at the top."""
    promised = scheme_for(privacy["unit"]).promised
    found = [privacy, *(privacy.get(unit.value) or {} for unit in promised[1:])]
    pairs = zip(promised, found, strict=False)
    return {unit: terms for unit, terms in pairs if terms.get("epsilon") is not None}


def _sentence(name: str, terms: Mapping[PrivacyUnit, Mapping[str, Any]], key: str) -> str:
    """One term of every unit."""
    values = [f"{one[key]:.6g} for one {unit.value}" for unit, one in terms.items()]
    return f"{name}: {'; '.join(values)}."


def _curves(privacy: Mapping[str, Any]) -> str:
    """Mu and groups of every unit."""
    found = [
        f"for one {unit} {_mu(curve['mu'])}; at the same delta "
        + ", ".join(f"{one['changes']} together cost {_epsilon(one)}" for one in curve["groups"])
        for unit, curve in (privacy.get("curves") or {}).items()
    ]
    return f"{'; '.join(found)}." if found else _NOT_STATED


def _mu(mu: float | None) -> str:
    """Mu of Gaussian differential privacy, or that there is none."""
    return "no single Gaussian" if mu is None else f"mu {mu:.4g} of Gaussian differential privacy"


def _epsilon(group: Mapping[str, Any]) -> str:
    """A group's epsilon."""
    return "no finite epsilon" if group["epsilon"] is None else f"epsilon {group['epsilon']:.4g}"


def _spent(privacy: Mapping[str, Any]) -> str:
    """The most that any ledger spent, of devices and of the server's sums."""
    of_clients = [one for fold in privacy["folds"] for one in fold["clients"].values()]
    of_sums = [fold["server"] for fold in privacy["folds"] if fold.get("server")]
    most = [
        f"{max(one['epsilon'] for one in accounts):.6g} {whose}"
        for whose, accounts in (("by a device", of_clients), ("by the sums", of_sums))
        if accounts and all(one["epsilon"] is not None for one in accounts)
    ]
    return f"epsilon {' and '.join(most)}" if most else "nothing that has an epsilon"


def _colluders(privacy: Mapping[str, Any]) -> str:
    """What holds against a coalition, with its assumption."""
    rows = privacy.get("adversaries") or ()
    found = [one for one in rows if one["adversary"] == Adversary.COALITION.value]
    return f"{found[0]['holds']}. {found[0]['assumption']}" if found else _NOT_STATED
