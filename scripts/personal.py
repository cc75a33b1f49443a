"""What enrolment and labels are worth: docs/results/personal.md from finished run folders.

    python scripts/personal.py --corpora ../shared/corpora --runs runs/results

Nothing is trained: run folders keep models, the cache keeps features. Needed are runs with
``--enrolment none`` and ``--enrolment all``, as ``scripts/results.py`` makes them.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sottovoce.shared import metrics, seeds
from sottovoce.simulations import enrolled, streams, worth
from sottovoce.simulations.enrolled import Speaker
from sottovoce.simulations.personal import Judged, Person
from sottovoce.simulations.protocols import enrolment_split

CLIPS = (0, 1, 2, 5, 10)
DRAWS, STREAM_DRAWS, SEED = 3, 40, 0
STREAM_SEEDS = (0, 1, 2)
"""Of runs; streams are judged behind the models of each."""
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
    """Measure every pair of runs that is there, then write the page; what is not there stays."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpora", type=Path, default=Path("../shared/corpora"))
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="run folders")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--only", default="", help="measure only lines whose name contains this")
    parser.add_argument("--streams", action="store_true", help="measure streams alone anew")
    parser.add_argument("--table", action="store_true", help="write the page, measure nothing")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    kept = arguments.out / "personal.json"
    found = json.loads(kept.read_text()) if kept.is_file() else {}
    names = [f"{protocol}-{unit}" for protocol in PROTOCOLS for unit in UNITS]
    for name in names if not (arguments.streams or arguments.table) else ():
        without, behind = (arguments.runs / f"{name}-{given}-0" for given in ("none", "all"))
        there = all((run / "run.json").is_file() for run in (without, behind))
        if arguments.only in name and there:
            print(name, flush=True)
            found[name] = _measured(without, behind, arguments.corpora)
    for name in names if not arguments.table else ():
        if arguments.only in name and name in found:
            measured = _streams_by_seed(arguments.runs, name, arguments.corpora)
            kept_already = found[name].get("streams", {})
            found[name] = {**found[name], "streams": {**kept_already, **measured}}
    found = {name: found[name] for name in names if name in found}
    kept.write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "personal.md").write_text(page(found))
    return 0


def _measured(without: Path, behind: Path, corpora: Path) -> dict[str, Any]:
    """All figures of one protocol and promise, from the run without users' means and with."""
    described = json.loads((without / "run.json").read_text())
    pairs = list(
        zip(enrolled.speakers(without, corpora), enrolled.speakers(behind, corpora), strict=True)
    )
    return {
        "protocol": described["protocol"]["name"],
        "unit": described["unit"],
        "epsilon": described["privacy"]["epsilon"],
        "enrolled": {kind: _by_clips(pairs, kind) for kind in KINDS},
    }


def _by_clips(pairs: Sequence[tuple[Speaker, Speaker]], kind: str) -> dict[str, Json]:
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
    usual: Speaker, own: Speaker, kind: str, clips: int, draw: int
) -> tuple[Speaker, list[int], Columns]:
    """One draw: who, what is scored, and probabilities by column."""
    given = enrolment_split(
        usual.clips,
        neutral=0 if kind == "all" else clips,
        labelled=clips,
        seed=seeds.derive(SEED, "personal", draw),
    )
    places = {clip.clip_id: place for place, clip in enumerate(usual.clips)}
    neutral, labelled, scored = (
        [places[clip.clip_id] for clip in part]
        for part in (given.neutral, given.labelled, given.scored)
    )
    mean = _mean(own, kind, neutral, labelled)
    nobody = torch.zeros_like(usual.model.centre)
    columns = {
        "before": torch.softmax(usual.model.logits(usual.rows[scored], nobody), 1),
        "normalised": torch.softmax(own.model.logits(own.rows[scored], mean), 1),
        "after": own.chances(scored, mean, labelled),
    }
    return usual, scored, columns


def _mean(own: Speaker, kind: str, neutral: Sequence[int], labelled: Sequence[int]) -> torch.Tensor:
    """The user's mean, shape (inputs,)."""
    if kind == "all":
        return own.plain(range(len(own.clips)))
    return own.unlabelled(labelled if kind == "learned" else (), neutral)


def _streams_by_seed(runs: Path, name: str, corpora: Path) -> dict[str, Json]:
    """What streams cost behind the models of every seed that is there."""
    found = {}
    for seed in STREAM_SEEDS:
        run = runs / f"{name}-all-{seed}"
        if (run / "run.json").is_file():
            print(f"{name}, streams, seed {seed}", flush=True)
            found[str(seed)] = _streams(list(enrolled.speakers(run, corpora)))
    return found


def _streams(speakers: Sequence[Speaker]) -> Json:
    """What a stream costs that is mostly neutral, for the plain mean and for the normaliser."""
    drawn = [
        (speaker, found)
        for speaker in speakers
        for draw in range(STREAM_DRAWS)
        if (found := streams.draw(speaker.clips, draw, seed=SEED))
    ]

    def columns(way: str, nobody: bool = False) -> dict[str, list[float]]:
        judged = []
        for speaker, found in drawn:
            means = [getattr(speaker, way)(part) for part in (found.even, found.skewed)]
            means = [torch.zeros_like(means[0]), means[0]] if nobody else means
            both = [speaker.model.logits(speaker.rows[list(found.scored)], m) for m in means]
            even, skewed = (torch.softmax(logits, 1) for logits in both)
            judged.append(_judged(speaker, found.scored, even, skewed))
        rounded: dict[str, list[float]] = _rounded(worth.figures(judged, seed=SEED))
        return rounded

    lengths = [len(found.even) for _, found in drawn]
    shares = [
        float(np.mean([speaker.clips[p].emotion in ("neutral", "calm") for p in found.skewed]))
        for speaker, found in drawn
    ]
    return {
        "speakers": len({speaker.name for speaker, _ in drawn}),
        "draws": STREAM_DRAWS,
        "clips": [min(lengths), max(lengths), round(float(np.mean(lengths)), 1)],
        "neutral": round(float(np.mean(shares)), 3),
        "none": columns("unlabelled", nobody=True)["uar"][0],
        "plain": columns("plain"),
        "unlabelled": columns("unlabelled"),
        "told": columns("unlabelled_but_neutral"),
        "all": _all(speakers),
    }


def _all(speakers: Sequence[Speaker]) -> Json:
    """UAR with all clips as one stream: the plain mean, the normaliser, their difference."""
    judged = []
    for speaker in speakers:
        everything = range(len(speaker.clips))
        means = [speaker.plain(everything), speaker.unlabelled(everything)]
        before, after = (torch.softmax(speaker.model.logits(speaker.rows, m), 1) for m in means)
        judged.append(_judged(speaker, everything, before, after))
    rounded: Json = _rounded({"uar": worth.figures(judged, seed=SEED)["uar"]})
    return rounded


def _figures(drawn: Sequence[tuple[Speaker, list[int], Columns]]) -> Json:
    """Before and after, paired over users; and the normaliser without a head."""
    judged = [
        _judged(who, scored, columns["before"], columns["after"]) for who, scored, columns in drawn
    ]
    normalised = torch.cat([columns["normalised"] for *_, columns in drawn]).numpy()
    truth = torch.cat([who.labels[scored] for who, scored, _ in drawn]).numpy()
    figures = worth.figures(judged, seed=SEED)
    rounded: Json = _rounded(figures | {"ece_without_head": metrics.ece(normalised, truth)})
    return rounded


def _judged(
    speaker: Speaker, scored: Sequence[int], before: torch.Tensor, after: torch.Tensor
) -> Judged:
    """What ``worth`` reads."""
    labels = speaker.labels[list(scored)]
    person = Person(
        speaker=speaker.name,
        gender=speaker.clips[0].gender or "",
        fold=speaker.fold,
        logits=before.log(),
        labels=labels,
        prior=speaker.model.prior,
    )
    return Judged(
        person=person,
        labels=labels.numpy(),
        before=before.numpy(),
        after=after.numpy(),
        covered={},
        within={},
        sizes={},
    )


def _rounded(found: Any) -> Any:  # noqa: ANN401
    """Numbers to five digits behind the point."""
    if isinstance(found, Mapping):
        return {name: _rounded(value) for name, value in found.items()}
    if isinstance(found, Sequence) and not isinstance(found, str):
        return [_rounded(value) for value in found]
    return round(found, 5) if isinstance(found, float) else found


HEAD = """# Enrolment and labels: what personal data is worth

Made by `python scripts/personal.py` from runs of seed 0 that `python scripts/results.py` makes
(those of CREMA-D with 6 classes [below](#commands)), on users who were never trained on.
*Before*: no personalisation, that is the model trained for users without a mean, behind the
population's centre, no head. *After*: the user's mean taken off, and a head fitted on *k* labelled
clips. Both on the same clips: those that neither enrolled nor were labelled.

- *k neutral*: the mean comes from *k* clips known to be neutral (at most half of a user's neutral
  clips), the head from *k* **other** clips of any emotion, drawn at random; the model is the one
  trained for such users, as [chosen on training folds](../recipes.md#how-they-were-chosen).
- *k neutral, k labelled*: the same clips, but the labelled ones tell the device the user's mean
  too, as unlabelled speech of any mix; the model was trained behind users' means, likewise chosen.
- *all, unlabelled*: the mean comes from all of the user's clips without their labels, the scored
  ones included; the model was trained behind users' means. Its *before* is the same as above.

Clips are drawn 3 times (*k* = 0: once). In brackets the 95 % interval of the difference, users
drawn 2,000 times in pairs; **bold** where it lies on the worse side of 0. p10: UAR of the
10th-percentile user; worst: of the worst one. *ECE, no head*: with the user's mean alone.

"""
STREAMS = """
## Streams that are mostly neutral

A stream of unlabelled clips of which 80 % are neutral (on RAVDESS: neutral or calm), against one of
the same length in which every emotion comes as often as can be. Both are drawn many times from each
user's clips, none twice in one stream, as long as the user's neutral clips allow (in fives, at most
20); the same clips are scored behind both. *Plain*: the mean of the stream taken off.
*Normaliser*: what a device learns from it. *Told*: the cost if it were told which clips are
neutral; a stream of one emotion says less of a voice, whoever listens. Costs are paired over users,
with their 95 % intervals; asked for is at most 0.020. *All clips*: plain mean and normaliser, on
all of a user's clips as one stream. Runs of seeds other than 0 are there for streams alone.

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


def page(found: Mapping[str, Json]) -> str:
    """The page for people."""
    commands = "".join(COMMAND.format(unit, way) for unit in UNITS for way in ("none", "all"))
    commands += SEEDED
    tail = f"\n## Commands\n\n```\n{commands}python scripts/personal.py\n```\n"
    return "".join([HEAD, *_tables(found), STREAMS, *_stream_table(found), tail])


def _tables(found: Mapping[str, Json]) -> Iterator[str]:
    """One line for each number of clips."""
    yield "| run | enrolled with | k | UAR | ECE | ECE, no head | NLL | Brier | p10 | worst |\n"
    yield f"|{'---|' * 10}\n"
    for line in found.values():
        for kind, by_clips in line["enrolled"].items():
            for clips, figures in by_clips.items():
                cells = [worth.cell(name, figures[name]) for name in MEASURES]
                cells.insert(2, f"{figures['ece_without_head']:.3f}")
                shown = KINDS[kind].format(clips)
                yield f"| {_title(line)} | {shown} | {clips} | {' | '.join(cells)} |\n"


def _stream_table(found: Mapping[str, Json]) -> Iterator[str]:
    """One line for each run."""
    yield "| run | users | draws | clips | no mean | plain, even → skewed | cost | "
    yield "normaliser, even → skewed | cost | told, cost | all clips, plain → normaliser |\n"
    yield f"|{'---|' * 11}\n"
    rows = [(line, *row) for line in found.values() for row in line["streams"].items()]
    for line, seed, told in rows:
        least, most, usual = told["clips"]
        cells = [
            _title(line) + (f", seed {seed}" if seed != "0" else ""),
            str(told["speakers"]),
            str(told.get("draws", 10)),
            f"{least} to {most}, mean {usual:g}",
        ]
        cells.append(f"{told['none']:.3f}")
        for way in ("plain", "unlabelled", "told"):
            even, skewed, gained, low, high = told[way]["uar"] if way in told else [math.nan] * 5
            cells += [f"{even:.3f} → {skewed:.3f}"] if way != "told" else []
            cells.append(f"{-gained:.3f} [{-high:+.3f}, {-low:+.3f}]" if way in told else "–")
        cells.append(worth.cell("uar", told["all"]["uar"]))
        yield f"| {' | '.join(cells)} |\n"


def _title(line: Json) -> str:
    """Protocol and promise."""
    promise = f"{line['unit']} ε = {line['epsilon']:g}" if line["epsilon"] else "no privacy"
    return f"{line['protocol']}, {promise}"


if __name__ == "__main__":
    sys.exit(main())
