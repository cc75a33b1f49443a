"""Random words for privacy, from the operating system's entropy.

Asking the operating system for every byte of a model's noise costs more than the training step that
the noise hides. So each call asks it for one fresh 256-bit key, and stretches that with ChaCha20
(RFC 8439), the cipher that operating systems themselves make their random bytes with. Whoever
cannot break ChaCha20 cannot tell the words from the operating system's own; the key is used for one
call and forgotten.
"""

from typing import Any, Final

import numpy as np

from sottovoce.shared import crypto

Words = np.ndarray[Any, np.dtype[np.uint64]]

_WORD_BYTES: Final = 8


def draw_system_words(size: int) -> Words:
    """Draw independent uniform words of 64 bits that nobody can repeat or predict.

    Args:
        size: Number of words, from 0 to 2^29.

    Returns:
        Shape (size,), uint64. No two calls share a word.

    Raises:
        SettingError: ``size`` is out of range.

    Example:
        >>> words = draw_system_words(3)
        >>> words.shape, words.dtype.name
        ((3,), 'uint64')
    """
    stream = crypto.expand_keystream(crypto.new_key(), _WORD_BYTES * size)
    return np.frombuffer(stream, dtype=np.uint64)
