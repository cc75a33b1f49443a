"""Log-mel spectrograms for models that learn their own features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.shared import audio
from sottovoce.shared.audio import Signal, voice_activity
from sottovoce.shared.features import spectral
from sottovoce.shared.features.fingerprint import compute_fingerprint

BANDS = 64
HOP = 320
"""Samples between frames: 20 ms, 50 frames a second."""

_MIN_STD = 1e-3


@dataclass(frozen=True, slots=True)
class LogMel:
    """``log-mel``: 64 mel bands, 50 frames a second, each band at mean 0 and variance 1.

    What lies around the speech is cut off first, and mean and variance are those of its speech, so
    that no silence influences them. They are the utterance's own: no other recording is read. A
    constant band is 0 throughout.
    """

    name: str = "log-mel"
    is_framewise: bool = True

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the values."""
        return compute_fingerprint(
            self.name, module=__name__, settings={"bands": BANDS, "hop": HOP}
        )

    def __call__(self, signal: Signal) -> Tensor:
        """Compute the spectrogram of one signal at 16 kHz, shape (frames, 64), float32, finite.

        Raises:
            AudioError: The signal has another rate.

        Example:
            >>> LogMel()(Signal(torch.zeros(1, 16_000), 16_000)).shape
            torch.Size([51, 64])
        """
        audio.require_sample_rate(signal, audio.SAMPLE_RATE, reader=self.name)
        cut = voice_activity.cut_to_speech(signal)
        powers = spectral.power_spectra(cut.signal.samples[0], hop=HOP)
        bands = spectral.log_mel_energies(powers, bands=BANDS)
        spoken = bands[torch.from_numpy(cut.mask_frames(len(bands), HOP))]
        # The floor keeps a constant band at 0 instead of amplifying rounding errors.
        std = spoken.std(0, correction=0).clamp_min(_MIN_STD)
        return (bands - spoken.mean(0)) / std
