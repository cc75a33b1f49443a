"""Interface of feature extractors, and the fusion of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sottovoce.shared.audio import Signal, voice_activity
from sottovoce.shared.errors import SettingError
from sottovoce.shared.features.fingerprint import compute_fingerprint


class Extractor(Protocol):
    """Maps a signal to features; the same signal always gives the same features."""

    @property
    def name(self) -> str:
        """Name under which it is created."""

    @property
    def is_framewise(self) -> bool:
        """Whether it returns (frames, features) instead of (features,)."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the values: name, settings, weights, code, versions."""

    def __call__(self, signal: Signal) -> Tensor:
        """Compute the features of a signal, (features,) or (frames, features), float32."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """Concatenation of several extractors' vectors: ``first+second+...``, in that order.

    Every part keeps its own units; a normaliser applied later makes them comparable. Speech is
    looked for once for all of them.

    Raises:
        SettingError: Fewer than two parts, or a part that returns frames.
    """

    parts: Sequence[Extractor]

    def __post_init__(self) -> None:
        # Frame rates differ between extractors: frames cannot be joined one by one.
        framewise = [part.name for part in self.parts if part.is_framewise]
        if framewise or len(self.parts) < 2:
            raise SettingError(
                f"extractor {self.name!r} cannot be joined: '+' joins extractors that give "
                f"one vector an utterance, and {', '.join(framewise) or 'one alone'} is not that"
            )

    @property
    def name(self) -> str:
        """Names of the parts, joined by ``+``.

        Example:
            >>> from sottovoce.shared.features.registry import create_extractor
            >>> Fusion([create_extractor("descriptors"), create_extractor("hubert-base")]).name
            'descriptors+hubert-base'
        """
        return "+".join(part.name for part in self.parts)

    @property
    def is_framewise(self) -> bool:
        """Whether it returns frames: always False."""
        return False

    @property
    def fingerprint(self) -> str:
        """Hash over the fingerprints of the parts."""
        settings = {"parts": [part.fingerprint for part in self.parts]}
        return compute_fingerprint(self.name, module=__name__, settings=settings)

    def __call__(self, signal: Signal) -> Tensor:
        """Compute the concatenated features of one signal, shape (sum of the widths,), float32."""
        shared = voice_activity.share_detection(signal)
        return torch.cat([part(shared) for part in self.parts])
