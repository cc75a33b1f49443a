"""Experiment on gains from enrolment and labels: docs/results/personal.md.

    sottovoce reproduce personalisation --corpora ../shared/corpora --runs runs/results

Nothing is trained: run folders hold models, the cache holds features. Needed are runs with
``--enrolment none`` and ``--enrolment all``, as ``sottovoce reproduce accuracy`` makes them.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sottovoce.shared import seeding
from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.printable import print_lines
from sottovoce.simulations.corpora.speaker_splits import split_enrolment
from sottovoce.simulations.evaluation import (
    enrolment_replay,
    metrics,
    personalisation_metrics,
    unlabelled_streams,
)
from sottovoce.simulations.evaluation.enrolment_replay import EvaluatedSpeaker
from sottovoce.simulations.evaluation.personalisation import ScoredDraw, SpeakerData
from sottovoce.simulations.experiments.commands import build_parser

CLIPS = (0, 1, 2, 5, 10)
DRAWS, STREAM_DRAWS, SEED = 3, 40, 0
STREAM_SEEDS = (0, 1, 2)
"""Seeds of runs; streams are scored with the models of each."""
PROTOCOLS = ("ravdess8-6fold", "cremad4-5fold", "cremad6-5fold", "emodb7-loso")
UNITS = ("none", "utterance")
MEASURES = ("uar", "ece", "nll", "brier", "p10", "worst")
KINDS = {
    "neutral": "{} neutral",
    "learned": "{0} neutral, {0} labelled",
    "all": "all, unlabelled",
}
Json = Mapping[str, Any]
Columns = Mapping[str, torch.Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every finished pair of runs, then write the page; other figures stay."""
    parser = build_parser("personalisation", __doc__)
    parser.add_argument("--corpora", type=Path, default=Path("../shared/corpora"))
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="run folders")
    parser.add_argument("--only", default="", help="measure only lines whose name contains this")
    parser.add_argument("--streams", action="store_true", help="measure streams alone anew")
    arguments = parser.parse_args(argv)
    # Sums of several threads differ in their last bits, and the page would change with each run.
    torch.set_num_threads(1)
    path = arguments.out / "personal.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    names = [f"{protocol}-{unit}" for protocol in PROTOCOLS for unit in UNITS]
    for name in names if not (arguments.streams or arguments.table) else ():
        without, enrolled = (arguments.runs / f"{name}-{kind}-0" for kind in ("none", "all"))
        there = all((run / "run.json").is_file() for run in (without, enrolled))
        if arguments.only in name and there:
            print_lines(name)
            found[name] = _measured(without, enrolled, arguments.corpora)
    for name in names if not arguments.table else ():
        if arguments.only in name and name in found:
            measured = _streams_by_seed(arguments.runs, name, arguments.corpora)
            known = found[name].get("streams", {})
            found[name] = {**found[name], "streams": {**known, **measured}}
    found = {name: found[name] for name in names if name in found}
    replace_text(path, json.dumps(found, indent=1) + "\n")
    replace_text(arguments.out / "personal.md", format_page(found))
    return 0


def _measured(without: Path, enrolled: Path, corpora: Path) -> dict[str, Any]:
    """All figures of one protocol and promise, from the run without users' means and with."""
    described = json.loads((without / "run.json").read_text())
    pairs = list(
        zip(
            enrolment_replay.load_speakers(without, corpora),
            enrolment_replay.load_speakers(enrolled, corpora),
            strict=True,
        )
    )
    return {
        "protocol": described["protocol"]["name"],
        "unit": described["unit"],
        "epsilon": described["privacy"]["epsilon"],
        "enrolled": {kind: _by_clips(pairs, kind) for kind in KINDS},
    }


def _by_clips(
    pairs: Sequence[tuple[EvaluatedSpeaker, EvaluatedSpeaker]], kind: str
) -> dict[str, Json]:
    """Before and after, by the number of clips."""
    return {
        str(clips): _figures(
            [
                _enrolled(usual, usual if kind == "neutral" else own, kind, clips, draw)
                for usual, own in pairs
                for draw in range(DRAWS if clips else 1)
            ]
        )
        for clips in CLIPS
    }


def _enrolled(
    usual: EvaluatedSpeaker, own: EvaluatedSpeaker, kind: str, clips: int, draw: int
) -> tuple[EvaluatedSpeaker, list[int], Columns]:
    """One draw: who, what is scored, and probabilities by column."""
    split = split_enrolment(
        usual.clips,
        neutral=0 if kind == "all" else clips,
        labelled=clips,
        seed=seeding.derive_seed(SEED, "personal", draw),
    )
    indices = {clip.clip_id: index for index, clip in enumerate(usual.clips)}
    neutral, labelled, scored = (
        [indices[clip.clip_id] for clip in part]
        for part in (split.neutral, split.labelled, split.scored)
    )
    mean = _mean(own, kind, neutral, labelled)
    nobody = torch.zeros_like(usual.model.centre)
    columns = {
        "before": torch.softmax(usual.model.predict_logits(usual.features[scored], nobody), 1),
        "normalised": torch.softmax(own.model.predict_logits(own.features[scored], mean), 1),
        "after": own.predict_probabilities(scored, mean, labelled),
    }
    return usual, scored, columns


def _mean(
    own: EvaluatedSpeaker, kind: str, neutral: Sequence[int], labelled: Sequence[int]
) -> torch.Tensor:
    """The user's mean, shape (inputs,)."""
    if kind == "all":
        return own.plain_mean(range(len(own.clips)))
    return own.unlabelled_mean(labelled if kind == "learned" else (), neutral)


def _streams_by_seed(runs: Path, name: str, corpora: Path) -> dict[str, Json]:
    """What streams cost with the models of every seed that is there."""
    found = {}
    for seed in STREAM_SEEDS:
        run = runs / f"{name}-all-{seed}"
        if (run / "run.json").is_file():
            print_lines(f"{name}, streams, seed {seed}")
            found[str(seed)] = _streams(list(enrolment_replay.load_speakers(run, corpora)))
    return found


def _streams(speakers: Sequence[EvaluatedSpeaker]) -> Json:
    """What a stream costs that is mostly neutral, for the plain mean and for the normaliser."""
    drawn = [
        (speaker, found)
        for speaker in speakers
        for draw in range(STREAM_DRAWS)
        if (found := unlabelled_streams.draw_streams(speaker.clips, draw, seed=SEED))
    ]

    def columns(mean_of: str, nobody: bool = False) -> dict[str, list[float]]:
        draws = []
        for speaker, found in drawn:
            means = [getattr(speaker, mean_of)(part) for part in (found.balanced, found.skewed)]
            means = [torch.zeros_like(means[0]), means[0]] if nobody else means
            both = [
                speaker.model.predict_logits(speaker.features[list(found.scored)], m) for m in means
            ]
            even, skewed = (torch.softmax(logits, 1) for logits in both)
            draws.append(_scored_draw(speaker, found.scored, even, skewed))
        rounded: dict[str, list[float]] = _rounded(
            personalisation_metrics.paired_metrics(draws, seed=SEED)
        )
        return rounded

    lengths = [len(found.balanced) for _, found in drawn]
    shares = [
        float(np.mean([speaker.clips[p].emotion in ("neutral", "calm") for p in found.skewed]))
        for speaker, found in drawn
    ]
    return {
        "speakers": len({speaker.name for speaker, _ in drawn}),
        "draws": STREAM_DRAWS,
        "clips": [min(lengths), max(lengths), round(float(np.mean(lengths)), 1)],
        "neutral": round(float(np.mean(shares)), 3),
        "none": columns("unlabelled_mean", nobody=True)["uar"][0],
        "plain": columns("plain_mean"),
        "unlabelled": columns("unlabelled_mean"),
        "neutral_known": columns("oracle_unlabelled_mean"),
        "all": _all(speakers),
    }


def _all(speakers: Sequence[EvaluatedSpeaker]) -> Json:
    """UAR with all clips as one stream: the plain mean, the normaliser, their difference."""
    draws = []
    for speaker in speakers:
        everything = range(len(speaker.clips))
        means = [speaker.plain_mean(everything), speaker.unlabelled_mean(everything)]
        before, after = (
            torch.softmax(speaker.model.predict_logits(speaker.features, m), 1) for m in means
        )
        draws.append(_scored_draw(speaker, everything, before, after))
    rounded: Json = _rounded(
        {"uar": personalisation_metrics.paired_metrics(draws, seed=SEED)["uar"]}
    )
    return rounded


def _figures(drawn: Sequence[tuple[EvaluatedSpeaker, list[int], Columns]]) -> Json:
    """Before and after, paired over users; and the normaliser without a head."""
    draws = [
        _scored_draw(who, scored, columns["before"], columns["after"])
        for who, scored, columns in drawn
    ]
    normalised = torch.cat([columns["normalised"] for *_, columns in drawn]).numpy()
    truth = torch.cat([who.labels[scored] for who, scored, _ in drawn]).numpy()
    figures = personalisation_metrics.paired_metrics(draws, seed=SEED)
    rounded: Json = _rounded(figures | {"ece_without_head": metrics.ece(normalised, truth)})
    return rounded


def _scored_draw(
    speaker: EvaluatedSpeaker, scored: Sequence[int], before: torch.Tensor, after: torch.Tensor
) -> ScoredDraw:
    """One draw as ``paired_metrics`` reads it."""
    labels = speaker.labels[list(scored)]
    data = SpeakerData(
        name=speaker.name,
        gender=speaker.clips[0].gender or "",
        fold=speaker.fold,
        logits=before.log(),
        labels=labels,
        prior=speaker.model.prior,
    )
    return ScoredDraw(
        speaker=data,
        labels=labels.numpy(),
        before=before.numpy(),
        after=after.numpy(),
        covered={},
        within_threshold={},
        sizes={},
    )


def _rounded(found: Any) -> Any:  # noqa: ANN401
    """Numbers to five digits behind the point."""
    if isinstance(found, Mapping):
        return {name: _rounded(value) for name, value in found.items()}
    if isinstance(found, Sequence) and not isinstance(found, str):
        return [_rounded(value) for value in found]
    return round(found, 5) if isinstance(found, float) else found


HEAD = """# Gains from enrolment and labels

Made by `sottovoce reproduce personalisation` from runs of seed 0 that
`sottovoce reproduce accuracy` makes (those of CREMA-D with 6 classes [below](#commands)), on users
who were never trained on. *Before*: no personalisation, that is the model trained for users without
a mean, the population's centre subtracted, no head. *After*: the user's mean subtracted, and a head
fitted on *k* labelled clips. Both on the same clips: those that neither enrolled nor were labelled.

- *k neutral*: the mean comes from *k* clips known to be neutral (at most half of a user's neutral
  clips), the head from *k* **other** clips of any emotion, drawn at random; the model is the one
  trained for such users, as [chosen on training folds](../research/speaker-mean.md).
- *k neutral, k labelled*: the same clips, but the labelled ones count for the user's mean too, as
  unlabelled speech of any mix; the model was trained with users' means subtracted, chosen likewise.
- *all, unlabelled*: the mean comes from all of the user's clips without their labels, the scored
  ones included; the model was trained with users' means subtracted. Its *before* is that of above.

Clips are drawn 3 times (*k* = 0: once). In brackets the 95 % interval of the difference, users
drawn 2,000 times in pairs; **bold** where it lies on the worse side of 0. p10: UAR of the
10th-percentile user; worst: of the worst one. *ECE, no head*: with the user's mean alone.

"""
STREAMS = """
## Streams that are mostly neutral

A stream of unlabelled clips of which 80 % are neutral (on RAVDESS: neutral or calm), against one of
the same length in which every emotion comes as often as can be. Both are drawn many times from each
user's clips, none twice in one stream, as long as the user's neutral clips allow (in fives, at most
20); the same clips are scored with both. *Plain*: the mean of the stream subtracted.
*Normaliser*: what a device learns from it. *Neutral known*: the cost if it knew which clips are
neutral; a stream of one emotion says less about a voice, whatever the estimator. Costs are
paired over users, with their 95 % intervals; the requirement is at most 0.020. *All clips*: plain
mean and normaliser, on all of a user's clips as one stream. Runs of seeds other than 0 are there
for streams alone.

"""
COMMAND = (
    "sottovoce simulate --corpus cremad --data ../shared/corpora/cremad --protocol cremad6-5fold "
    "--public ravdess=../shared/corpora/ravdess --unit {0} --enrolment {1} "
    "--out runs/results/cremad6-5fold-{0}-{1}-0\n"
)


SEEDED = (
    "for seed in 1 2; do sottovoce simulate --corpus cremad --data ../shared/corpora/cremad "
    "--protocol cremad6-5fold --public ravdess=../shared/corpora/ravdess --unit utterance "
    "--enrolment all --seed $seed --out runs/results/cremad6-5fold-utterance-all-$seed; done\n"
)


def format_page(found: Mapping[str, Json]) -> str:
    """Format the page from the figures of all runs."""
    commands = "".join(COMMAND.format(unit, way) for unit in UNITS for way in ("none", "all"))
    commands += SEEDED
    tail = f"\n## Commands\n\n```\n{commands}sottovoce reproduce personalisation\n```\n"
    return "".join([HEAD, *_tables(found), STREAMS, *_stream_table(found), tail])


def _tables(found: Mapping[str, Json]) -> Iterator[str]:
    """One line for each number of clips."""
    yield "| run | enrolled with | k | UAR | ECE | ECE, no head | NLL | Brier | p10 | worst |\n"
    yield f"|{'---|' * 10}\n"
    for line in found.values():
        for kind, by_clips in line["enrolled"].items():
            for clips, figures in by_clips.items():
                cells = [
                    personalisation_metrics.format_cell(name, figures[name]) for name in MEASURES
                ]
                cells.insert(2, f"{figures['ece_without_head']:.3f}")
                shown = KINDS[kind].format(clips)
                yield f"| {_title(line)} | {shown} | {clips} | {' | '.join(cells)} |\n"


def _stream_table(found: Mapping[str, Json]) -> Iterator[str]:
    """One line for each run."""
    yield "| run | users | draws | clips | no mean | plain, even → skewed | cost | normaliser, "
    yield "even → skewed | cost | neutral known, cost | all clips, plain → normaliser |\n"
    yield f"|{'---|' * 11}\n"
    rows = [(line, *row) for line in found.values() for row in line["streams"].items()]
    for line, seed, stream in rows:
        least, most, usual = stream["clips"]
        cells = [
            _title(line) + (f", seed {seed}" if seed != "0" else ""),
            str(stream["speakers"]),
            str(stream.get("draws", 10)),
            f"{least} to {most}, mean {usual:g}",
        ]
        cells.append(f"{stream['none']:.3f}")
        for way in ("plain", "unlabelled", "neutral_known"):
            uar = stream[way]["uar"] if way in stream else [math.nan] * 5
            even, skewed, gained, low, high = uar
            cells += [f"{even:.3f} → {skewed:.3f}"] if way != "neutral_known" else []
            # A cost is a loss of UAR: signs and ends of the interval are turned round.
            cells.append(f"{-gained:.3f} [{-high:+.3f}, {-low:+.3f}]" if way in stream else "–")
        cells.append(personalisation_metrics.format_cell("uar", stream["all"]["uar"]))
        yield f"| {' | '.join(cells)} |\n"


def _title(line: Json) -> str:
    """Protocol and promise."""
    promise = f"{line['unit']} ε = {line['epsilon']:g}" if line["epsilon"] else "no privacy"
    return f"{line['protocol']}, {promise}"
