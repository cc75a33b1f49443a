"""The commands about recordings: ``predict``, ``listen`` for streams, and ``features``."""

from sottovoce.cli.options import Commands
from sottovoce.cli.recognition import features, listen, predict

__all__ = ["add_recognition_commands", "features", "listen", "predict", "recogniser_choice"]


def add_recognition_commands(commands: Commands) -> None:
    """Add ``predict``, ``listen`` and ``features``."""
    predict.add_predict_command(commands)
    listen.add_listen_command(commands)
    features.add_features_command(commands)
