"""An entry for the Differential Privacy Deployments Registry, from a finished run.

The registry (https://registry.opendp.org) describes deployments by a schema that follows
Nanayakkara, Ghazi and Vadhan (https://arxiv.org/abs/2509.13509); its repository of entries
(``opendp/deployments-registry-data``, ``schemas/deployments-schema.yaml``) was read in July 2026.
Facts that no run knows (who publishes, where, since when) are left to be filled in, and named.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.guarantees.adversaries import NEIGHBOURING_NOTE
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.simulations.results.schema import Json
from sottovoce.simulations.verification.statement import list_statement_parts

TO_BE_FILLED_IN: Final = "To be filled in by the publisher"
_FORM_DATE: Final = "1970-01-01"
FIELDS_TO_FILL_IN: Final = (
    "deployment.basic.data_curators",
    "deployment.basic.data_product_region",
    "deployment.basic.publication_date",
    "deployment.administrative.registry_authors",
)
"""Facts of a publication that a run does not know."""


def make_registry_entry(privacy: Mapping[str, Any], run: Mapping[str, Any]) -> Json:
    """Make the registry's entry of a run, tier 3, as a draft.

    Args:
        privacy: Content of ``privacy.json``.
        run: Content of ``run.json``.

    Returns:
        The entry; the fields in ``FIELDS_TO_FILL_IN`` are placeholders.

    Raises:
        SettingError: The run promises nothing: the registry lists differentially private releases.
    """
    scheme = scheme_for(privacy["unit"])
    if not scheme.promised or privacy["epsilon"] is None:
        raise SettingError(
            "this run promises no epsilon, and the registry lists differentially private "
            "releases: publish a run with unit utterance, user or both"
        )
    parts = list_statement_parts(privacy)
    corpus = run["corpus"]
    name = f"Speech emotion recogniser ({corpus['name']}, unit {privacy['unit']})"
    return {
        "url_slug": re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"),
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "basic": {
                "name": name,
                "data_curators": [TO_BE_FILLED_IN],
                "description": (
                    f"A model that classifies how a voice sounds ({', '.join(corpus['emotions'])}),"
                    f" trained by federated learning over {run['rounds']} rounds."
                ),
                "intended_use": "Speech emotion recognition on the device of the user.",
                "data_product_type": "Machine learning model",
                "data_product_region": TO_BE_FILLED_IN,
                "publication_date": _FORM_DATE,
                "data_product_sector": "Technology",
            },
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": (
                    f"Labelled recordings of {corpus['speakers']} speakers "
                    f"({corpus['clips']} recordings)."
                ),
                "unprotected_quantities": parts["not_protected"],
            },
            "privacy_loss": _privacy_loss(privacy, parts),
            "deployment_model": {
                "model_name": "Federated",
                "model_name_details": _table_of_adversaries(privacy),
                "release_type": "Many releases",
                "release_type_details": (
                    f"{parts['sampling']} The budget covers a device's whole life and does not "
                    "reset; a release above it is refused."
                ),
                "data_source_type": "Static",
                "access_type": "Non-interactive",
            },
            "accounting": {
                "post_processing": (
                    "Federated averaging, calibration and personalisation of the noised sums."
                ),
                "composition": f"{parts['accountant']} {parts['composition']}",
            },
            "implementation": {
                "preprocessing_and_hyperparameter_tuning": _tuning(privacy),
                "mechanisms": f"Gaussian mechanism. {parts['clip']} {parts['noise']}",
                "justification": parts["assumptions"],
            },
            "administrative": {
                "notes": "Made by `sottovoce verify RUN --registry` from the run's own ledgers.",
                "registry_authors": [TO_BE_FILLED_IN],
            },
        },
    }


def _privacy_loss(privacy: Mapping[str, Any], parts: Mapping[str, str]) -> Json:
    """Unit and parameters; where two units are promised, the first one's numbers."""
    curves = privacy.get("curves") or {}
    mus = [
        f"Gaussian DP with mu {curve['mu']:.4g} for one {unit}."
        for unit, curve in curves.items()
        if curve["mu"] is not None
    ]
    return {
        "privacy_unit": scheme_for(privacy["unit"]).wording.name,
        "privacy_unit_details": f"{parts['neighbouring']}",
        "privacy_parameters": {"epsilon": privacy["epsilon"], "delta": privacy["delta"]},
        "privacy_parameters_details": " ".join([parts["guarantee"], *mus]),
    }


def _table_of_adversaries(privacy: Mapping[str, Any]) -> str:
    """Who must be trusted with what, in one text."""
    rows = privacy.get("adversaries") or ()
    listed = [f"{row['adversary']}: {row['holds']}. {row['assumption']}" for row in rows]
    return " ".join(listed) or NEIGHBOURING_NOTE


def _tuning(privacy: Mapping[str, Any]) -> str:
    """Whether choosing settings was paid for."""
    tuned = privacy.get("tuned")
    if not tuned:
        return "Choosing settings by looking at results is not part of the stated epsilon."
    costs = [f"{tuned[unit]:.4g} for one {unit}" for unit in ("utterance", "user") if unit in tuned]
    text = f"{tuned['runs']} runs were compared; together they cost epsilon {', '.join(costs)}."
    best = tuned.get("selection") or {}
    less = [f"{best[unit]:.4g} for one {unit}" for unit in ("utterance", "user") if unit in best]
    if not less:
        return text
    return (
        f"{text} Had their number been drawn at random ({best['distribution']}, mean "
        f"{best['mean_runs']}) and only the best been released, it would cost {', '.join(less)}."
    )


def format_yaml(entry: Mapping[str, Any], *, indent: str = "") -> str:
    r"""Format an entry as YAML, every text in double quotes, which its checks accept.

    Args:
        entry: Tables, lists of texts, texts and numbers.
        indent: What each line begins with.

    Example:
        >>> print(format_yaml({"tier": 3, "deployment": {"basic": {"name": 'a "b"'}}}))
        "tier": 3
        "deployment":
          "basic":
            "name": "a \"b\""
    """
    lines = []
    for key, value in entry.items():
        name = f"{indent}{json.dumps(key)}:"
        if isinstance(value, Mapping):
            lines += [name, format_yaml(value, indent=f"{indent}  ")]
        elif isinstance(value, list):
            lines += [name, *(f"{indent}  - {_scalar(one)}" for one in value)]
        else:
            lines.append(f"{name} {_scalar(value)}")
    return "\n".join(lines)


def _scalar(value: str | float) -> str:
    """A text or number: a string of JSON is one of YAML."""
    return json.dumps(value, ensure_ascii=False)
