"""An ablation compares the same clips, resumes, and takes no run for another."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sottovoce.cli import main, reproduce
from sottovoce.shared.errors import SettingError
from sottovoce.simulations.evaluation.predictions import Predictions
from sottovoce.simulations.experiments import ablation
from sottovoce.simulations.experiments.ablation import (
    SUBJECTS,
    USUAL,
    AblationSettings,
    Variant,
    build_scenario,
    compare_runs,
    run_ablation,
)

SPEAKERS, CLIPS = 12, 20
CORPORA = Path("corpora")


def predictions(right: float, *, seed: int = 0) -> Predictions:
    """Answers, of which about this share is right."""
    random = np.random.default_rng(seed)
    count = SPEAKERS * CLIPS
    labels = np.tile([0, 1], count // 2)
    guess = np.where(random.random(count) < right, labels, 1 - labels)
    table = np.where(np.eye(2)[guess] == 1, 0.8, 0.2)
    speakers = [f"s{index // CLIPS}" for index in range(count)]
    return Predictions(
        emotions=("happy", "sad"),
        clips=[str(index) for index in range(count)],
        speakers=speakers,
        folds=["fold1"] * count,
        labels=labels,
        before=table,
        after=table,
    )


def settings(folder: Path, **changes: object) -> AblationSettings:
    usual = AblationSettings(
        subject="losses",
        corpora=CORPORA,
        runs=folder / "runs",
        out=folder / "out",
        protocols=("emodb7-loso",),
        units=("none",),
        seeds=(0,),
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def test_a_difference_of_speakers_is_paired() -> None:
    found = compare_runs([predictions(0.6)], [predictions(0.9, seed=1)], draws=200)["uar"]

    assert found["difference"] == pytest.approx(found["variant"] - found["usual"], abs=2e-5)
    assert 0 < found["low"] < found["difference"] < found["high"]
    same = compare_runs([predictions(0.6)], [predictions(0.6)], draws=50)
    for figures in same.values():
        assert (figures["difference"], figures["low"], figures["high"]) == (0, 0, 0)


def test_other_clips_are_not_compared() -> None:
    other = predictions(0.6)
    other = replace(other, speakers=["x", *other.speakers[1:]])

    with pytest.raises(SettingError, match="other clips"):
        compare_runs([predictions(0.6)], [other])


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_variant_is_a_run_that_can_be_and_differs_from_the_usual_one(
    subject: str, tmp_path: Path
) -> None:
    chosen = settings(tmp_path, subject=subject)
    for protocol in ("emodb7-loso", "cremad4-5fold"):
        for unit in ablation.UNITS:
            where = {"protocol": protocol, "unit": unit, "seed": 0, "corpora": CORPORA}
            usual = build_scenario(Variant(name=USUAL), **where)  # type: ignore[arg-type]
            for variant in chosen.variants(protocol, unit):
                scenario = build_scenario(variant, **where)  # type: ignore[arg-type]
                assert scenario != usual, variant.name


def test_runs_that_are_there_are_kept_and_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def run(words: list[str]) -> int:
        out = Path(words[words.index("--out") + 1])
        made.append(out.name)
        out.mkdir()
        (out / "config.toml").write_text(Path(words[2]).read_text())
        (out / "run.json").write_text(json.dumps({"predictions": {"name": out.name}}))
        return 0

    def read(folder: Path, facts: dict[str, str]) -> tuple[Predictions, None]:
        assert folder.name == facts["name"]
        return predictions(0.6 if USUAL in folder.name else 0.9, seed=1), None

    monkeypatch.setattr(ablation, "run_command", run)
    monkeypatch.setattr(ablation, "read_predictions", read)

    assert run_ablation(settings(tmp_path)) == 0
    names = [one.name for one in settings(tmp_path).variants("emodb7-loso", "none")]
    assert made == [f"emodb7-loso-none-{name}-0" for name in (USUAL, *names)]
    page = (tmp_path / "out" / "ablation.md").read_text()
    assert "| emodb7-loso | none | ordinal | 1 | " in page
    assert page.count("| helps |") == len(names)

    made.clear()
    assert run_ablation(settings(tmp_path)) == 0
    assert made == []
    (tmp_path / "runs" / f"emodb7-loso-none-{USUAL}-0" / "config.toml").write_text("seed = 9\n")
    with pytest.raises(SettingError, match="other settings"):
        run_ablation(settings(tmp_path))


def test_the_command_knows_every_subject(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(reproduce.SUBJECTS) == set(SUBJECTS)
    for option, value in (("--seeds", "a"), ("--units", "user"), ("--protocols", "x")):
        assert main.main(["ablate", "losses", option, value]) == 2
    assert "must be" in capsys.readouterr().err
