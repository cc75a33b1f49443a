"""Contracts of the names: each gives what the table says, and unknown ones list the known."""

import doctest

import pytest
import torch

from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import SettingError
from sottovoce.shared.features import registry
from sottovoce.shared.features.descriptors import Descriptors
from sottovoce.shared.features.log_mel import LogMel

SIGNAL = Signal(0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)), 16_000)


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(registry).failed == 0


@pytest.mark.parametrize(
    ("name", "width", "framewise"),
    [
        ("whisper-tiny-en", 2304, False),
        ("whisper-tiny-en-frames", 768, True),
        ("descriptors", 476, False),
        ("log-mel", 64, True),
        ("whisper-tiny-en+descriptors", 2780, False),
    ],
)
def test_a_name_gives_what_the_table_says(name: str, width: int, framewise: bool) -> None:
    extractor = registry.create_extractor(name)
    found = extractor(SIGNAL)

    assert extractor.name == name
    assert extractor.is_framewise == framewise == (found.dim() == 2)
    assert found.shape[-1] == width
    assert found.dtype == torch.float32
    assert torch.equal(found, registry.create_extractor(name)(SIGNAL))


def test_fusion_joins_in_order() -> None:
    parts = [registry.create_extractor(name)(SIGNAL) for name in ("descriptors", "whisper-tiny-en")]

    assert torch.equal(
        registry.create_extractor("descriptors+whisper-tiny-en")(SIGNAL), torch.cat(parts)
    )


def test_fingerprints_tell_extractors_apart_and_repeat() -> None:
    names = ("whisper-tiny-en", "whisper-tiny-en-frames", "descriptors", "log-mel")
    fused = ("whisper-tiny-en+descriptors", "descriptors+whisper-tiny-en")
    prints = [registry.create_extractor(name).fingerprint for name in names + fused]

    assert len(set(prints)) == len(prints)
    assert prints == [registry.create_extractor(name).fingerprint for name in names + fused]


@pytest.mark.parametrize("name", ["", "whisper", "descriptors+", "descriptors+x", "log-mel@2"])
def test_unknown_names_list_the_known(name: str) -> None:
    with pytest.raises(SettingError, match="whisper-tiny-en") as caught:
        registry.create_extractor(name)
    assert all(known in str(caught.value) for known in registry.extractor_names())


def test_frames_cannot_be_joined() -> None:
    with pytest.raises(SettingError, match="log-mel is not that"):
        registry.create_extractor("descriptors+log-mel")


def test_an_extractor_of_ones_own_is_known_by_name() -> None:
    name = "test-registry-own"
    registry.register_extractor(name, Descriptors)
    registry.register_extractor(name, Descriptors)  # imported twice

    assert name in registry.extractor_names()
    assert isinstance(registry.create_extractor(name), Descriptors)
    assert registry.is_registered(f"descriptors+{name}")
    with pytest.raises(SettingError, match="already"):
        registry.register_extractor(name, LogMel)
    with pytest.raises(SettingError, match="already"):
        registry.register_extractor("descriptors", LogMel)
    for other in ("", "a+b", "a@b", "pipeline:x", "Upper"):
        with pytest.raises(SettingError, match="lower-case"):
            registry.register_extractor(other, LogMel)
