"""Fixtures that every room's tests may use."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
_BESIDE = Path(__file__).resolve().parent.parent.parent / "shared" / "corpora"


@pytest.fixture(scope="session")
def corpora_dir() -> Path:
    """The folder of real corpora; the test is skipped, saying so, where there is none."""
    folder = Path(os.environ.get("SOTTOVOCE_CORPORA", _BESIDE))
    if not folder.is_dir():
        pytest.skip("no real corpora: neither ../shared/corpora nor $SOTTOVOCE_CORPORA exists")
    return folder
