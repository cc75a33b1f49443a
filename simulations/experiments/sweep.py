"""Experiment with RAVDESS over budgets, units and seeds: docs/results/sweep.md.

    sottovoce reproduce sweep --corpora ../shared/corpora --sweep sweeps/ravdess

Runs that are there already are not made again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sottovoce.shared.atomic_files import replace_text
from sottovoce.simulations.experiments.commands import build_parser, run_command

Json = Mapping[str, Any]
_AXES = ("--epsilons", "1,2,4,8,16", "--units", "utterance,user", "--seeds", "0,1,2")
# The page is made on two cores.
_WORKERS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing runs, then write the page."""
    parser = build_parser("sweep", __doc__)
    parser.add_argument("--corpora", type=Path, default=Path("../shared/corpora"))
    parser.add_argument("--sweep", type=Path, default=Path("sweeps/ravdess"), help="its folder")
    arguments = parser.parse_args(argv)
    path = arguments.out / "sweep.json"
    if arguments.table:
        replace_text(arguments.out / "sweep.md", format_page(json.loads(path.read_text())))
        return 0
    if not (arguments.sweep / "sweep.json").exists():
        words = [*build_command(arguments.corpora), "--out", str(arguments.sweep), "--resume"]
        status = run_command(words)
        if status:
            return status
    found = summarise_sweep(json.loads((arguments.sweep / "sweep.json").read_text()))
    replace_text(path, json.dumps(found, indent=1) + "\n")
    replace_text(arguments.out / "sweep.md", format_page(found))
    return 0


def build_command(corpora: Path) -> list[str]:
    """Build the command of the sweep, as it is typed.

    Example:
        >>> build_command(Path("corpora"))[:4]
        ['sottovoce', 'sweep', '--corpus', 'ravdess']
    """
    data = ["--data", str(corpora / "ravdess"), "--public", f"cremad={corpora / 'cremad'}"]
    workers = ["--workers", str(_WORKERS)]
    return ["sottovoce", "sweep", "--corpus", "ravdess", *data, *_AXES, *workers]


def summarise_sweep(sweep: Json) -> dict[str, Any]:
    """Summarise sweep.json in the figures of the page."""
    return {
        "command": " ".join(build_command(Path("../shared/corpora"))),
        "protocol": sweep["protocol"],
        "points": sweep["points"],
        "timing": sweep["timing"],
    }


def format_page(found: Json) -> str:
    """Format the page from the summary of a sweep."""
    return "\n".join([*_heading(found), *map(_row, found["points"])]) + "\n"


def _heading(found: Json) -> Iterator[str]:
    """What was run, and how long it took."""
    timing = found["timing"]
    yield "# A sweep over budgets, units and seeds"
    yield ""
    yield f"Made by `sottovoce reproduce sweep`: `{found['command']}`."
    yield (
        f"{timing['runs']} runs of `{found['protocol']}`, two at a time on two cores, features and "
        f"public corpora loaded before: **{timing['wall_s'] / 60:.1f} minutes** in all "
        f"({timing['computed']} of them made this time). Mean ± standard deviation over seeds, on "
        "speakers that training never saw, enrolment `all`."
    )
    yield ""
    yield (
        "| hidden | ε | UAR | worst speaker | 10th-percentile speaker | ECE with heads | NLL with "
        "heads |"
    )
    yield "|---|---|---|---|---|---|---|"


def _row(point: Json) -> str:
    """One point of the curve."""
    names = ("uar", "worst_speaker", "p10_speaker", "ece_after", "nll_after")
    cells = [f"{point[name]['mean']:.3f} ± {point[name]['sd']:.3f}" for name in names]
    return f"| {' | '.join([point['unit'], format(point['epsilon'], 'g'), *cells])} |"
