"""Benches of users' calibration heads: fitting, scoring, sealing."""

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch

from sottovoce.client.device.vault import FileVault
from sottovoce.client.personalisation.head_calibrator import HeadCalibrator
from sottovoce.shared import calibration
from sottovoce.shared.calibration import adapter_basis

Benchmark = Callable[[], object]
CLASSES = 8


def list_head_benchmarks(folder: Path) -> Iterator[tuple[str, Benchmark]]:
    """List name and work of each bench.

    Args:
        folder: Where vaults are made.
    """
    yield "head: fitted on 50 labelled clips", _head()
    yield "head: the same, with the scores of sets, and kept in a vault", _sealed_head(folder)
    yield "head: sealed for the server", _calibrator(folder).seal_head


def measure_sizes(folder: Path) -> dict[str, int]:
    """Measure the bytes that one user's head takes on the wire."""
    return {"head on the wire, sealed": len(_calibrator(folder).seal_head().blob)}


def _head() -> Benchmark:
    """Fit one user's head."""
    logits, labels, coordinates = _labelled()
    return lambda: calibration.fit_head_only(logits, labels, _prior(), coordinates)


@cache
def _prior() -> calibration.HeadPrior:
    """The head prior, with all directions of its adapters."""
    voices = torch.randn(400, 128, generator=torch.Generator().manual_seed(5))
    return calibration.HeadPrior(
        mean=calibration.identity_head(CLASSES), basis=adapter_basis.fit_basis(voices, CLASSES)
    )


def _labelled() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Logits, labels and coordinates of 50 clips."""
    random = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(50, CLASSES, generator=random)
    labels = torch.randint(CLASSES, (50,), generator=random)
    return logits, labels, _prior().project_vectors(torch.randn(50, 128, generator=random))


def _sealed_head(folder: Path) -> Benchmark:
    """All that a device does with 50 labelled clips."""
    calibrator, labelled = _calibrator(folder), _labelled()
    return lambda: calibrator.fit_head(*labelled)


def _calibrator(folder: Path) -> HeadCalibrator:
    """A device's calibrator that has fitted a head."""
    vault = FileVault.create(Path(tempfile.mkdtemp(dir=folder)) / "vault", user="bench")
    calibrator = HeadCalibrator(vault, model_hash="0" * 64, prior=_prior())
    calibrator.fit_head(*_labelled())
    return calibrator
