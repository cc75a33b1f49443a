"""What every feature extractor offers, and the fusion of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import SettingError
from sottovoce.shared.features.fingerprint import compute_fingerprint


class Extractor(Protocol):
    """Maps a signal to features; the same signal always gives the same features."""

    @property
    def name(self) -> str:
        """What it is asked for by."""

    @property
    def is_framewise(self) -> bool:
        """Whether it returns (frames, features) and not (features,)."""

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the values: name, settings, weights, code, versions."""

    def __call__(self, signal: Signal) -> Tensor:
        """The features of a signal, (features,) or (frames, features), float32."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """``first+second+...``: the vectors of several extractors, joined in that order.

    Every part is left in its own units; a normaliser behind it brings them together.

    Raises:
        SettingError: Fewer than two parts, or one that gives frames.
    """

    parts: Sequence[Extractor]

    def __post_init__(self) -> None:
        framewise = [part.name for part in self.parts if part.is_framewise]
        if framewise or len(self.parts) < 2:
            raise SettingError(
                f"extractor {self.name!r} cannot be joined: '+' joins extractors that give "
                f"one vector an utterance, and {', '.join(framewise) or 'one alone'} is not that"
            )

    @property
    def name(self) -> str:
        """The parts' names, joined."""
        return "+".join(part.name for part in self.parts)

    @property
    def is_framewise(self) -> bool:
        """Never: vectors only."""
        return False

    @property
    def fingerprint(self) -> str:
        """Hash over the parts' own."""
        settings = {"parts": [part.fingerprint for part in self.parts]}
        return compute_fingerprint(self.name, module=__name__, settings=settings)

    def __call__(self, signal: Signal) -> Tensor:
        """The joined features of one signal, shape (sum of the widths,), float32."""
        return torch.cat([part(signal) for part in self.parts])
