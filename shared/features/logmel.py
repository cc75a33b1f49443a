"""Log-mel spectrograms for models that learn their own features."""

from dataclasses import dataclass

from torch import Tensor

from sottovoce.shared import audio
from sottovoce.shared.audio import Signal
from sottovoce.shared.features import spectra
from sottovoce.shared.features.fingerprint import fingerprint

BANDS = 64
HOP = 320
"""Samples between frames: 20 ms, 50 frames a second."""

_FLATTEST = 1e-3


@dataclass(frozen=True, slots=True)
class LogMel:
    """``log-mel``: 64 mel bands, 50 frames a second, each band at mean 0 and variance 1.

    Silence before and behind the speech is cut off first, so that it does not set the mean.
    Mean and variance are the utterance's own: no other recording is read. A band that never
    moves is 0 throughout.
    """

    name: str = "log-mel"
    framewise: bool = True

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the values."""
        return fingerprint(self.name, module=__name__, settings={"bands": BANDS, "hop": HOP})

    def __call__(self, signal: Signal) -> Tensor:
        """The spectrogram of one signal at 16 kHz, shape (frames, 64), float32, finite.

        Raises:
            AudioError: The signal has another rate.
        """
        audio.need_rate(signal, audio.RATE, reader=self.name)
        samples = spectra.trim(signal.samples[0])
        bands = spectra.log_mel(spectra.power(samples, hop=HOP), bands=BANDS)
        spread = bands.std(0, correction=0).clamp_min(_FLATTEST)
        return (bands - bands.mean(0)) / spread
