"""Contracts of a run's record: the keys of the design, deterministic, honest about gaps."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce.shared.errors import MessageError, SettingError, SottovoceError
from sottovoce.simulations.evaluation.fairness.run_section import measure_fairness
from sottovoce.simulations.evaluation.predictions import age_band
from sottovoce.simulations.results import run_record, schema
from sottovoce.simulations.results.run_record import Predictions

EMOTIONS = ("anger", "joy", "neutral")


def table(people: int = 6, each: int = 12, **changes: Any) -> Predictions:
    """Speakers s1 .. s6 in two folds; the shared model is right but too sure, heads are better."""
    rng = np.random.default_rng(3)
    size = people * each
    labels = np.arange(size) % len(EMOTIONS)
    logits = rng.normal(size=(size, 3)) + 1.5 * np.eye(3)[labels]
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sharp = soft**4 / (soft**4).sum(axis=1, keepdims=True)
    who = [index // each for index in range(size)]
    columns: dict[str, Any] = {
        "emotions": EMOTIONS,
        "clips": [f"clip-{index}" for index in range(size)],
        "speakers": [f"s{1 + one}" for one in who],
        "folds": [f"fold-{1 + one % 2}" for one in who],
        "labels": labels,
        "before": sharp,
        "after": soft,
        "genders": [("female", "male", "")[one % 3] for one in who],
        "ages": [(17.0, 33.0, 71.0, None)[one % 4] for one in who],
        "languages": ["en"] * size,
        "covered": rng.random(size) < 0.8,
        "sizes": 1 + rng.integers(3, size=size),
    }
    return Predictions(**(columns | changes))


def account(epsilon: float | None, releases: int = 2) -> dict[str, Any]:
    """One client's account in privacy.json."""
    line = {"kind": "update", "noise_multiplier": 1.1, "sample_rate": 0.2, "steps": 5}
    return {
        "epsilon": epsilon,
        "delta": 1e-5,
        "budget": {"epsilon": 8.0, "delta": 1e-5},
        "remaining": None if epsilon is None else 8.0 - epsilon,
        "rounds": releases,
        "ledger_sha256": "ab" * 32,
        "releases": [
            {**line, "round": r, "clip_norm": 1.0, "epsilon_after": epsilon}
            for r in range(1, releases + 1)
        ],
    }


def privacy(**changes: Any) -> dict[str, Any]:
    """A small privacy.json: client s1 in both folds."""
    content = {
        "schema": schema.SCHEMA_VERSION,
        "unit": "utterance",
        "epsilon": 8.0,
        "delta": 1e-5,
        "neighbouring": "add or remove",
        "sampling": "poisson",
        "accountant": "pld",
        "noise_multiplier": 1.1,
        "clip_norm": 1.0,
        "statement": "A statement.",
        "assumptions": ["An assumption."],
        "not_protected": ["The fact of taking part."],
        "folds": [
            {"name": "fold-1", "clients": {"s10": account(3.0), "s1": account(5.0)}},
            {"name": "fold-2", "clients": {"s1": account(7.0), "s2": account(4.0)}},
        ],
        "recompute": "sottovoce audit RUN",
    }
    return content | changes


def run(scored: Predictions | None = None, **changes: Any) -> dict[str, Any]:
    """A small run.json."""
    scored = scored or table()
    sections: dict[str, Any] = {
        "corpus": {"name": "made up", "clips": 72, "speakers": 6, "emotions": list(EMOTIONS)},
        "protocol": {"name": "2fold", "folds": 2, "enrolment": "all"},
        "seed": 1,
        "engine": "local",
        "unit": "utterance",
        "clients": 6,
        "rounds": 2,
        "model": {"kind": "mlp", "encoder": "e", "shared_parameters": 9, "public_corpora": []},
        "accuracy": run_record.accuracy_section(scored, seed=1),
        "calibration": run_record.calibration_section(scored),
        "fairness": measure_fairness(scored),
        "privacy": run_record.privacy_section(privacy()),
        "timing": {"wall_s": 1.5},
    }
    return run_record.assemble_run_record({"schema": schema.SCHEMA_VERSION, **sections, **changes})


def test_a_run_has_the_keys_of_the_design() -> None:
    made = run()

    assert list(made["accuracy"]["per_emotion"]) == list(EMOTIONS)
    assert np.sum(made["accuracy"]["confusion"]) == 72
    assert [fold["fold"] for fold in made["accuracy"]["per_fold"]] == ["fold-1", "fold-2"]
    assert set(made["accuracy"]["per_speaker"]["s1"]) == {"uar", "n"}
    assert set(made["calibration"]["before"]) >= {"ece", "nll", "brier"}
    assert set(made["calibration"]["abstention"]) >= {"coverage", "selective_accuracy"}
    assert set(made["fairness"]["speaker"]) >= {"worst", "p10", "gini"}
    assert made["privacy"]["utterance"]["epsilon_max"] == 7.0


def test_heads_that_soften_show_in_calibration_and_not_in_accuracy() -> None:
    made = run()

    assert made["calibration"]["after"]["nll"] < made["calibration"]["before"]["nll"]
    assert made["calibration"]["after"]["ece"] < made["calibration"]["before"]["ece"]
    assert made["accuracy"]["before_heads"]["uar"] == made["accuracy"]["uar"]


def test_the_interval_holds_the_uar() -> None:
    section = run_record.accuracy_section(table(), seed=1)

    assert section["uar_interval"][0] < section["uar"] < section["uar_interval"][1]


def test_order_of_rows_and_of_parts_changes_nothing() -> None:
    whole = table()
    columns = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)}
    order = np.random.default_rng(0).permutation(72)
    mixed = {n: c if n == "emotions" else [c[i] for i in order] for n, c in columns.items()}
    mixed |= {name: np.array(mixed[name]) for name in ("labels", "before", "after")}

    assert schema.dump_json(run(Predictions(**mixed))) == schema.dump_json(run())


def test_parts_gather_and_unknown_columns_stay_unknown() -> None:
    known, blind = table(), table(genders=(), folds=["fold-3"] * 72)
    both = run_record.concatenate_predictions([known, blind])

    assert len(both.clips) == 144
    assert measure_fairness(both)["gender"]["groups"]["unknown"]["n"] == 72 + 24


def test_groups_report_the_unknown_but_keep_it_out_of_the_gap() -> None:
    section = measure_fairness(table())
    groups = section["gender"]["groups"]

    assert set(groups) == {"female", "male", "unknown"}
    assert section["gender"]["gap"] == pytest.approx(
        abs(groups["female"]["uar"] - groups["male"]["uar"])
    )
    assert list(section["age"]["groups"]) == ["under 18", "30-44", "60 and over", "unknown"]
    assert section["language"]["gap"] is None
    assert measure_fairness(table(genders=()))["gender"]["gap"] is None


def test_ages_fall_into_bands() -> None:
    ages = [17.9, 18, 29.9, 30, 59, 60, 101, None, math.nan, -1]
    bands = ["under 18", "18-29", "18-29", "30-44", "45-59", "60 and over", "60 and over"]

    assert [age_band(age) for age in ages] == [*bands, "unknown", "unknown", "unknown"]


def test_the_curve_is_the_mean_of_the_folds_scored_in_a_round() -> None:
    curve = run_record.learning_curve({"fold-10": [(1, 0.4)], "fold-2": [(1, 0.2), (2, 0.6)]})

    assert [point["uar"] for point in curve] == pytest.approx([0.3, 0.6])
    assert list(curve[0]["per_fold"]) == ["fold-2", "fold-10"]


def test_a_client_in_two_folds_counts_with_its_worst() -> None:
    section = run_record.privacy_section(privacy(), audit=0.4)

    assert list(section["utterance"]["per_client"]) == ["s1", "s2", "s10"]
    assert section["utterance"]["per_client"]["s1"]["epsilon"] == 7.0
    assert section["utterance"]["epsilon_median"] == 4.0
    assert section["releases"] == 8
    assert section["audit"] == {"epsilon_lower": 0.4}


def test_no_guarantee_has_no_epsilon() -> None:
    fold = {"name": "fold-1", "clients": {"s1": account(None)}}
    section = run_record.privacy_section(privacy(unit="none", epsilon=None, folds=[fold]))

    assert section["epsilon"] is None
    assert "utterance" not in section
    assert run(unit="none", privacy=section)["privacy"]["unit"] == "none"


def test_the_servers_ledger_is_the_users_promise() -> None:
    fold = {"name": "fold-1", "clients": {}, "server": account(6.0)}

    assert run_record.privacy_section(privacy(unit="user", folds=[fold]))["user"]["epsilon"] == 6.0


def test_an_absent_class_and_one_speaker_are_no_trouble() -> None:
    lone = table(people=1, labels=np.array([0, 1] * 6))
    made = run(lone)

    assert made["accuracy"]["per_emotion"]["neutral"] is None
    assert made["accuracy"]["uar_interval"][0] == pytest.approx(made["accuracy"]["uar"])


def test_tensors_may_stand_for_arrays() -> None:
    scored = table()
    as_tensors = table(labels=torch.tensor(scored.labels), after=torch.tensor(scored.after))

    assert run_record.accuracy_section(as_tensors, seed=1) == run_record.accuracy_section(
        scored, seed=1
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"clips": ["same"] * 72},
        {"speakers": ["s1"]},
        {"genders": ["male"]},
        {"labels": np.full(72, 3)},
        {"labels": np.full(72, 0.5)},
        {"after": np.full((72, 3), math.nan)},
        {"after": np.full((72, 2), 0.5)},
        {"emotions": ("anger", "joy")},
    ],
)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        table(**changes)


def test_nothing_scored_is_refused() -> None:
    with pytest.raises(SettingError):
        table(people=0)


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        (("accuracy", "uar"), math.inf, "accuracy.uar"),
        (("accuracy", "uar"), True, "accuracy.uar"),
        (("timing", "wall_s"), math.nan, "timing.wall_s: expected a finite number"),
        (("corpus", "emotions"), [], "corpus.emotions"),
        (("schema",), 3, "newer"),
        (("schema",), 1, "earlier release.*run the simulation again"),
        (("schema",), "one", "schema"),
        (("accuracy",), None, "accuracy"),
        (("accuracy", "uar"), 1.5, "accuracy.uar"),
        (("accuracy", "uar"), math.nan, "accuracy.uar"),
        (("accuracy", "confusion"), [[1]], "confusion"),
        (("accuracy", "per_fold"), [{"uar": 0.1}], r"at accuracy\.per_fold\[0\]: .*`fold`"),
        (("corpus", "clips"), -1, "corpus.clips"),
        (("corpus", "emotions"), "anger", "corpus.emotions"),
        (("calibration", "abstention", "coverage"), [], "abstention"),
        (("fairness", "gender", "groups"), [], "gender.groups"),
        (("unit",), "word", "unit"),
    ],
)
def test_a_damaged_run_is_named(path: tuple[str, ...], value: object, names: str) -> None:
    damaged = copy.deepcopy(run())
    inner = damaged
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value

    with pytest.raises(MessageError, match=names):
        run_record.validate_run(damaged)


@pytest.mark.parametrize("key", [key for key in privacy() if key != "schema"])
def test_a_privacy_file_without_a_key_is_refused(key: str) -> None:
    content = privacy()
    del content[key]

    with pytest.raises(MessageError, match=key):
        run_record.validate_privacy(content)


@pytest.mark.parametrize("foreign", [None, [], "text", {}, {"version": 3}])
def test_a_foreign_file_is_refused(foreign: object) -> None:
    with pytest.raises(MessageError, match="schema"):
        run_record.validate_run(foreign)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    run_record.write_json(tmp_path / "run.json", run())
    run_record.write_json(tmp_path / "privacy.json", privacy())

    assert schema.read_run(tmp_path) == json.loads(schema.dump_json(run()))
    assert schema.read_privacy(tmp_path)["folds"] == privacy()["folds"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["privacy.json", "run.json"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_record.write_json(tmp_path / "run.json", {"schema": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SottovoceError, match="No space left"):
        run_record.write_json(tmp_path / "run.json", {"schema": 2})
    assert json.loads((tmp_path / "run.json").read_text()) == {"schema": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"run\.json"):
        schema.read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 1, "corp')
    with pytest.raises(MessageError, match="damaged"):
        schema.read_run(tmp_path)
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MessageError, match="damaged"):
        schema.read_run(tmp_path)


def test_json_is_stable_and_has_no_nan() -> None:
    text = schema.dump_json({"a": np.float32(0.5), "b": [math.nan, np.int64(3)], "c": math.inf})

    assert json.loads(text) == {"a": 0.5, "b": [None, 3], "c": None}
