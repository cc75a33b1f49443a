"""Bring your own corpus: a folder of recordings with a ``manifest.csv``.

``python examples/own_corpus.py [FOLDER]`` writes a small one of embedded voices, checks it and runs
on it. Yours needs the three columns below; ``gender, age, language`` and others may follow.
"""

import csv
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from sottovoce import simulate
from sottovoce.simulations.corpora import inspect_corpus, open_corpus
from sottovoce.simulations.corpora.synthetic.sample_recordings import write_sample
from sottovoce.simulations.scenario.loading import parse_scenario

EMOTIONS = ("angry", "neutral")
SPEAKERS, CLIPS = 4, 6

SCENARIO = """
corpus = "folder"
data = "{folder}"
encoder = "descriptors"
protocol = "holdout"
rounds = 2

[[public]]
name = "synthetic"
data = "speakers=5,clips=6,seed=90210"

[recipe.projection]
dims = 8
"""


def write_corpus(folder: Path) -> None:
    """Write the recordings and their manifest."""
    folder.mkdir(parents=True)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        manifest = csv.writer(file)
        manifest.writerow(["path", "speaker", "emotion"])
        for speaker in range(SPEAKERS):
            for clip in range(CLIPS):
                emotion = EMOTIONS[clip % len(EMOTIONS)]
                name = f"speaker-{speaker}-{clip}.wav"
                write_sample(folder / name, emotion=emotion, seed=100 + speaker, utterance=clip)
                manifest.writerow([name, f"speaker-{speaker}", emotion])


if __name__ == "__main__":
    with TemporaryDirectory() as home:
        corpus = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(home) / "corpus"
        if not corpus.exists():
            write_corpus(corpus)
        print("\n".join(inspect_corpus(open_corpus("folder", corpus)).format_lines()))

        scenario = parse_scenario(SCENARIO.format(folder=corpus), source="this example")
        run = simulate(scenario, out=f"{home}/run")
        print(f"UAR {run['accuracy']['uar']:.3f} on {run['corpus']['clips']} recordings")
