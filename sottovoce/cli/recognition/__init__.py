"""The commands that recognise: ``predict`` for recordings, ``listen`` for streams."""

from sottovoce.cli.options import Commands
from sottovoce.cli.recognition import listen, predict

__all__ = ["add_recognition_commands", "listen", "predict", "recogniser_choice"]


def add_recognition_commands(commands: Commands) -> None:
    """Add ``predict`` and ``listen``."""
    predict.add_predict_command(commands)
    listen.add_listen_command(commands)
