"""The model that comes with the package, for who has trained none."""

from pathlib import Path
from typing import Final

DEFAULT_MODEL: Final = Path(__file__).resolve().parent / "default_model"
"""Folder of the exported model; ``sottovoce reproduce default-model`` makes it."""
