"""Small recordings and folders for the tests of corpora."""

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

WriteWav = Callable[..., Path]


@pytest.fixture
def wav(tmp_path: Path) -> WriteWav:
    """Write a short recording below the test's folder; each name sounds different."""

    def write(
        name: str, *, seed: int | None = None, rate: int = 16_000, level: float = 0.1
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        own = sum(name.encode()) if seed is None else seed
        noise = level * np.random.default_rng(own).standard_normal(rate * 3 // 10)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((noise.clip(-1, 1) * 32_767).astype("<i2").tobytes())
        return path

    return write
