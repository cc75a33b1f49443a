"""A statement leaves no assumption out, and a registry's entry has the registry's fields."""

import json
from pathlib import Path
from typing import Any

import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.simulations.results.schema import read_privacy, read_run
from sottovoce.simulations.verification.registry import (
    FIELDS_TO_FILL_IN,
    TO_BE_FILLED_IN,
    format_yaml,
    make_registry_entry,
)
from sottovoce.simulations.verification.statement import list_statement_parts, write_statement

Json = dict[str, Any]

FIELDS = {
    "basic": {
        *("name", "data_curators", "intended_use", "data_product_type", "data_product_region"),
        *("description", "publication_date", "data_product_sector"),
    },
    "dp_variant": {"variant_name", "data_domain", "unprotected_quantities"},
    "privacy_loss": {
        *("privacy_unit", "privacy_unit_details", "privacy_parameters"),
        "privacy_parameters_details",
    },
    "deployment_model": {
        *("model_name", "model_name_details", "release_type", "release_type_details"),
        *("data_source_type", "access_type"),
    },
    "accounting": {"post_processing", "composition"},
    "implementation": {"preprocessing_and_hyperparameter_tuning", "mechanisms", "justification"},
    "administrative": {"notes", "registry_authors"},
}
"""Fields of the registry's schema that a run can state; it allows no others there."""


@pytest.fixture(scope="module")
def run(tiny_run: Any) -> Path:
    """A finished run that hides utterances."""
    return Path(tiny_run.folder)


def test_a_statement_names_every_term_and_assumption(run: Path) -> None:
    privacy = read_privacy(run)

    words = write_statement(privacy)

    assert "\n" not in words
    assert words.startswith(privacy["statement"])
    for said in (*privacy["assumptions"], *privacy["not_protected"]):
        assert said in words
    for said in (
        "Unit of privacy: utterance.",
        "add or remove one utterance",
        "one removed and one added",
        privacy["sampling"],
        f"L2 bound of a round: {privacy['clip_norm']:.6g} for one utterance",
        f"Noise multiplier of a round: {privacy['noise_multiplier']:.6g} for one utterance",
        "Delta: 1e-05 for one utterance",
        privacy["accountant"],
        f"mu {privacy['curves']['utterance']['mu']:.4g} of Gaussian differential privacy",
        "Adaptive composition: for one utterance by the Gaussian filter (Smith and Thakurta 2022)",
        "Colluders: (ε, δ) for one utterance, over the device's whole life, for any k",
    ):
        assert said in words, said


def test_a_promise_to_two_units_states_the_terms_of_both(run: Path) -> None:
    privacy: Json = dict(read_privacy(run))
    user = {"epsilon": 4.0, "delta": 1e-3, "neighbouring": "add or remove a user"}
    privacy |= {"unit": "both", "user": user | {"clip_norm": 2.0, "noise_multiplier": 1.5}}

    parts = list_statement_parts(privacy)

    assert parts["unit"] == "Unit of privacy: utterance and user."
    assert parts["noise"].endswith("; 1.5 for one user.")
    assert parts["delta"] == "Delta: 1e-05 for one utterance; 0.001 for one user."


def test_a_record_of_an_earlier_release_says_what_it_does_not_state(run: Path) -> None:
    privacy: Json = dict(read_privacy(run))
    for later in ("adversaries", "curves", "composition"):
        privacy.pop(later, None)

    parts = list_statement_parts(privacy)

    assert "does not state" in parts["colluders"]
    assert "does not state" in parts["curve"]
    assert "plan fixed in advance" in parts["composition"]


def test_no_promise_has_no_terms_and_no_entry(run: Path) -> None:
    privacy: Json = dict(read_privacy(run)) | {"unit": "none", "epsilon": None, "delta": None}

    assert set(list_statement_parts(privacy)) == {"guarantee", "assumptions", "not_protected"}
    with pytest.raises(SettingError, match="promises no epsilon"):
        make_registry_entry(privacy, read_run(run))


def test_an_entry_has_the_registry_s_fields_and_names_what_is_missing(run: Path) -> None:
    privacy = read_privacy(run)

    entry = make_registry_entry(privacy, read_run(run))

    assert set(entry) == {"url_slug", "status", "tier", "deployment"}
    assert (entry["status"], entry["tier"]) == ("Draft", 3)
    deployment = entry["deployment"]
    assert {section: set(fields) for section, fields in deployment.items()} == FIELDS
    assert deployment["privacy_loss"]["privacy_parameters"] == {"epsilon": 8.0, "delta": 1e-5}
    assert "Gaussian DP with mu" in deployment["privacy_loss"]["privacy_parameters_details"]
    choices = {
        ("basic", "data_product_type"): "Machine learning model",
        ("dp_variant", "variant_name"): "Approximate DP",
        ("deployment_model", "model_name"): "Federated",
        ("deployment_model", "access_type"): "Non-interactive",
    }
    assert {pair: deployment[pair[0]][pair[1]] for pair in choices} == choices
    for path in FIELDS_TO_FILL_IN:
        _, section, field = path.split(".")
        assert str(deployment[section][field]).strip("[']") in {TO_BE_FILLED_IN, "1970-01-01"}


def test_yaml_holds_every_text_as_json_does() -> None:
    text = format_yaml({"a": {"b": ['x: "1"', "# no comment"], "c": 1e-05}, "d": "ε\nδ"})

    lines = text.splitlines()
    assert lines[:2] == ['"a":', '  "b":']
    assert [json.loads(line.partition("- ")[2]) for line in lines[2:4]] == [
        'x: "1"',
        "# no comment",
    ]
    assert json.loads(lines[-1].partition(": ")[2]) == "ε\nδ"
    assert len(lines) == 6
