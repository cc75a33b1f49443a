"""Experiment on heads fitted on users' own labels: docs/results/heads.md.

    sottovoce reproduce heads --corpora ../shared/corpora --runs runs/results

Nothing is trained: run folders hold what is needed; ``sottovoce reproduce accuracy`` makes them.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.printable import print_lines
from sottovoce.simulations.evaluation import personalisation, personalisation_metrics
from sottovoce.simulations.experiments.commands import build_parser

LABELLED = (0, 1, 2, 5, 10, 20)
DRAWS, SEED = 5, 0
RUNS = (
    "ravdess8-6fold-none-all-0",
    "ravdess8-6fold-utterance-all-0",
    "cremad4-5fold-none-all-0",
    "cremad4-5fold-utterance-all-0",
    "cremad4-5fold-user-all-0",
    "cremad6-5fold-none-all-0",
    "cremad6-5fold-utterance-all-0",
    "emodb7-loso-none-all-0",
    "emodb7-loso-utterance-all-0",
    "ravdess8-6fold-none-neutral5-0",
    "ravdess8-6fold-utterance-neutral5-0",
    "ravdess8-6fold-none-none-0",
    "ravdess8-6fold-utterance-none-0",
    "emodb7-loso-none-neutral5-0",
    "emodb7-loso-utterance-neutral5-0",
    "emodb7-loso-none-none-0",
    "emodb7-loso-utterance-none-0",
)
SEEDED = {
    "ravdess8-6fold-utterance-all": (0, 1, 2),
    "cremad4-5fold-utterance-all": (0, 1, 2),
    "cremad4-5fold-user-all": (0, 1, 2),
    "emodb7-loso-utterance-all": tuple(range(10)),
}
"""Runs whose noise is drawn several times: thresholds rest on it."""

COVERAGES = (0.8, 0.9, 0.95)
Json = Mapping[str, Any]
MEASURES = ("uar", "ece", "nll", "brier", "p10", "worst")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every finished run, then write the page; figures without a run stay."""
    parser = build_parser("heads", __doc__)
    parser.add_argument("--corpora", type=Path, default=Path("../shared/corpora"))
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="run folders")
    parser.add_argument("--only", default="", help="measure only runs whose name contains this")
    arguments = parser.parse_args(argv)
    # Sums of several threads differ in their last bits, and the page would change with each run.
    torch.set_num_threads(1)
    path = arguments.out / "heads.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    for name in RUNS if not arguments.table else ():
        if arguments.only in name and (arguments.runs / name / "run.json").is_file():
            print_lines(name)
            found[name] = _measured(arguments.runs / name, arguments.corpora)
    for name, seeds in SEEDED.items() if not arguments.table else ():
        runs = [arguments.runs / f"{name}-{seed}" for seed in seeds]
        there = [run for run in runs if (run / "run.json").is_file()]
        if arguments.only in name and len(there) > 1:
            print_lines(f"{name}, {len(there)} seeds")
            found[name] = _over_seeds(there, arguments.corpora)
    found = {name: found[name] for name in (*RUNS, *SEEDED) if name in found}
    replace_text(path, json.dumps(found, indent=1) + "\n")
    replace_text(arguments.out / "heads.md", format_page(found))
    return 0


def _measured(run: Path, corpora: Path) -> dict[str, Any]:
    """All figures of one run."""
    described = json.loads((run / "run.json").read_text())
    everybody = personalisation.load_speakers(run, corpora)
    others = personalisation.scores_by_fold(everybody)
    by_clips = {}
    for clips in LABELLED:
        draws = [
            personalisation.score_draw(one, clips, draw, seed=SEED, corpus_scores=others[one.fold])
            for one in everybody
            # Without labels every draw is the same.
            for draw in range(DRAWS if clips else 1)
        ]
        figures = personalisation_metrics.paired_metrics(draws, seed=SEED) | {
            "calibrated_ece": personalisation_metrics.expected_calibrated_ece(draws, seed=SEED),
            "sets": personalisation_metrics.coverage_by_threshold(draws),
        }
        by_clips[str(clips)] = _rounded(figures)
    return {
        "protocol": described["protocol"]["name"],
        "enrolment": described["protocol"]["enrolment"],
        "unit": described["unit"],
        "epsilon": described["privacy"]["epsilon"],
        "log_temperature": round(everybody[0].prior.mean.log_temperature, 3),
        "labelled": by_clips,
    }


def _over_seeds(runs: Sequence[Path], corpora: Path) -> dict[str, Any]:
    """How often sets of users without labels hold the truth, seed by seed."""
    described = json.loads((runs[0] / "run.json").read_text())
    everybody = [personalisation.load_speakers(run, corpora) for run in runs]
    return {
        "protocol": described["protocol"]["name"],
        "enrolment": described["protocol"]["enrolment"],
        "unit": described["unit"],
        "epsilon": described["privacy"]["epsilon"],
        "covered": {
            f"{coverage:g}": [
                round(personalisation.user_score_coverage(one, coverage=coverage), 5)
                for one in everybody
            ]
            for coverage in COVERAGES
        },
    }


def _rounded(found: Any) -> Any:  # noqa: ANN401
    """Numbers to five digits behind the point."""
    if isinstance(found, Mapping):
        return {name: _rounded(value) for name, value in found.items()}
    if isinstance(found, Sequence) and not isinstance(found, str):
        return [_rounded(value) for value in found]
    return round(found, 5) if isinstance(found, float) else found


HEAD = """# Users' own labels: heads and sets

Made by `sottovoce reproduce heads` from runs that `sottovoce reproduce accuracy` makes, all of
seed 0, and from those [below](#commands).
Users who were never trained on label *k* clips, drawn at random 5 times (*k* = 0: once); figures
are on all their other clips. *Before*: the shared model. *After*: the head that a device fits
([how](../concepts/calibration.md)).
In brackets the 95 % interval of the difference, users drawn 2,000 times in pairs; **bold** where
it lies on the worse side of 0. p10: UAR of the 10th-percentile user; worst: of the worst one, who
has few clips. Users keep one clip of every emotion, so few clips of rare emotions are labelled.
*Calibrated*: the ECE that these predictions would show if they were calibrated, with labels drawn
from the heads' own probabilities. On so few clips it is not 0; differences below it mean nothing.

"""
SETS = """
## Sets at 90 %

How often the set holds the truth. *users*: the threshold comes from what the run's training users
released of their clips, noised and booked
([how](../concepts/releases.md#head-statistics)), as models are handed out. *public*:
from public speakers, another corpus, so nothing is promised; models are handed out so where there
is no *users* line. *members*: from the same corpus's speakers of the other folds, each scored by a
model that was not trained on them: what *users* would be without noise; no model is handed out with
it. *and own*: moved by the user's *k* labelled clips. A set is never empty, so it covers at least
as often as the model is right: on EMO-DB without privacy that alone is more than 90 %, and no
threshold could bring it lower. *alone*: how often the threshold includes the truth, which is what
it was set for. Some sets would be empty then and of no use to an app, so the likeliest emotion is
always included. Worst tenth: mean over the users
who are covered least, picked by these very clips, which alone lowers it. Other *k*:
[heads.json](heads.json).

"""
OVER_SEEDS = """
## Sets over seeds

The same for users without labels, by what training users released (*users* above), at three
coverages. A seed draws all noise anew, of training too: mean over seeds, in brackets the least and
the most.

"""
SHOWN = ("0", "5", "10")


def format_page(found: Mapping[str, Json]) -> str:
    """Format the page from the figures of all runs."""
    runs = {name: line for name, line in found.items() if name in RUNS}
    seeded = {name: line for name, line in found.items() if name in SEEDED}
    return "".join([HEAD, *_heads(runs), SETS, *_sets(runs), *_seeds(seeded), _chosen()])


def _heads(found: Mapping[str, Json]) -> Iterator[str]:
    """The table of heads."""
    yield "| run | k | UAR | ECE | calibrated | NLL | Brier | p10 | worst |\n" + f"|{'---|' * 9}\n"
    for line in found.values():
        for clips, figures in line["labelled"].items():
            cells = [personalisation_metrics.format_cell(name, figures[name]) for name in MEASURES]
            cells.insert(MEASURES.index("ece") + 1, f"{figures['calibrated_ece']:.3f}")
            yield f"| {_title(line)} | {clips} | {' | '.join(cells)} |\n"


def _title(line: Json) -> str:
    """Protocol, promise, enrolment."""
    promise = f"{line['unit']} ε = {line['epsilon']:g}" if line["epsilon"] else "no privacy"
    return f"{line['protocol']}, {promise}, {line['enrolment']}"


def _sets(found: Mapping[str, Json]) -> Iterator[str]:
    """The table of sets."""
    yield (
        "| run | k | threshold | covered | alone | by gender | worst tenth | size |\n"
        f"|{'---|' * 8}\n"
    )
    for line in found.values():
        for clips, figures in line["labelled"].items():
            for name, row in figures["sets"].items():
                if clips not in SHOWN or ("own" in name) == (clips == "0"):
                    continue  # own clips need clips; without them k changes little
                genders = ", ".join(f"{who} {share:.3f}" for who, share in row["gender"].items())
                alone = f"{row['alone']:.3f}" if "alone" in row else "–"
                yield (
                    f"| {_title(line)} | {clips} | {name} | {row['covered']:.3f} | {alone} | "
                    f"{genders} | "
                    f"{row['worst_tenth']:.3f} | {row['size']:.2f} |\n"
                )


def _seeds(found: Mapping[str, Json]) -> Iterator[str]:
    """The table of seeds."""
    if found:
        yield OVER_SEEDS + f"| run | seeds | {' | '.join(f'{c:.0%}' for c in COVERAGES)} |\n"
        yield f"|{'---|' * (2 + len(COVERAGES))}\n"
    for line in found.values():
        cells = [
            f"{statistics.fmean(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})"
            for shares in line["covered"].values()
        ]
        seeds = len(line["covered"]["0.9"])
        yield f"| {_title(line)} | {seeds} | {' | '.join(cells)} |\n"


def _chosen() -> str:
    """How the settings were chosen."""
    return (
        "\nHow the settings of heads and sets were chosen, and which of them were seen on test "
        "speakers: [research notes](../research/heads.md).\n\n"
        "## Commands\n\n```\n"
        + "".join(
            "sottovoce simulate --corpus cremad --data ../shared/corpora/cremad --protocol "
            f"cremad6-5fold --public ravdess=../shared/corpora/ravdess --unit {unit} "
            f"--enrolment all --out runs/results/cremad6-5fold-{unit}-all-0\n"
            for unit in ("none", "utterance")
        )
        + "for seed in 3 4 5 6 7 8 9; do sottovoce simulate --corpus emodb --data "
        "../shared/corpora/emodb --protocol emodb7-loso --public cremad=../shared/corpora/cremad "
        "--public ravdess=../shared/corpora/ravdess --unit utterance --enrolment all --seed $seed "
        "--out runs/results/emodb7-loso-utterance-all-$seed; done\n"
        "sottovoce reproduce heads\n```\n"
    )
