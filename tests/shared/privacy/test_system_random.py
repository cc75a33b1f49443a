import numpy as np
import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.system_random import draw_system_words


def test_words_are_fresh_each_time_and_use_all_their_bits() -> None:
    first, second = draw_system_words(10_000), draw_system_words(10_000)

    assert first.shape == (10_000,)
    assert first.dtype == np.uint64
    assert not np.intersect1d(first, second).size
    for words in (first, second):
        for bit in range(64):
            ones = int((words >> np.uint64(bit) & np.uint64(1)).sum())
            assert abs(ones - 5_000) < 310, bit  # 6.2 standard deviations: wrong once in 1e9


def test_no_words_are_none_and_too_many_are_refused() -> None:
    assert draw_system_words(0).shape == (0,)
    for size in (-1, 2**29 + 1):
        with pytest.raises(SettingError, match="length is"):
            draw_system_words(size)


def test_the_operating_system_gives_a_key_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fixed(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)] * size)

    monkeypatch.setattr("sottovoce.shared.crypto.os.urandom", fixed)

    assert not np.array_equal(draw_system_words(9), draw_system_words(9))
    assert asked == [32, 32]
