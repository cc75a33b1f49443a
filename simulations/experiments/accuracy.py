"""Experiment on accuracy and calibration of the claimed protocols: docs/results/accuracy.md.

    sottovoce reproduce accuracy --corpora ../shared/corpora --runs runs/results

A run that is there already is not run again; one that was interrupted goes on. Lines without runs
stay as they were.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.features.version import FEATURE_VERSION
from sottovoce.shared.printable import print_lines
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.simulations.corpora.speaker_splits import PUBLISHED_PROTOCOLS
from sottovoce.simulations.experiments.commands import build_parser, run_command

PUBLIC: Mapping[str, tuple[str, ...]] = {
    "ravdess8-6fold": ("cremad",),
    "cremad4-5fold": ("ravdess",),
    "emodb7-loso": ("cremad", "ravdess"),
}
ENROLMENTS = ("all", "neutral:5", "none")
UNITS = ("utterance", "none")
DEFAULT_EPSILON = 8.0
USER_LEVEL_RUNS = (("utterance", 4.0), ("user", 8.0), ("user", 4.0), ("both", 8.0), ("both", 4.0))
END_TO_END = ("cnn-attention", "tcn", "bilstm-attention")


def find_corpus_name(protocol: str) -> str:
    """Find the name of the users' corpus that a published protocol is of.

    Example:
        >>> find_corpus_name("cremad4-5fold")
        'cremad'
    """
    return PUBLISHED_PROTOCOLS[protocol].corpus


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultLine:
    """One line of the table: a scenario and its seeds."""

    protocol: str
    unit: str
    enrolment: str
    seeds: tuple[int, ...]
    epsilon: float = DEFAULT_EPSILON
    secure: bool = False
    model: str = ""
    baselines: str = ""

    @property
    def corpus_name(self) -> str:
        """Name of the users' corpus, from the protocol.

        Example:
            >>> ResultLine(
            ...     protocol="emodb7-loso", unit="none", enrolment="all", seeds=(0,)
            ... ).corpus_name
            'emodb'
        """
        return find_corpus_name(self.protocol)

    def run_name(self, seed: int) -> str:
        """Name the folder of one seed's run.

        Example:
            >>> ResultLine(
            ...     protocol="emodb7-loso", unit="none", enrolment="neutral:5", seeds=(0,)
            ... ).run_name(0)
            'emodb7-loso-none-neutral5-0'
        """
        epsilon = "" if self.epsilon == DEFAULT_EPSILON else f"eps{self.epsilon:g}"
        enrolment = self.enrolment.replace(":", "")
        unit = f"{self.unit}-secure" if self.secure else self.unit
        parts = (self.protocol, self.model, unit, epsilon, enrolment, str(seed))
        return "-".join(part for part in parts if part)

    def build_command(self, seed: int, corpora: str) -> list[str]:
        """Build the command of one seed's run, without its output folder."""
        words = ["sottovoce", "simulate", "--corpus", self.corpus_name]
        words += ["--data", f"{corpora}/{self.corpus_name}", "--protocol", self.protocol]
        # End-to-end models have no frozen encoder: nothing is pretrained on public speech.
        if not self.model:
            for public in PUBLIC[self.protocol]:
                words += ["--public", f"{public}={corpora}/{public}"]
        words += ["--unit", self.unit, *(["--secure-aggregation"] if self.secure else [])]
        words += [] if self.epsilon == DEFAULT_EPSILON else ["--epsilon", f"{self.epsilon:g}"]
        words += ["--enrolment", self.enrolment, "--seed", str(seed)]
        words += ["--model", self.model] if self.model else []
        return words + (["--baselines", self.baselines] if self.baselines else [])


def list_result_lines() -> Iterator[ResultLine]:
    """Iterate over all lines, the quick ones first."""
    for protocol in PUBLIC:
        for unit in UNITS:
            for enrolment in ENROLMENTS:
                seeds = (0, 1, 2) if enrolment == "all" else (0,)
                central = "central" if (unit, enrolment) == ("none", "all") else ""
                yield ResultLine(
                    protocol=protocol,
                    unit=unit,
                    enrolment=enrolment,
                    seeds=seeds,
                    baselines=central,
                )
    seeds = (0, 1, 2)
    for protocol in ("cremad4-5fold", "ravdess8-6fold"):
        for unit, epsilon in USER_LEVEL_RUNS:
            yield ResultLine(
                protocol=protocol, unit=unit, enrolment="all", seeds=seeds, epsilon=epsilon
            )
        yield ResultLine(protocol=protocol, unit="user", secure=True, enrolment="all", seeds=seeds)
    for model in END_TO_END:
        yield ResultLine(
            protocol="ravdess8-6fold", unit="none", enrolment="all", seeds=(0,), model=model
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing runs, then write the table."""
    parser = build_parser("accuracy", __doc__)
    parser.add_argument("--corpora", default="../shared/corpora", help="folder of the corpora")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="run folders")
    parser.add_argument("--only", default="", help="run only lines whose name contains this")
    arguments = parser.parse_args(argv)
    failed = 0
    for line_spec in () if arguments.table else list_result_lines():
        for seed in line_spec.seeds:
            if arguments.only in line_spec.run_name(seed):
                failed += _run(line_spec, seed, arguments)
    _write(arguments)
    return 1 if failed else 0


def _run(line_spec: ResultLine, seed: int, arguments: argparse.Namespace) -> int:
    """One run, unless it is there."""
    out = arguments.runs / line_spec.run_name(seed)
    if (out / "run.json").is_file():
        return 0
    words = line_spec.build_command(seed, arguments.corpora)
    print_lines(" ".join(words))
    # Only a run that has begun can be resumed.
    resume = ["--resume"] if (out / "config.toml").is_file() else []
    return int(run_command([*words, "--out", str(out), "--quiet", *resume]) != 0)


def _write(arguments: argparse.Namespace) -> None:
    """The JSON and the page."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "accuracy.json"
    written = json.loads(path.read_text()) if path.exists() else []
    # By command: it names all settings, and the page shows it.
    known = {line["command"]: line for line in written}
    lines = []
    for line_spec in list_result_lines():
        kept = known.get(_command(line_spec, line_spec.seeds[0]))
        found = _line(line_spec, arguments)
        # A line without runs keeps its earlier figures, and so does one with fewer of them.
        if found and (kept is None or len(found["seeds"]) >= len(kept["seeds"])):
            kept = found
        lines += [kept] if kept else []
    replace_text(path, json.dumps(lines, indent=1) + "\n")
    replace_text(arguments.out / "accuracy.md", _page(lines))


def _line(line_spec: ResultLine, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """One line of the table from its runs."""
    runs = [
        json.loads(path.read_text())
        for seed in line_spec.seeds
        if (path := arguments.runs / line_spec.run_name(seed) / "run.json").is_file()
    ]
    if not runs:
        return None
    uars = [run["accuracy"]["uar"] for run in runs]

    def mean(*keys: str) -> float:
        values = []
        for run in runs:
            found: Any = run
            for key in keys:
                found = found[key]
            values.append(found)
        return statistics.fmean(values)

    central = [run["baselines"]["central"]["uar"] for run in runs if run.get("baselines")]
    return {
        "protocol": line_spec.protocol,
        "model": runs[0]["model"]["kind"],
        "unit": line_spec.unit,
        "secure": line_spec.secure,
        "epsilon": runs[0]["privacy"]["epsilon"],
        "delta": runs[0]["privacy"]["delta"],
        "enrolment": line_spec.enrolment,
        "seeds": list(line_spec.seeds[: len(runs)]),
        "uar": statistics.fmean(uars),
        "uar_sd": statistics.stdev(uars) if len(uars) > 1 else None,
        "uar_per_seed": uars,
        "uar_central": statistics.fmean(central) if central else None,
        "worst_speaker": mean("fairness", "speaker", "worst"),
        "labelled_clips_per_user": runs[0]["calibration"]["labelled_clips_per_user"],
        "ece": [mean("calibration", "before", "ece"), mean("calibration", "after", "ece")],
        "nll": [mean("calibration", "before", "nll"), mean("calibration", "after", "nll")],
        "uar_heads": [mean("calibration", "uar", "before"), mean("calibration", "uar", "after")],
        "wall_s": mean("timing", "wall_s"),
        "feature_version": min(
            _feature_version(arguments.runs / line_spec.run_name(seed))
            for seed in line_spec.seeds[: len(runs)]
        ),
        "command": _command(line_spec, line_spec.seeds[0]),
    }


def _feature_version(run: Path) -> int:
    """Version of the features that a run's model reads."""
    record = json.loads((run / "model" / "model.json").read_text())
    return int(record.get("feature_version", 1))


def _command(line_spec: ResultLine, seed: int) -> str:
    """The command of one seed's run, as the page gives it."""
    return " ".join(line_spec.build_command(seed, "../shared/corpora"))


def _page(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    head = (
        "# Accuracy and calibration\n\n"
        "Every line is the mean over its seeds of runs made by the command behind it; all are made "
        "by\n`sottovoce reproduce accuracy`. UAR is pooled over folds, on speakers that training "
        "never saw, without\nany label of theirs; ± is the standard deviation over seeds. Heads "
        "are fitted on 5 labelled clips a user,\nwhich are not scored in the columns *before → "
        "after*. Epsilon is for one utterance added or removed at\ndelta 1e-5 and holds against "
        "the server, or for everything that one user has at delta 1e-3 and holds\nagainst those "
        "who see the models, or for both, over a device's whole part in the run.\n\nRuns keep the "
        "heads of the version that made them, and a later version draws other noise from the same\n"
        "seed; [heads](heads.md) has today's heads on the same runs. The three "
        "end-to-end lines are of an\nearlier version. Figures with an asterisk are of features "
        "that read pauses and margins, too\n(version 1).\n\n"
        "| protocol | model | hides one | epsilon | enrolment | seeds | UAR | central | "
        f"ECE before → after | NLL | UAR with heads |\n|{'---|' * 11}\n"
    )
    rows = []
    for line in lines:
        scheme = scheme_for(line["unit"])
        unit = scheme.wording.name if scheme.promised else "–"
        unit += ", secure sums" if line["secure"] else ""
        epsilon = f"{line['epsilon']:g}" if line["epsilon"] else "no privacy"
        deviation = f" ± {line['uar_sd']:.3f}" if line["uar_sd"] is not None else ""
        deviation += "" if line.get("feature_version", 1) >= FEATURE_VERSION else " *"
        central = f"{line['uar_central']:.3f}" if line["uar_central"] else ""
        pairs = [f"{line[key][0]:.3f} → {line[key][1]:.3f}" for key in ("ece", "nll", "uar_heads")]
        rows.append(
            f"| {line['protocol']} | {line['model']} | {unit} | "
            f"{epsilon} | {line['enrolment']} | "
            f"{len(line['seeds'])} | {line['uar']:.3f}{deviation} | {central} | "
            + " | ".join(pairs)
            + " |\n"
        )
    commands = "".join(f"{line['command']}\n" for line in lines)
    return f"{head}{''.join(rows)}\n## Commands\n\n```\n{commands}```\n"
