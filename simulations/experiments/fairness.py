"""Experiment on fairness between groups of speakers: docs/results/fairness.md.

    sottovoce reproduce fairness --corpora ../shared/corpora --runs runs/fairness

A run that is there already is not run again; one that was interrupted goes on. Lines without runs
stay as they were.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.errors import SettingError
from sottovoce.shared.printable import print_lines
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.speaker_splits import PUBLISHED_PROTOCOLS
from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.evaluation.bootstrap import ConfidenceInterval
from sottovoce.simulations.evaluation.fairness import attributes, comparison, speaker_spread
from sottovoce.simulations.evaluation.fairness.comparison import GroupComparison, GroupedClips
from sottovoce.simulations.evaluation.metrics import FloatArray
from sottovoce.simulations.experiments import fairness_page
from sottovoce.simulations.experiments.commands import build_parser, run_command
from sottovoce.simulations.results.prediction_table import read_predictions
from sottovoce.simulations.runs.run_folder import read_run_name

SEEDS: Final = (0, 1, 2)
PUBLIC: Final[Mapping[str, tuple[str, ...]]] = {
    "cremad6-5fold": ("ravdess",),
    "ravdess8-6fold": ("cremad",),
    "emodb7-loso": ("cremad", "ravdess"),
}
UNITS: Final[Mapping[str, tuple[str, ...]]] = {
    "cremad6-5fold": ("none", "utterance", "user"),
    "ravdess8-6fold": ("none", "utterance"),
    "emodb7-loso": ("none", "utterance"),
}
"""Promises that are compared; the first is none, which the others are held against."""

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class FairnessLine:
    """One protocol under one promise, on all seeds."""

    protocol: str
    unit: str

    @property
    def corpus(self) -> str:
        """Name of the users' corpus."""
        return PUBLISHED_PROTOCOLS[self.protocol].corpus

    def run_name(self, seed: int) -> str:
        """Name the folder of one seed's run.

        Example:
            >>> FairnessLine(protocol="cremad6-5fold", unit="user").run_name(1)
            'cremad6-5fold-user-1'
        """
        return f"{self.protocol}-{self.unit}-{seed}"

    def build_command(self, seed: int, corpora: str) -> list[str]:
        """Build the command of one seed's run, without its output folder."""
        words = ["sottovoce", "simulate", "--corpus", self.corpus]
        words += ["--data", f"{corpora}/{self.corpus}", "--protocol", self.protocol]
        for public in PUBLIC[self.protocol]:
            words += ["--public", f"{public}={corpora}/{public}"]
        return [*words, "--unit", self.unit, "--enrolment", "all", "--seed", str(seed)]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Scored:
    """The predictions of a line's runs, one seed behind the other."""

    clips: GroupedClips
    probabilities: FloatArray
    seeds: tuple[int, ...]
    facts: Json


def list_lines() -> Iterator[FairnessLine]:
    """Iterate over all lines, each protocol without a promise first."""
    for protocol, units in UNITS.items():
        for unit in units:
            yield FairnessLine(protocol=protocol, unit=unit)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing runs, then the page."""
    parser = build_parser("fairness", __doc__)
    parser.add_argument("--corpora", type=Path, default=Path("../shared/corpora"))
    parser.add_argument("--runs", type=Path, default=Path("runs/fairness"), help="run folders")
    parser.add_argument("--only", default="", help="run only those whose name contains this")
    arguments = parser.parse_args(argv)
    failed = 0
    for line in () if arguments.table else list_lines():
        for seed in SEEDS:
            if arguments.only in line.run_name(seed):
                failed += _run(line, seed, arguments)
    _write(arguments)
    return 1 if failed else 0


def _run(line: FairnessLine, seed: int, arguments: argparse.Namespace) -> int:
    """One run, unless it is there."""
    out = arguments.runs / line.run_name(seed)
    if (out / "run.json").is_file():
        return 0
    # Only a run that has begun can be resumed.
    resume = ["--resume"] if (out / "config.toml").is_file() else []
    words = line.build_command(seed, str(arguments.corpora))
    print_lines(" ".join(words))
    return int(run_command([*words, "--out", str(out), "--quiet", *resume]) != 0)


def _write(arguments: argparse.Namespace) -> None:
    """The JSON and the page; lines whose runs are not there stay as they were."""
    path = arguments.out / "fairness.json"
    written: list[Json] = json.loads(path.read_text()) if path.is_file() else []
    known = {(one["protocol"], one["unit"]): one for one in written}
    for protocol, units in UNITS.items():
        lines = [FairnessLine(protocol=protocol, unit=unit) for unit in units]
        scored = {} if arguments.table else _score(lines, arguments)
        for unit, one in scored.items():
            known[protocol, unit] = _measure(protocol, unit, one, scored.get(units[0]))
    lines_found = [
        known[line.protocol, line.unit]
        for line in list_lines()
        if (line.protocol, line.unit) in known
    ]
    replace_text(path, json.dumps(lines_found, indent=1) + "\n")
    replace_text(arguments.out / "fairness.md", fairness_page.format_page(lines_found))


def _score(lines: Sequence[FairnessLine], arguments: argparse.Namespace) -> dict[str, _Scored]:
    """What a protocol's finished runs predicted, by unit; units without a run are missing."""
    found = {}
    for one in lines:
        there = [
            seed for seed in SEEDS if (arguments.runs / one.run_name(seed) / "run.json").is_file()
        ]
        if there:
            found[one.unit] = _read_runs(one, tuple(there), arguments)
    return found


def _read_runs(
    line: FairnessLine, seeds: tuple[int, ...], arguments: argparse.Namespace
) -> _Scored:
    """The predictions of some seeds' runs, with the groups of their clips."""
    corpus = open_corpus(line.corpus, arguments.corpora / line.corpus)
    speakers: list[str] = []
    groups: dict[str, list[str]] = {name: [] for name in attributes.ATTRIBUTES}
    labels, probabilities, facts = [], [], {}
    for seed in seeds:
        folder = arguments.runs / line.run_name(seed)
        described = json.loads((folder / "run.json").read_text())
        kept, _ = read_predictions(folder, described["predictions"])
        found = attributes.match_groups(kept, corpus.clips, run=read_run_name(folder))
        for name, own in found.items():
            groups[name] += own
        speakers += kept.speakers
        labels.append(kept.labels)
        # The shared model's: behind a user's own head, clips that it was fitted on are missing.
        probabilities.append(kept.before)
        facts = {name: described["privacy"][name] for name in ("epsilon", "delta")}
    return _Scored(
        clips=GroupedClips(speakers=speakers, labels=np.concatenate(labels), attributes=groups),
        probabilities=np.concatenate(probabilities),
        seeds=seeds,
        facts=facts,
    )


def _measure(protocol: str, unit: str, scored: _Scored, plain: _Scored | None) -> dict[str, Any]:
    """All figures of one line; ``plain`` is the same without privacy."""
    clips, sure = scored.clips, scored.probabilities
    print_lines(f"{protocol}, {unit}, seeds {', '.join(map(str, scored.seeds))}")
    found = {
        "protocol": protocol,
        "unit": unit,
        **scored.facts,
        "seeds": list(scored.seeds),
        "clips": len(clips.speakers) // len(scored.seeds),
        "uar_per_seed": _measure_seeds(scored),
        "speakers": _spread(scored) | {"worst": _measure_worst(scored)},
        "attributes": _describe(comparison.compare_attributes(clips, sure)),
        "command": " ".join(
            FairnessLine(protocol=protocol, unit=unit).build_command(0, "../shared/corpora")
        ),
    }
    # A line of which some seeds were not run without privacy is compared on the others.
    common = [seed for seed in scored.seeds if plain is not None and seed in plain.seeds]
    if plain is None or plain is scored or not common:
        return found
    return found | {"change": _measure_change(_keep(scored, common), _keep(plain, common))}


def _measure_change(private: _Scored, plain: _Scored) -> dict[str, Any]:
    """What privacy changes, on the same seeds and clips."""
    clips, less = private.clips, plain.probabilities
    # Pairs of other speakers' clips would look like a change.
    if (plain.clips.speakers, plain.clips.attributes) != (clips.speakers, clips.attributes):
        raise SettingError("runs with and without privacy tested other clips; run both again")
    found = comparison.compare_attributes(clips, private.probabilities, less=less)
    return {
        "seeds": list(private.seeds),
        "speakers": _spread(private, less),
        "attributes": _describe(found),
    }


def _keep(scored: _Scored, seeds: Sequence[int]) -> _Scored:
    """The same, of some seeds alone."""
    # Every seed tests the same clips, in the same order.
    size = len(scored.clips.speakers) // len(scored.seeds)
    rows = np.concatenate([np.arange(size) + size * scored.seeds.index(one) for one in seeds])

    def select(column: Sequence[str]) -> list[str]:
        return [column[row] for row in rows]

    return _Scored(
        clips=GroupedClips(
            speakers=select(scored.clips.speakers),
            labels=scored.clips.labels[rows],
            attributes={name: select(own) for name, own in scored.clips.attributes.items()},
        ),
        probabilities=scored.probabilities[rows],
        seeds=tuple(seeds),
        facts=scored.facts,
    )


def _measure_seeds(scored: _Scored) -> list[float]:
    """UAR of each seed, pooled over its folds."""
    truths = np.split(scored.clips.labels, len(scored.seeds))
    rows = np.split(scored.probabilities, len(scored.seeds))
    return [
        round(metrics.uar(metrics.confusion_matrix(truth, one.argmax(axis=1), one.shape[1])), 4)
        for truth, one in zip(truths, rows, strict=True)
    ]


def _measure_worst(scored: _Scored) -> float:
    """UAR of the speaker who is served worst, over all seeds."""
    # Over all seeds: the worst of each would be another speaker each time.
    names, guess = np.array(scored.clips.speakers), scored.probabilities.argmax(axis=1)
    classes, truth = scored.probabilities.shape[1], scored.clips.labels
    return round(
        min(
            metrics.uar(metrics.confusion_matrix(truth[own], guess[own], classes))
            for own in (names == name for name in set(scored.clips.speakers))
        ),
        4,
    )


def _spread(scored: _Scored, less: FloatArray | None = None) -> dict[str, list[float]]:
    """Spread over speakers, or its change, as estimate, low, high."""
    found = speaker_spread.measure_spread(
        scored.clips.speakers, scored.clips.labels, scored.probabilities, less=less
    )
    return {name: _round(interval) for name, interval in found.items()}


def _describe(found: Mapping[str, Mapping[str, GroupComparison]]) -> dict[str, Any]:
    """Comparisons as JSON."""
    return {
        attribute: {
            # The same for every measure.
            "speakers": dict(next(iter(measures.values())).speakers),
            **{name: _describe_comparison(one) for name, one in measures.items()},
        }
        for attribute, measures in found.items()
    }


def _describe_comparison(one: GroupComparison) -> dict[str, Any]:
    """One comparison as JSON."""
    return {
        "groups": {name: _round(interval) for name, interval in one.groups.items()},
        "highest": one.gap.highest,
        "lowest": one.gap.lowest,
        "gap": _round(one.gap.interval),
        "by_chance": round(one.gap.by_chance, 4),
        "p_value": round(one.gap.p_value, 4),
        "corrected": round(one.gap.corrected, 4),
    }


def _round(interval: ConfidenceInterval) -> list[float]:
    """Estimate, low and high, to four places; -0 becomes 0."""
    return [round(one, 4) + 0.0 for one in (interval.estimate, interval.low, interval.high)]
