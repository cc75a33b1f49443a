"""Experiment on models that leave their corpus: docs/results/cross-corpus.md.

    sottovoce reproduce cross-corpus --corpora ../shared/corpora --runs runs/cross-corpus

Users of one corpus train, another is public, a third judges; and of the three always two train
together while the third judges. Labels are harmonised by ``EMOTIONS`` alone. Nothing of the corpus
that judges is used but its users' own unlabelled speech, as the table says.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, Final

import torch

from sottovoce.shared.atomic_files import replace_text
from sottovoce.simulations.corpora import open_corpus
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.experiments.commands import build_parser, run_command
from sottovoce.simulations.experiments.generalisation.transfer import (
    KNOWN,
    UNLABELLED,
    measure_transfer,
)

PROTOCOLS: Final = {
    "emodb": "emodb7-loso",
    "ravdess": "ravdess8-6fold",
    "cremad": "cremad6-5fold",
}
TITLES: Final = {"cremad": "CREMA-D", "ravdess": "RAVDESS", "emodb": "EMO-DB"}
EMOTIONS: Final = ("neutral", "happy", "sad", "angry", "fearful", "disgust")
"""Emotions that all three corpora have; where two train together, their other clips stay out."""

UNITS: Final = ("none", "utterance")
PUBLIC_EVERY: Final = 5
"""Where two corpora train together, every fifth of their speakers is public instead."""

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """One run and the corpus that judges its models.

    Attributes:
        users: Corpora whose speakers train, one or two.
        public: The corpus that is public; empty where two train, whose fifth speakers are.
        judge: The corpus that judges.
        unit: Privacy unit; at epsilon 8 unless it is ``none``.
        seed: Of the run.
    """

    users: tuple[str, ...]
    public: str
    judge: str
    unit: str
    seed: int

    @property
    def run_name(self) -> str:
        """Name of the run folder."""
        source = f"{self.users[0]}-{self.public}" if self.public else "-and-".join(self.users)
        return f"{source}-{self.unit}-{self.seed}"

    def command(self, corpora: Path, combined: Path) -> list[str]:
        """Build the command of the run.

        Args:
            corpora: The folder in which the corpora lie under their names.
            combined: Where ``combine_corpora`` wrote the manifests of two corpora.

        Example:
            >>> users, unit = ("emodb",), "none"
            >>> one = Transfer(users=users, public="cremad", judge="ravdess", unit=unit, seed=0)
            >>> one.command(Path("in"), Path("out"))[2:8]
            ['--corpus', 'emodb', '--data', 'in/emodb', '--protocol', 'emodb7-loso']
        """
        words = ["sottovoce", "simulate", "--corpus"]
        if self.public:
            own, other = self.users[0], self.public
            words += [own, "--data", str(corpora / own), "--protocol", PROTOCOLS[own]]
            words += ["--public", f"{other}={corpora / other}"]
        else:
            words += ["folder", "--data", str(combined / "users"), "--protocol", "5fold"]
            words += ["--public", f"folder={combined / 'public'}", "--follow-links"]
        return [*words, "--unit", self.unit, "--enrolment", "all", "--seed", str(self.seed)]


def list_transfers(seeds: Sequence[int]) -> Iterator[Transfer]:
    """List every run of the page.

    Example:
        >>> len(list(list_transfers([0])))
        18
    """
    for unit in UNITS:
        for seed in seeds:
            for user, public, judge in permutations(PROTOCOLS):
                yield Transfer(users=(user,), public=public, judge=judge, unit=unit, seed=seed)
            for judge in PROTOCOLS:
                users = tuple(name for name in PROTOCOLS if name != judge)
                yield Transfer(users=users, public="", judge=judge, unit=unit, seed=seed)


def combine_corpora(corpora: Path, names: Sequence[str], out: Path) -> None:
    """Write manifests of several corpora together, under the labels that all of them have.

    Args:
        corpora: The folder in which the corpora lie under their names.
        names: Which of them.
        out: Gets ``users/`` and ``public/``, each a manifest with links to the corpora; no clip
            is copied.
    """
    clips = {name: open_corpus(name, corpora / name).clips for name in names}
    for room, is_public in (("users", False), ("public", True)):
        folder = out / room
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            link = folder / name
            # Corpora may have moved since an earlier run wrote its links.
            link.unlink(missing_ok=True)
            link.symlink_to((corpora / name).resolve(), target_is_directory=True)
        chosen = [
            (name, clip)
            for name in names
            for clip in clips[name]
            if clip.emotion in EMOTIONS and _is_public(clip, clips[name]) == is_public
        ]
        replace_text(folder / "manifest.csv", _format_manifest(chosen))


def _is_public(clip: Clip, clips: Sequence[Clip]) -> bool:
    """Whether a clip's speaker is one of the corpus's public ones."""
    return clip.speaker in sorted({one.speaker for one in clips})[::PUBLIC_EVERY]


def _format_manifest(clips: Sequence[tuple[str, Clip]]) -> str:
    """A manifest of clips and the folder that each lies in."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "speaker", "emotion", "gender", "language", "corpus"))
    for name, clip in clips:
        # Corpora number their speakers alike: two people are not to become one client.
        speaker = f"{name}-{clip.speaker}"
        rows.writerow(
            (f"{name}/{clip.clip_id}", speaker, clip.emotion, clip.gender, clip.language, name)
        )
    return text.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs that are missing, measure those that are there, write the page."""
    parser = build_parser("cross-corpus", __doc__)
    parser.add_argument("--corpora", type=Path, default=Path("../shared/corpora"))
    parser.add_argument("--runs", type=Path, default=Path("runs/cross-corpus"), help="run folders")
    parser.add_argument("--seeds", default="0", help="seeds, as 0,1,2")
    parser.add_argument("--existing", action="store_true", help="measure the runs that are there")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = arguments.out / "cross-corpus.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    seeds = [int(part) for part in arguments.seeds.split(",")]
    for transfer in list_transfers(seeds) if not arguments.table else ():
        run = arguments.runs / transfer.run_name
        is_there = (run / "run.json").is_file()
        if not is_there and arguments.existing:
            continue
        if not is_there and _make_run(transfer, arguments.corpora, run):
            return 1
        judge = open_corpus(transfer.judge, arguments.corpora / transfer.judge)
        found[transfer.run_name] = measure_transfer(run, judge) | {
            "own_uar": json.loads((run / "run.json").read_text())["accuracy"]["uar"]
        }
        # Written after each: a stop loses one measurement.
        replace_text(path, json.dumps(found, indent=1) + "\n")
    replace_text(arguments.out / "cross-corpus.md", format_page(found))
    return 0


def _make_run(transfer: Transfer, corpora: Path, run: Path) -> int:
    """Make one run; returns its exit status."""
    combined = run.parent / "-and-".join(transfer.users)
    if not transfer.public:  # two corpora train, and share one manifest
        combine_corpora(corpora, transfer.users, combined)
    return run_command([*transfer.command(corpora, combined), "--out", str(run), "--quiet"])


HEAD = """# Other corpora

Made by `sottovoce reproduce cross-corpus`; any other corpus is tried on a finished run by
`sottovoce crosscorpus RUN --corpus NAME --data DIR`, by its manifest alone. Users of one corpus
train, a second is public, the third judges. Where two corpora train together, with the emotions
that all three have, every fifth of their speakers is public. No clip of the corpus that judges was
used for anything but this table. UAR is over the emotions that it shares with the models, of which
one is named, and is the mean over the models of all folds; in brackets the 95 % interval over its
speakers. Runs that are not listed were not made yet.

What is known of a voice, never with a label: *nothing*; *{unlabelled} utterances* of any emotion,
which the device adapts to and which are not scored; *corpus*: the mean of all clips of the corpus;
*user*: the mean of all the user's utterances. *Own* is the run's accuracy on its own test speakers
and emotions.
"""
UNIT_TITLES: Final = {
    "none": "Without privacy",
    "utterance": "ε = 8 for one utterance, the device's own noise",
}


def format_page(found: Mapping[str, Json]) -> str:
    """Format the page from the figures of all runs."""
    seeds = sorted({int(name.rpartition("-")[2]) for name in found})
    parts = [HEAD.format(unlabelled=UNLABELLED)]
    for unit in UNITS:
        rows = [
            _format_row(transfer, found[transfer.run_name])
            for transfer in list_transfers(seeds)
            if transfer.unit == unit and transfer.run_name in found
        ]
        parts += [f"\n## {UNIT_TITLES[unit]}\n\n", _TABLE.format(unlabelled=UNLABELLED), *rows]
    return "".join(parts)


_TABLE = """\
| users | public | judge | seed | own | nothing | {unlabelled} utterances | corpus | user |
|---|---|---|---|---|---|---|---|---|
"""


def _format_row(transfer: Transfer, line: Json) -> str:
    """One run on one corpus."""
    cells = [
        f"{one['estimate']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        for one in (line["uar"][about] for about in KNOWN)
    ]
    users = " and ".join(TITLES[name] for name in transfer.users)
    public = TITLES.get(transfer.public, "a fifth of the speakers")
    judge = f"{TITLES[transfer.judge]} ({line['clips']} clips, {line['speakers']} speakers)"
    figures = " | ".join([f"{line['own_uar']:.3f}", *cells])
    return f"| {users} | {public} | {judge} | {transfer.seed} | {figures} |\n"
