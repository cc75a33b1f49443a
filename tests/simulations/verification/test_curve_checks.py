"""Curves and adversaries of a record are what ledgers and scheme come to, or are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce.simulations.verification.recompute import verify_run

Json = dict[str, Any]


def _faults_after(run: Path, change: Callable[[Json], object]) -> list[str]:
    """What ``verify`` says of a changed privacy.json."""
    path = run / "privacy.json"
    privacy = json.loads(path.read_text())
    change(privacy)
    path.write_text(json.dumps(privacy))
    return list(verify_run(run).inconsistencies)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["curves"]["utterance"].update(mu=0.1), "curves.utterance.mu 0.1"),
        (
            lambda p: p["curves"]["utterance"]["groups"][0].update(epsilon=1.0),
            "curves.utterance.groups[0].epsilon 1.0",
        ),
        (
            lambda p: p["curves"]["utterance"]["tradeoff"]["beta"].__setitem__(6, 0.9),
            "curves.utterance.tradeoff.beta[6] 0.9",
        ),
        (lambda p: p["curves"]["utterance"]["tradeoff"]["beta"].pop(), "tradeoff.beta[19] None"),
        (lambda p: p["curves"].update(user=p["curves"]["utterance"]), "there is no ledger"),
        (
            lambda p: p["curves"]["utterance"]["groups"][0].update(changes=10**9),
            "of 1 to 1,000,000 each",
        ),
        (
            lambda p: p["curves"]["utterance"].update(
                groups=[*4 * p["curves"]["utterance"]["groups"], {"changes": 2, "epsilon": 1.0}]
            ),
            "lists 17 groups for one utterance",
        ),
        (lambda p: p["curves"]["utterance"].update(delta=None), "curves.utterance."),
        (lambda p: p["adversaries"].pop(), "states other adversaries"),
        (lambda p: p["adversaries"][-1].update(holds="everything"), "states other adversaries"),
    ],
)
def test_a_changed_curve_or_table_is_named(
    run: Path, change: Callable[[Json], object], words: str
) -> None:
    faults = _faults_after(run, change)

    assert len(faults) == 1
    assert words in faults[0]


def test_a_run_of_an_earlier_release_has_neither_and_agrees(run: Path) -> None:
    assert _faults_after(run, lambda p: (p.pop("curves"), p.pop("adversaries"))) == []


def test_as_many_groups_as_there_can_be_are_recomputed(run: Path) -> None:
    def repeat(privacy: Json) -> None:
        curve = privacy["curves"]["utterance"]
        curve["groups"] = 4 * curve["groups"]

    assert _faults_after(run, repeat) == []
