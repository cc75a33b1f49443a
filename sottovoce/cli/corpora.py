"""The commands ``sottovoce corpora``: list known corpora, check one, write example recordings."""

import argparse
from pathlib import Path

from sottovoce.cli.options import (
    Commands,
    add_command,
    add_command_group,
    add_reading_options,
    print_json,
)
from sottovoce.shared.errors import SettingError
from sottovoce.shared.printable import print_lines
from sottovoce.shared.validation import require_one_of

_SILENCE = Path("silence.wav")
_MANY_CLIPS = 500
_SAMPLE_SEED = 1
"""Another seed than the demo's: a voice that its model does not know."""


def add_corpora_command(commands: Commands) -> None:
    """Add the command ``corpora`` and its subcommands."""
    group = add_command_group(
        commands,
        "corpora",
        "List known corpora, check one, or write example recordings.",
        "sottovoce corpora check cremad --data DIR",
    )
    listing = add_command(
        group, "list", run_list_command, "List known corpora.", "sottovoce corpora list"
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    check = add_command(
        group,
        "check",
        run_check_command,
        "Check a corpus: what is found, what is left out and why.",
        "sottovoce corpora check cremad --data DIR",
    )
    check.add_argument("name", help="the corpus to check; sottovoce corpora list shows all")
    check.add_argument("--data", metavar="DIR", help="its folder")
    add_reading_options(check)
    check.add_argument("--json", action="store_true", help="print JSON")
    _add_sample(group)


def _add_sample(group: Commands) -> None:
    sample = add_command(
        group,
        "sample",
        run_sample_command,
        "Write example recordings of one embedded voice, as 16-bit WAV at 16 kHz.",
        "sottovoce corpora sample hello.wav --emotion angry",
    )
    add = sample.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="what to write; none may exist")
    add("--emotion", help="what the voice acts (default: angry in the first, then another in each)")
    add(
        "--seed",
        type=int,
        default=_SAMPLE_SEED,
        metavar="N",
        help=f"decides whose voice it is and what it says (default {_SAMPLE_SEED})",
    )
    add(
        "--silence",
        nargs="?",
        type=Path,
        const=_SILENCE,
        metavar="FILE",
        help=f"write a silent recording, too (default {_SILENCE})",
    )


def run_list_command(arguments: argparse.Namespace) -> int:
    """List the known corpora."""
    from sottovoce.simulations.corpora import TITLES

    if arguments.json:
        print_json(dict(TITLES))
    else:
        width = max(map(len, TITLES))
        print_lines(*(f"{name:<{width}}  {title}" for name, title in TITLES.items()))
    return 0


def run_check_command(arguments: argparse.Namespace) -> int:
    """Check one corpus and print a report."""
    from sottovoce.cli.progress_bar import ProgressConsole
    from sottovoce.simulations.corpora import inspect_corpus, open_corpus

    corpus = open_corpus(
        arguments.name,
        arguments.data,
        labels=arguments.label_map or "",
        follow_links=bool(arguments.follow_links),
    )
    total = len(corpus.clips) + len(corpus.set_aside)
    # Some hundred recordings are measured before anybody wonders.
    with ProgressConsole(quiet=arguments.json or total < _MANY_CLIPS) as console:
        report = inspect_corpus(
            corpus, on_progress=lambda done: console.update_progress("recordings", done, total)
        )
    print_json(report.to_dict()) if arguments.json else print_lines(*report.format_lines())
    return 0


def run_sample_command(arguments: argparse.Namespace) -> int:
    """Write example recordings and print their paths."""
    from sottovoce.simulations.corpora.synthetic import sample_recordings as samples

    emotions = samples.SAMPLE_EMOTIONS
    if arguments.emotion is not None:
        require_one_of(emotions, emotion=arguments.emotion)
        emotions = (arguments.emotion,)
    files = [*arguments.files, *([arguments.silence] if arguments.silence else [])]
    there = [str(path) for path in files if path.exists()]
    if there or len(set(files)) < len(files):
        which = ", ".join(there) or "a file named twice"
        raise SettingError(f"{which}: nothing is written over; name files that do not exist")
    for number, path in enumerate(arguments.files):
        emotion = emotions[number % len(emotions)]
        samples.write_sample(path, emotion=emotion, seed=arguments.seed, utterance=number)
        print_lines(f"{path}: {emotion}")
    if arguments.silence:
        samples.write_silence(arguments.silence)
        print_lines(f"{arguments.silence}: silence")
    return 0
