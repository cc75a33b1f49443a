"""Experiment on losses that calibrate: docs/results/losses.md.

    sottovoce reproduce losses --corpora ../shared/corpora --runs runs/losses --choose
    sottovoce reproduce losses --corpora ../shared/corpora --runs runs/losses

The first chooses the losses' own settings on training folds alone; the second makes the runs that
are missing, then the table. A run that was interrupted goes on.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sottovoce.server.federation.training_job import Job
from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.models.losses import Loss
from sottovoce.shared.models.parameters import load_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.printable import print_lines
from sottovoce.simulations.corpora.speaker_splits import PUBLISHED_PROTOCOLS, Fold
from sottovoce.simulations.data import loading
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.data.pretraining import build_fold_inputs, build_plan
from sottovoce.simulations.evaluation import metrics, personalisation
from sottovoce.simulations.evaluation.baselines import comparison
from sottovoce.simulations.evaluation.personalisation import SpeakerData
from sottovoce.simulations.experiments.commands import build_parser, run_command
from sottovoce.simulations.scenario.loading import Scenario, vary_scenario

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
class LossRun:
    """One loss on one protocol under one privacy unit."""

    protocol: str
    unit: str
    name: str
    loss: Loss
    smoothing: float = 0.0

    @property
    def folder_name(self) -> str:
        """Name of the run's folder.

        Example:
            >>> LossRun(
            ...     protocol="ravdess8-6fold", unit="none", name="brier", loss=Loss(kind="brier")
            ... ).folder_name
            'ravdess8-6fold-none-brier'
        """
        return f"{self.protocol}-{self.unit}-{self.name}"

    def build_scenario(self, corpora: Path) -> Scenario:
        """Build the scenario of the run."""
        corpus = PUBLISHED_PROTOCOLS[self.protocol].corpus
        public = PUBLIC[self.protocol]
        settings = {
            "corpus": corpus,
            "data": str(corpora / corpus),
            "protocol": self.protocol,
            "public": ((public, str(corpora / public)),),
            "unit": self.unit,
            "seed": SEED,
        }
        usual = vary_scenario(None, settings)
        recipe = replace(usual.recipe, label_smoothing=self.smoothing)
        return replace(usual, recipe=replace(recipe, loss=self.loss))


def list_runs() -> Iterator[LossRun]:
    """Iterate over all runs that are compared, the quick ones first."""
    for protocol in PUBLIC:
        for unit in ("none", "utterance"):
            at: dict[str, Any] = {"protocol": protocol, "unit": unit}
            yield LossRun(name="cross-entropy", loss=Loss(), **at)
            yield LossRun(name="smoothed", loss=Loss(), smoothing=SMOOTHING, **at)
            yield LossRun(name="focal", loss=Loss(kind="focal", gamma=GAMMA), **at)
            yield LossRun(name="brier", loss=Loss(kind="brier"), **at)
            # MMCE compares pairs of utterances: it has no gradient per example that could be
            # clipped.
            if unit == "none":
                yield LossRun(name="mmce", loss=Loss(kind="mmce", weight=WEIGHT), **at)


def main(argv: Sequence[str] | None = None) -> int:
    """Choose settings, or make the missing runs and write the page."""
    parser = build_parser("losses", __doc__)
    parser.add_argument("--corpora", type=Path, default=Path("../shared/corpora"))
    parser.add_argument("--runs", type=Path, default=Path("runs/losses"), help="run folders")
    parser.add_argument("--choose", action="store_true", help="choose settings, run nothing")
    parser.add_argument("--only", default="", help="make only lines that contain this, no table")
    arguments = parser.parse_args(argv)
    # As a run does: with more threads sums come in another order, and figures differ.
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    chosen = arguments.runs / "choice.json"
    if arguments.choose or not (chosen.exists() or arguments.only or arguments.table):
        found = {CHOSEN_ON: _choice(CHOSEN_ON, arguments)}
        replace_text(chosen, json.dumps(found, indent=1) + "\n")
    if arguments.choose:
        return 0
    failed = 0
    for line in () if arguments.table else list_runs():
        if arguments.only in line.folder_name:
            failed += _make(line, arguments)
    if not arguments.only:
        _write(chosen, arguments)
    return 1 if failed else 0


def _write(chosen: Path, arguments: argparse.Namespace) -> None:
    """The JSON and the page; what was not measured here stays as it was."""
    path = arguments.out / "losses.json"
    written = json.loads(path.read_text()) if path.is_file() else {"choice": {}, "lines": []}
    known = {(one["protocol"], one["unit"], one["loss"]): one for one in written["lines"]}
    for one in list_runs():
        if measured := _measured(one, arguments):
            known[one.protocol, one.unit, one.name] = measured
    names = [(one.protocol, one.unit, one.name) for one in list_runs()]
    page = {
        "choice": json.loads(chosen.read_text()) if chosen.is_file() else written["choice"],
        "lines": [known[name] for name in names if name in known],
    }
    replace_text(path, json.dumps(page, indent=1) + "\n")
    replace_text(arguments.out / "losses.md", _page(page))


def _choice(protocol: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Every candidate's figures on validation folds.

    For every test fold a model is trained without its speakers and without the next fold's, and
    scored on the next fold's: test speakers are left out.
    """
    line = LossRun(protocol=protocol, unit="none", name="", loss=Loss())
    scenario = line.build_scenario(arguments.corpora)
    fold_inputs, folds = _load_inputs(scenario, arguments.runs)
    inner = [
        _validation_fold(fold, folds[(index + 1) % len(folds)]) for index, fold in enumerate(folds)
    ]
    found = {}
    for loss in CANDIDATES:
        wanted = replace(scenario, recipe=replace(scenario.recipe, loss=loss))
        everybody = [one for fold in inner for one in _test_speakers(wanted, fold_inputs, fold)]
        logits = torch.cat([one.logits for one in everybody])
        labels = torch.cat([one.labels for one in everybody]).numpy()
        chances = torch.softmax(logits, 1).numpy()
        setting = {"focal": f" {loss.gamma:g}", "mmce": f" {loss.weight:g}"}.get(loss.kind, "")
        found[f"{loss.kind}{setting}"] = _figures(chances, labels)
        print_lines(f"{protocol} {loss} {found[f'{loss.kind}{setting}']}")
    return found


def _load_inputs(scenario: Scenario, runs: Path) -> tuple[FoldInputs, tuple[Fold, ...]]:
    """What all folds share, and the folds."""
    quiet = (lambda _line: None, lambda _what, _done, _total: None)
    corpus, public = loading.load_corpora(scenario.data, scenario.recipe, *quiet)
    fold_inputs = build_fold_inputs(
        scenario.plan_settings,
        corpus,
        public,
        runs / f"held-out-{scenario.data.protocol}",
        seed=scenario.run.seed,
        use_warm_start=bool(scenario.data.public),
    )
    return fold_inputs, tuple(corpus.protocol.folds)


def _test_speakers(scenario: Scenario, fold_inputs: FoldInputs, fold: Fold) -> list[SpeakerData]:
    """A fold's test users under a model that was trained in this process, without privacy.

    The rounds are the run's own; devices, their messages and their head statistics are left out.
    """
    plan = build_plan(scenario.plan_settings, scenario.privacy, fold_inputs, "losses")
    plan = replace(plan, centre=None, normaliser=None)
    weights, users = comparison.train_federated_model(
        scenario.baseline_settings, fold, fold_inputs, plan
    )
    job = Job(
        plan=plan,
        aggregation=scenario.recipe.aggregation,
        weights=weights,
        projection=fold_inputs.projection,
        speaker_statistics=fold_inputs.speaker_statistics,
        devices=1,
        held_out_path=fold_inputs.held_out_file,
    )
    prior, model = job.estimate_head_prior(weights), build_network(plan.model, 0).eval()
    load_parameters(model, weights)
    outputs = {
        user: prior.logits_and_coordinates(model, clips.features, clips.frames)
        for user, clips in users.items()
    }
    return [
        SpeakerData(
            name=user,
            gender="",
            fold=fold.name,
            logits=torch.log_softmax(outputs[user][0].double(), 1),
            labels=clips.labels,
            prior=prior,
            coordinates=outputs[user][1],
        )
        for user, clips in users.items()
    ]


def _validation_fold(fold: Fold, following: Fold) -> Fold:
    """A fold's training speakers, less those of the next fold, who validate."""
    # The next fold validates: the test fold's speakers must not choose anything.
    train = tuple(name for name in fold.train if name not in following.test)
    return Fold(name=f"{fold.name}-inner", train=train, test=following.test)


def _figures(chances: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All measures of one set of probabilities."""
    matrix = metrics.confusion_matrix(labels, chances.argmax(1), chances.shape[1])
    found = {
        "uar": metrics.uar(matrix),
        "ece": metrics.ece(chances, labels),
        "classwise_ece": metrics.classwise_ece(chances, labels),
        "nll": metrics.negative_log_likelihood(chances, labels),
        "brier": metrics.brier_score(chances, labels),
        "aurc": metrics.risk_coverage_curve(chances, labels).aurc,
    }
    return {name: round(value, 5) for name, value in found.items()}


def _make(line: LossRun, arguments: argparse.Namespace) -> int:
    """One line's figures, unless they are there; whether that failed."""
    path = arguments.runs / f"{line.folder_name}.json"
    if path.is_file():
        return 0
    print_lines(line.folder_name)
    if _run(line, arguments):
        return 1
    everybody = personalisation.load_speakers(arguments.runs / line.folder_name, arguments.corpora)
    replace_text(path, json.dumps(_figures_of(everybody)) + "\n")
    return 0


def _run(line: LossRun, arguments: argparse.Namespace) -> int:
    """One run, unless it is there; whether it failed."""
    out = arguments.runs / line.folder_name
    if (out / "run.json").is_file():
        return 0
    config = arguments.runs / f"{line.folder_name}.toml"
    replace_text(config, line.build_scenario(arguments.corpora).to_toml())
    resume = ["--resume"] if (out / "config.toml").is_file() else []
    words = ["sottovoce", "simulate", str(config), "--out", str(out), "--quiet", *resume]
    return int(run_command(words) != 0)


def _figures_of(everybody: Sequence[SpeakerData]) -> dict[str, dict[str, float]]:
    """Test users' figures, before and behind heads on some labelled clips."""
    found: dict[str, dict[str, float]] = {}
    for clips in LABELLED:
        draws = [
            personalisation.score_draw(one, clips, draw, seed=SEED)
            for one in everybody
            for draw in range(DRAWS if clips else 1)
        ]
        labels = np.concatenate([one.labels for one in draws])
        if not clips:
            found["before"] = _figures(np.concatenate([one.before for one in draws]), labels)
        found[f"{clips} labels"] = _figures(np.concatenate([one.after for one in draws]), labels)
    return found


def _measured(line: LossRun, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """A line's figures, where they are there."""
    path = arguments.runs / f"{line.folder_name}.json"
    if not path.is_file():
        return None
    return {
        "protocol": line.protocol,
        "unit": line.unit,
        "loss": line.name,
        "figures": json.loads(path.read_text()),
    }


HEAD = f"""# Losses that calibrate

Made by `sottovoce reproduce losses`, one seed ({SEED}), the usual recipe of each promise but for
the loss. *before*: the shared model on all clips of users who were never trained on. *0 labels*:
the head of users who label nothing. *5 labels*: heads fitted on 5 labelled clips a user, drawn 5
times; figures are on the others. ECE and classwise ECE in 15 bins of equal mass; AURC: area under
the risk-coverage curve. Best of each column **bold**, protocol by protocol and promise by promise.

A private run of another loss draws other noise, and its rate and clip are those that were chosen
for cross-entropy: differences of a point of UAR are within what a seed changes.

"""
FINDINGS = """
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
  that was not chosen for them. Both make a model too unsure; the head prior from users undoes
  most of it without a label.
- The usual losses stay as they were: these are test speakers, and one seed.
"""
STAGES = ("before", "0 labels", "5 labels")
MEASURE_NAMES = {
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
    missing = [
        one.folder_name for one in list_runs() if (one.protocol, one.unit, one.name) not in there
    ]
    note = f"\nNot made yet: {', '.join(missing)}.\n" if missing else ""
    return "".join([HEAD, *_table(found["lines"]), note, FINDINGS, *_chosen(found["choice"])])


def _table(found: Sequence[Json]) -> Iterator[str]:
    """All lines, grouped so that the best of a group can be seen."""
    heads = " | ".join(MEASURE_NAMES.values())
    yield f"| run | loss | when | {heads} |\n|{'---|' * (3 + len(MEASURE_NAMES))}\n"
    groups = dict.fromkeys((line["protocol"], line["unit"]) for line in found)
    for protocol, unit in groups:
        group = [line for line in found if (line["protocol"], line["unit"]) == (protocol, unit)]
        for when in STAGES:
            for line in group:
                cells = [_cell(name, line, group, when) for name in MEASURE_NAMES]
                title = f"{protocol}, {'no privacy' if unit == 'none' else f'{unit} ε = 8'}"
                yield f"| {title} | {line['loss']} | {when} | {' | '.join(cells)} |\n"


def _cell(name: str, line: Json, group: Sequence[Json], when: str) -> str:
    """One figure, bold where it is the best."""
    values = [one["figures"][when][name] for one in group]
    value = line["figures"][when][name]
    best = max(values) if name == "uar" else min(values)
    shown = f"{value:.3f}"
    # Compared as shown: figures that look equal are bold together.
    return f"**{shown}**" if shown == f"{best:.3f}" else shown


def _chosen(choice: Mapping[str, Json]) -> Iterator[str]:
    """How the losses' own settings were chosen."""
    yield (
        "\n## How gamma and weight were chosen\n\n"
        "`sottovoce reproduce losses --choose`: without privacy, every fold's model is trained "
        "without its test\nspeakers and without the next fold's, and scored on the next fold's. "
        "The setting with the least NLL\nthere is taken for all runs, those of the other corpus "
        f"included: gamma {GAMMA:g}, weight {WEIGHT:g}.\n\n"
        f"| corpus | loss | {' | '.join(MEASURE_NAMES.values())} |\n"
        f"|{'---|' * (2 + len(MEASURE_NAMES))}\n"
    )
    for protocol, figures in choice.items():
        for loss, row in figures.items():
            cells = " | ".join(f"{row[name]:.3f}" for name in MEASURE_NAMES)
            yield f"| {protocol} | {loss} | {cells} |\n"
