"""Losses that calibrate, compared: docs/results/losses.md.

    python scripts/losses.py --corpora ../shared/corpora --runs runs/losses --choose
    python scripts/losses.py --corpora ../shared/corpora --runs runs/losses

The first chooses the losses' own settings on training folds alone; the second makes the runs that
are missing, then the table. A run that was interrupted goes on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sottovoce.server.job import Job
from sottovoce.shared import metrics
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.models.flat import load_flat
from sottovoce.shared.models.loss import Loss
from sottovoce.shared.models.spec import build
from sottovoce.simulations import baselines, hearing, personal
from sottovoce.simulations.material import Material
from sottovoce.simulations.personal import Person
from sottovoce.simulations.preparation import material_of, plan_of
from sottovoce.simulations.protocols import Fold
from sottovoce.simulations.scenario import Scenario, settle

PUBLIC = {"ravdess8-6fold": "cremad", "cremad6-5fold": "ravdess"}
CANDIDATES = (
    Loss(),
    *(Loss(kind="focal", gamma=gamma) for gamma in (1.0, 2.0, 3.0)),
    *(Loss(kind="mmce", weight=weight) for weight in (1.0, 4.0)),
)
CHOSEN_ON = "ravdess8-6fold"
SMOOTHING = 0.1
GAMMA, WEIGHT = 3.0, 4.0
"""Chosen on training folds, see the page."""

LABELLED, DRAWS, SEED = (0, 5), 5, 0
Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One loss on one protocol under one promise."""

    protocol: str
    unit: str
    name: str
    loss: Loss
    smoothing: float = 0.0

    @property
    def folder(self) -> str:
        """Of its run."""
        return f"{self.protocol}-{self.unit}-{self.name}"

    def scenario(self, corpora: Path) -> Scenario:
        """What is run."""
        corpus = "".join(filter(str.isalpha, self.protocol.split("-")[0]))
        public = PUBLIC[self.protocol]
        usual = settle(
            Scenario(
                corpus=corpus,
                data=str(corpora / corpus),
                protocol=self.protocol,
                public=((public, str(corpora / public)),),
                unit=self.unit,
                seed=SEED,
            )
        )
        recipe = replace(usual.recipe, label_smoothing=self.smoothing)
        return replace(usual, recipe=replace(recipe, loss=self.loss))


def lines() -> Iterator[Line]:
    """All that is compared, the quick ones first."""
    for protocol in PUBLIC:
        for unit in ("none", "utterance"):
            at: dict[str, Any] = {"protocol": protocol, "unit": unit}
            yield Line(name="cross-entropy", loss=Loss(), **at)
            yield Line(name="smoothed", loss=Loss(), smoothing=SMOOTHING, **at)
            yield Line(name="focal", loss=Loss(kind="focal", gamma=GAMMA), **at)
            yield Line(name="brier", loss=Loss(kind="brier"), **at)
            if unit == "none":
                yield Line(name="mmce", loss=Loss(kind="mmce", weight=WEIGHT), **at)


def main(argv: Sequence[str] | None = None) -> int:
    """Choose, or run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpora", type=Path, default=Path("../shared/corpora"))
    parser.add_argument("--runs", type=Path, default=Path("runs/losses"), help="run folders")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--choose", action="store_true", help="choose settings, run nothing")
    parser.add_argument("--only", default="", help="make only lines that contain this, no table")
    parser.add_argument("--table", action="store_true", help="write the table, run nothing")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    chosen = arguments.runs / "choice.json"
    if arguments.choose or not (chosen.exists() or arguments.only or arguments.table):
        found = {CHOSEN_ON: _choice(CHOSEN_ON, arguments)}
        chosen.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.choose:
        return 0
    failed = 0
    for line in () if arguments.table else lines():
        if arguments.only in line.folder:
            failed += _make(line, arguments)
    if not arguments.only:
        _write(chosen, arguments)
    return 1 if failed else 0


def _write(chosen: Path, arguments: argparse.Namespace) -> None:
    """The JSON and the page; what was not measured here stays as it was."""
    path = arguments.out / "losses.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"choice": {}, "lines": []}
    known = {(one["protocol"], one["unit"], one["loss"]): one for one in kept["lines"]}
    for one in lines():
        if told := _measured(one, arguments):
            known[one.protocol, one.unit, one.name] = told
    names = [(one.protocol, one.unit, one.name) for one in lines()]
    page = {
        "choice": json.loads(chosen.read_text()) if chosen.is_file() else kept["choice"],
        "lines": [known[name] for name in names if name in known],
    }
    path.write_text(json.dumps(page, indent=1) + "\n")
    (arguments.out / "losses.md").write_text(_page(page))


def _choice(protocol: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Every candidate's figures on validation folds.

    For every test fold a model is trained without its speakers and without the next fold's, and
    scored on the next fold's: no test speaker is heard.
    """
    line = Line(protocol=protocol, unit="none", name="", loss=Loss())
    scenario = line.scenario(arguments.corpora)
    material, folds = _heard(scenario, arguments.runs)
    inner = [_inner(fold, folds[(place + 1) % len(folds)]) for place, fold in enumerate(folds)]
    found = {}
    for loss in CANDIDATES:
        wanted = replace(scenario, recipe=replace(scenario.recipe, loss=loss))
        everybody = [one for fold in inner for one in _people(wanted, material, fold)]
        logits = torch.cat([one.logits for one in everybody])
        labels = torch.cat([one.labels for one in everybody]).numpy()
        chances = torch.softmax(logits, 1).numpy()
        setting = {"focal": f" {loss.gamma:g}", "mmce": f" {loss.weight:g}"}.get(loss.kind, "")
        found[f"{loss.kind}{setting}"] = _figures(chances, labels)
        print(protocol, loss, found[f"{loss.kind}{setting}"], flush=True)
    return found


def _heard(scenario: Scenario, runs: Path) -> tuple[Material, tuple[Fold, ...]]:
    """What all folds share, and the folds."""
    quiet = (lambda _line: None, lambda _what, _done, _total: None)
    with FeatureCache(hearing.cache_folder()) as cache:
        heard = hearing.hear(scenario, cache, *quiet)
    public = hearing.hear_public(scenario, heard, *quiet)
    material = material_of(scenario, heard, public, runs / f"held-out-{scenario.protocol}")
    return material, tuple(heard.protocol.folds)


def _people(scenario: Scenario, material: Material, fold: Fold) -> list[Person]:
    """A fold's test users under a model that was trained in this process, without privacy.

    The rounds are the run's own; devices, their messages and what they tell of calibration are
    left out.
    """
    plan = replace(plan_of(scenario, material, "losses"), centre=None, normaliser=None)
    weights, users = baselines.federated_model(scenario, fold, material, plan)
    job = Job(
        plan=plan,
        aggregation=scenario.recipe.aggregation,
        weights=weights,
        front=material.front,
        population=material.population,
        devices=1,
        held_out=material.held_out,
    )
    prior, model = job.prior_of(weights), build(plan.model, 0).eval()
    load_flat(model, weights)
    heard = {
        user: prior.heard(model, clips.features, clips.frames) for user, clips in users.items()
    }
    return [
        Person(
            speaker=user,
            gender="",
            fold=fold.name,
            logits=torch.log_softmax(heard[user][0].double(), 1),
            labels=clips.labels,
            prior=prior,
            coordinates=heard[user][1],
        )
        for user, clips in users.items()
    ]


def _inner(fold: Fold, following: Fold) -> Fold:
    """A fold's training speakers, less those of the next fold, who validate."""
    train = tuple(name for name in fold.train if name not in following.test)
    return Fold(name=f"{fold.name}-inner", train=train, test=following.test)


def _figures(chances: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All measures of one set of probabilities."""
    matrix = metrics.confusion(labels, chances.argmax(1), chances.shape[1])
    found = {
        "uar": metrics.uar(matrix),
        "ece": metrics.ece(chances, labels),
        "classwise_ece": metrics.classwise_ece(chances, labels),
        "nll": metrics.nll(chances, labels),
        "brier": metrics.brier(chances, labels),
        "aurc": metrics.abstention(chances, labels).aurc,
    }
    return {name: round(value, 5) for name, value in found.items()}


def _make(line: Line, arguments: argparse.Namespace) -> int:
    """One line's figures, unless they are there; whether that failed."""
    kept = arguments.runs / f"{line.folder}.json"
    if kept.is_file():
        return 0
    print(line.folder, flush=True)
    if _run(line, arguments):
        return 1
    everybody = personal.people(arguments.runs / line.folder, arguments.corpora)
    kept.write_text(json.dumps(_figures_of(everybody)) + "\n")
    return 0


def _run(line: Line, arguments: argparse.Namespace) -> int:
    """One run, unless it is there; whether it failed."""
    out = arguments.runs / line.folder
    if (out / "run.json").is_file():
        return 0
    config = arguments.runs / f"{line.folder}.toml"
    config.write_text(line.scenario(arguments.corpora).to_toml())
    command = [sys.executable, "-m", "sottovoce.cli", "simulate", str(config), "--out", str(out)]
    resume = ["--resume"] if (out / "config.toml").is_file() else []
    return int(subprocess.run([*command, "--quiet", *resume], check=False).returncode != 0)


def _figures_of(everybody: Sequence[Person]) -> dict[str, dict[str, float]]:
    """Test users' figures, before and behind heads on some labelled clips."""
    found: dict[str, dict[str, float]] = {}
    for clips in LABELLED:
        judged = [
            personal.judge(one, clips, draw, seed=SEED)
            for one in everybody
            for draw in range(DRAWS if clips else 1)
        ]
        labels = np.concatenate([one.labels for one in judged])
        if not clips:
            found["before"] = _figures(np.concatenate([one.before for one in judged]), labels)
        found[f"{clips} labels"] = _figures(np.concatenate([one.after for one in judged]), labels)
    return found


def _measured(line: Line, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """A line's figures, where they are there."""
    kept = arguments.runs / f"{line.folder}.json"
    if not kept.is_file():
        return None
    return {
        "protocol": line.protocol,
        "unit": line.unit,
        "loss": line.name,
        "figures": json.loads(kept.read_text()),
    }


HEAD = f"""# Losses that calibrate

Made by `python scripts/losses.py`, one seed ({SEED}), the usual recipe of each promise but for the
loss. *before*: the shared model on all clips of users who were never trained on. *0 labels*: the
head of users who label nothing. *5 labels*: heads fitted on 5 labelled clips a user, drawn 5 times;
figures are on the others. ECE and classwise ECE in 15 bins of equal mass; AURC: area under the
risk-coverage curve. Best of each column **bold**, protocol by protocol and promise by promise.

A private run of another loss draws other noise, and its rate and clip are those that were chosen
for cross-entropy: differences of a point of UAR are within what a seed changes.

"""
SAYS = """
## What they say

- RAVDESS without privacy: before any head `focal` and `brier` have better probabilities than
  cross-entropy, and `focal` costs a point of UAR. Behind heads with 5 labels all but `mmce` lie
  within .025 of each other in NLL and .005 in ECE: the head does most of what a loss can. `mmce`
  gained nothing on devices of 60 clips.
- CREMA-D without privacy: plain cross-entropy is calibrated before any head; `focal` is far too
  unsure. Behind heads cross-entropy, smoothing and `brier` lie within .004 of NLL and .003 of ECE.
- Under a promise plain cross-entropy has the best UAR, NLL and Brier score on RAVDESS throughout;
  behind 5 labels the others have a lower ECE there (.018 to .023 against .030). On CREMA-D
  smoothing has a hair less NLL behind heads and no less ECE. `focal` and `brier` cost 3 and 4
  points of UAR on RAVDESS, up to 1 on CREMA-D: smaller gradients against the same noise, at a rate
  that was not chosen for them. Both make a model too unsure; the head that users taught undoes
  most of it without a label.
- The usual losses stay as they were: these are test speakers, and one seed.
"""
WHEN = ("before", "0 labels", "5 labels")
NAMES = {
    "uar": "UAR",
    "ece": "ECE",
    "classwise_ece": "classwise ECE",
    "nll": "NLL",
    "brier": "Brier",
    "aurc": "AURC",
}


def _page(found: Json) -> str:
    """The page for people."""
    there = {(line["protocol"], line["unit"], line["loss"]) for line in found["lines"]}
    missing = [one.folder for one in lines() if (one.protocol, one.unit, one.name) not in there]
    note = f"\nNot made yet: {', '.join(missing)}.\n" if missing else ""
    return "".join([HEAD, *_table(found["lines"]), note, SAYS, *_chosen(found["choice"])])


def _table(found: Sequence[Json]) -> Iterator[str]:
    """All lines, grouped so that the best of a group can be seen."""
    heads = " | ".join(NAMES.values())
    yield f"| run | loss | when | {heads} |\n|{'---|' * (3 + len(NAMES))}\n"
    groups = dict.fromkeys((line["protocol"], line["unit"]) for line in found)
    for protocol, unit in groups:
        group = [line for line in found if (line["protocol"], line["unit"]) == (protocol, unit)]
        for when in WHEN:
            for line in group:
                cells = [_cell(name, line, group, when) for name in NAMES]
                title = f"{protocol}, {'no privacy' if unit == 'none' else f'{unit} ε = 8'}"
                yield f"| {title} | {line['loss']} | {when} | {' | '.join(cells)} |\n"


def _cell(name: str, line: Json, group: Sequence[Json], when: str) -> str:
    """One figure, bold where it is the best."""
    values = [one["figures"][when][name] for one in group]
    value = line["figures"][when][name]
    best = max(values) if name == "uar" else min(values)
    shown = f"{value:.3f}"
    return f"**{shown}**" if shown == f"{best:.3f}" else shown


def _chosen(choice: Mapping[str, Json]) -> Iterator[str]:
    """How the losses' own settings were chosen."""
    yield (
        "\n## How gamma and weight were chosen\n\n"
        "`python scripts/losses.py --choose`: without privacy, every fold's model is trained "
        "without its test speakers\nand without the next fold's, and scored on the next fold's. "
        "The setting with the least NLL there is\ntaken for all runs, those of the other corpus "
        f"included: gamma {GAMMA:g}, weight {WEIGHT:g}.\n\n"
        f"| corpus | loss | {' | '.join(NAMES.values())} |\n|{'---|' * (2 + len(NAMES))}\n"
    )
    for protocol, figures in choice.items():
        for loss, row in figures.items():
            cells = " | ".join(f"{row[name]:.3f}" for name in NAMES)
            yield f"| {protocol} | {loss} | {cells} |\n"


if __name__ == "__main__":
    sys.exit(main())
