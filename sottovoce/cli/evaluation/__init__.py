"""The commands behind evidence: ``crosscorpus``, ``reproduce`` and ``ablate``."""

from sottovoce.cli import reproduce
from sottovoce.cli.evaluation import cross_corpus
from sottovoce.cli.options import Commands

__all__ = ["add_evaluation_commands", "cross_corpus"]


def add_evaluation_commands(commands: Commands) -> None:
    """Add ``crosscorpus``, ``reproduce`` and ``ablate``."""
    cross_corpus.add_cross_corpus_command(commands)
    reproduce.add_reproduce_command(commands)
    reproduce.add_ablate_command(commands)
