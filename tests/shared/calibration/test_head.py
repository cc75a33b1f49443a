"""A head changes logits as it says, and its bytes are its own and its model's."""

import math

import pytest
import torch

from sottovoce.shared import calibration, seeding
from sottovoce.shared.calibration import CalibrationHead, HeadAdapter, SealedHead
from sottovoce.shared.errors import ModelError

CLASSES, RANK = 4, 3
MODEL, OTHER = "ab" * 32, "cd" * 32
TAG = b"a basis!"


def tilted() -> CalibrationHead:
    return CalibrationHead(log_temperature=0.3, bias=torch.tensor([0.2, -0.1, 0.4, -0.5]))


def bent() -> CalibrationHead:
    weights = torch.randn(CLASSES, RANK, generator=seeding.torch_rng(0, "weights"))
    straight = tilted()
    return CalibrationHead(
        log_temperature=straight.log_temperature,
        bias=straight.bias,
        adapter=HeadAdapter(weights=weights, basis_tag=TAG),
    )


def test_identity_changes_nothing() -> None:
    logits = torch.randn(5, CLASSES, generator=seeding.torch_rng(0, "logits"))

    assert torch.equal(
        calibration.calibrate_logits(calibration.identity_head(CLASSES), logits), logits
    )


@pytest.mark.parametrize("shape", [(CLASSES,), (0, CLASSES), (2, 3, CLASSES)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_applying_keeps_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = torch.ones(shape, dtype=dtype)
    calibrated = calibration.calibrate_logits(tilted(), logits)

    assert (calibrated.shape, calibrated.dtype) == (logits.shape, dtype)
    expected = logits / math.exp(0.3) + tilted().bias.to(dtype)
    torch.testing.assert_close(calibrated, expected)


@pytest.mark.parametrize(
    ("log_temperature", "bias"),
    [
        (math.nan, [0.0, 0.0]),
        (51.0, [0.0, 0.0]),
        (0.0, [0.0, math.inf]),
        (0.0, [0.0]),
        (0.0, [[0.0, 0.0]]),
        (0.0, [0.0] * 257),
    ],
)
def test_heads_are_checked_at_birth(log_temperature: float, bias: list[float]) -> None:
    with pytest.raises(ModelError):
        CalibrationHead(log_temperature=log_temperature, bias=torch.tensor(bias))


def test_bytes_come_back_as_the_same_head() -> None:
    data = calibration.to_bytes(tilted(), MODEL)
    back = calibration.from_bytes(data, MODEL)

    assert back.log_temperature == tilted().log_temperature
    assert torch.equal(back.bias, tilted().bias)
    wide = HeadAdapter(weights=torch.zeros(256, 1), basis_tag=TAG)
    largest = CalibrationHead(log_temperature=0.0, bias=torch.zeros(256), adapter=wide)
    assert len(calibration.to_bytes(largest, MODEL)) < calibration.MAX_HEAD_BYTES


def test_a_head_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="fit it again"):
        calibration.from_bytes(calibration.to_bytes(tilted(), MODEL), OTHER)


@pytest.mark.parametrize("head", [tilted(), bent()])
def test_every_cut_of_the_bytes_is_refused(head: CalibrationHead) -> None:
    data = calibration.to_bytes(head, MODEL)

    for length in range(len(data)):
        with pytest.raises(ModelError):
            calibration.from_bytes(data[:length], MODEL)
    with pytest.raises(ModelError):
        calibration.from_bytes(data + b"\x00", MODEL)


def test_a_newer_schema_is_refused() -> None:
    data = bytearray(calibration.to_bytes(tilted(), MODEL))
    data[4] = 3

    with pytest.raises(ModelError, match="schema 3"):
        calibration.from_bytes(bytes(data), MODEL)


@pytest.mark.parametrize("model_hash", ["", "ab", "xy" * 32, "ab " * 32, "ab" * 33])
def test_hashes_that_are_none_are_refused(model_hash: str) -> None:
    with pytest.raises(ModelError, match="SHA-256"):
        calibration.to_bytes(tilted(), model_hash)
    with pytest.raises(ModelError, match="SHA-256"):
        SealedHead(model_hash=model_hash, version=1, blob=b"")


@pytest.mark.parametrize("version", [0, -1, 1 << 63])
def test_versions_out_of_range_are_refused(version: int) -> None:
    with pytest.raises(ModelError, match="version"):
        SealedHead(model_hash=MODEL, version=version, blob=b"")


def test_an_adapter_adds_what_its_weights_make_of_the_coordinates() -> None:
    rng = seeding.torch_rng(1, "coordinates")
    logits, places = torch.randn(5, CLASSES, generator=rng), torch.randn(5, RANK, generator=rng)
    adapter = bent().adapter
    assert adapter is not None

    found = calibration.calibrate_logits(bent(), logits, places)

    expected = calibration.calibrate_logits(tilted(), logits) + places @ adapter.weights.mT
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(calibration.calibrate_logits(bent(), logits[0], places[0]), found[0])


def test_an_adapter_comes_back_whole() -> None:
    back = calibration.from_bytes(calibration.to_bytes(bent(), MODEL), MODEL)

    assert calibration.to_bytes(back, MODEL) == calibration.to_bytes(bent(), MODEL)
    assert back.adapter is not None
    assert back.adapter.basis_tag == TAG
    assert calibration.from_bytes(calibration.to_bytes(tilted(), MODEL), MODEL).adapter is None


@pytest.mark.parametrize("places", [None, torch.zeros(5, RANK + 1), torch.zeros(4, RANK)])
def test_an_adapter_without_its_coordinates_is_refused(places: torch.Tensor | None) -> None:
    with pytest.raises(ModelError, match="coordinates"):
        calibration.calibrate_logits(bent(), torch.zeros(5, CLASSES), places)


@pytest.mark.parametrize(
    ("weights", "tag"),
    [
        (torch.full((CLASSES, RANK), math.nan), TAG),
        (torch.zeros(CLASSES, 0), TAG),
        (torch.zeros(CLASSES, 33), TAG),
        (torch.zeros(CLASSES), TAG),
        (torch.zeros(CLASSES, RANK), b"short"),
        (torch.zeros(CLASSES + 1, RANK), TAG),
    ],
)
def test_adapters_are_checked_at_birth(weights: torch.Tensor, tag: bytes) -> None:
    with pytest.raises(ModelError):
        CalibrationHead(
            log_temperature=0.0,
            bias=torch.zeros(CLASSES),
            adapter=HeadAdapter(weights=weights, basis_tag=tag),
        )
