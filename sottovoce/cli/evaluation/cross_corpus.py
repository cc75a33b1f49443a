"""The command ``crosscorpus``: a finished run's models on a corpus that they never saw."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sottovoce.cli.options import Commands, add_command, add_reading_options, print_json
from sottovoce.shared.printable import clean_text, print_lines

KNOWLEDGE = {
    "none": "nothing",
    "unlabelled": "{unlabelled} utterances",
    "corpus": "the corpus's mean",
    "user": "the user's mean",
}
"""What is known of a voice, as the table says it."""


def add_cross_corpus_command(commands: Commands) -> None:
    """Add the command ``crosscorpus``."""
    parser = add_command(
        commands,
        "crosscorpus",
        run_cross_corpus_command,
        "Try a run's models on a corpus that they never saw, on the emotions that both have.",
        "sottovoce crosscorpus runs/cremad --corpus folder --data my-recordings",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN")
    add = parser.add_argument
    add("--corpus", metavar="NAME", default="folder", help="its layout (default: folder)")
    add("--data", metavar="DIR", help="its folder, or the manifest in it")
    add_reading_options(parser)
    add(
        "--unlabelled",
        type=int,
        default=10,
        metavar="N",
        help="utterances of each voice that are adapted to, and not scored (default 10)",
    )
    add("--seed", type=int, default=0, metavar="N", help="draws them, and the intervals")
    add("--json", action="store_true", help="print JSON")


def run_cross_corpus_command(arguments: argparse.Namespace) -> int:
    """Measure, and print UAR with its interval by what is known of a voice."""
    from sottovoce.shared import validation
    from sottovoce.simulations.corpora import open_corpus
    from sottovoce.simulations.experiments.generalisation.transfer import measure_transfer

    validation.require_at_least(1, unlabelled=arguments.unlabelled)
    corpus = open_corpus(
        arguments.corpus,
        arguments.data,
        labels=arguments.label_map or "",
        follow_links=bool(arguments.follow_links),
    )
    found = measure_transfer(
        arguments.run_folder, corpus, unlabelled=arguments.unlabelled, seed=arguments.seed
    )
    if arguments.json:
        print_json(found)
    else:
        print_lines(*_format_lines(found, arguments.unlabelled))
    return 0


def _format_lines(found: Mapping[str, Any], unlabelled: int) -> list[str]:
    """The table for a person."""
    emotions = ", ".join(clean_text(emotion) for emotion in found["emotions"])
    lines = [
        f"{found['clips']} clips of {found['speakers']} speakers; emotions: {emotions}",
        "known of a voice    UAR    95 % over speakers",
    ]
    for name, title in KNOWLEDGE.items():
        one = found["uar"][name]
        words = title.format(unlabelled=unlabelled)
        lines.append(f"{words:<18}  {one['estimate']:.3f}  {one['low']:.3f} to {one['high']:.3f}")
    return lines
