"""How experiments are called, and how they call ``sottovoce`` in a process of its own."""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sottovoce.shared.features.cache import FeatureCache
from sottovoce.simulations.data.feature_extraction import Recording, extract_features
from sottovoce.simulations.data.loading import cache_folder


def build_parser(name: str, documentation: str | None) -> argparse.ArgumentParser:
    """Build the parser of one experiment, with the options that all of them have.

    Args:
        name: What ``sottovoce reproduce`` knows it by.
        documentation: The experiment's docstring, whose first line describes it.

    Example:
        >>> build_parser("sweep", "A sweep over budgets.").parse_args(["--table"]).table
        True
    """
    parser = argparse.ArgumentParser(
        prog=f"sottovoce reproduce {name}", description=(documentation or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="the page's folder")
    parser.add_argument("--table", action="store_true", help="write the page alone, run nothing")
    return parser


def run_command(words: Sequence[str]) -> int:
    """Run a command of ``sottovoce``; returns its exit status.

    Args:
        words: The command as it is typed, ``sottovoce`` first.
    """
    # This Python's module, not the program on PATH, which may be another version.
    done = subprocess.run([sys.executable, "-m", "sottovoce.cli", *words[1:]], check=False)
    return done.returncode


def extract_vectors(recordings: Sequence[Recording], encoder: str) -> Mapping[str, Tensor]:
    """Extract the features of recordings that can be used, or read them from the cache.

    Args:
        recordings: With names that are unique.
        encoder: Name of the feature extractor.

    Returns:
        Features by clip; those that cannot be used are missing.
    """
    with FeatureCache(cache_folder()) as cache:
        return extract_features(recordings, encoder, cache).features
