"""Contracts of the model card: what must be said is said, and names are data."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce.shared.errors import MessageError
from sottovoce.simulations.reports.model_card import render_card

Make = Callable[..., tuple[dict[str, Any], dict[str, Any]]]


@pytest.mark.parametrize(
    "said",
    [
        *("Hiring", "Policing", "diagnosis", "Lie detection", "Covert monitoring", "2024/1689"),
        *("CC BY-NC-SA 4.0", "ODbL", "ε = 8 per utterance", "audited lower bound 0.62"),
        *("gender: female", "expected calibration", "20 rounds", "silent (1)"),
    ],
)
def test_the_card_says(said: str, make: Make, tmp_path: Path) -> None:
    assert said in render_card(make(tmp_path, clips=16)[0])


def test_a_bare_run_has_a_card(make: Make, tmp_path: Path) -> None:
    text = render_card(make(tmp_path, clips=16, full=False, unit="none", epsilon=None)[0])

    assert "**no guarantee**\n\n" in text
    assert "unknown" in text
    assert "None" not in text


def test_names_are_data_and_a_licence_may_be_given(make: Make, tmp_path: Path) -> None:
    run, _ = make(tmp_path, clips=16)
    run["corpus"] |= {"name": "<b>|x|\n# y", "licence": "Private | mine"}
    text = render_card(run)

    assert "<b>" not in text.replace("\\<b\\>", "")
    assert "\n# y" not in text
    assert r"| \<b\>\|x\| \# y | Private \| mine |" in text


def test_an_unknown_corpus_has_no_known_licence(make: Make, tmp_path: Path) -> None:
    run, _ = make(tmp_path, clips=16)
    run["corpus"]["name"] = "somebody"

    assert "| somebody | not recorded" in render_card(run)


def test_tables_have_as_many_cells_in_every_row(make: Make, tmp_path: Path) -> None:
    lines = render_card(make(tmp_path, clips=16)[0]).splitlines()
    for one, two in itertools.pairwise(lines):
        if one.startswith("|") and two.startswith("|"):
            assert one.count("|") == two.count("|")


def test_what_is_no_run_has_no_card() -> None:
    with pytest.raises(MessageError):
        render_card({"schema": 1})
