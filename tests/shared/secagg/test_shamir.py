"""Any threshold of shares gives the secret back; fewer say nothing."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.shared.errors import AggregationError, SettingError
from sottovoce.shared.secagg import shamir


@given(st.data(), st.binary(min_size=16, max_size=31), st.integers(1, 12))
def test_any_threshold_of_shares_is_enough(
    data: st.DataObject, secret: bytes, holders: int
) -> None:
    threshold = data.draw(st.integers(1, holders))
    places = data.draw(
        st.lists(st.integers(1, 1000), min_size=holders, max_size=holders, unique=True)
    )
    shares = shamir.split(secret, places, threshold)
    chosen = data.draw(st.permutations(places))[: data.draw(st.integers(threshold, holders))]

    assert (
        shamir.combine({place: shares[place] for place in chosen}, threshold)[-len(secret) :]
        == secret
    )
    with pytest.raises(AggregationError, match="are needed"):
        shamir.combine({place: shares[place] for place in chosen[: threshold - 1]}, threshold)


@pytest.mark.parametrize("secret", [b"", b"\x00" * 32, (shamir.PRIME - 1).to_bytes(32, "big")])
def test_the_ends_of_the_field_come_back(secret: bytes) -> None:
    shares = shamir.split(secret, [1, 2, 3], 2)

    assert shamir.combine({1: shares[1], 3: shares[3]}, 2) == secret.rjust(32, b"\x00")


def test_one_share_too_few_is_uniform_whatever_the_secret() -> None:
    """Top three bits of one of two shares, by chi-square; the secret itself would fail."""
    for secret in (b"\x00" * 32, b"\x11" * 32):
        draws = [shamir.split(secret, [1, 2], 2) for _ in range(4000)]
        assert unlikely([shares[1][0] >> 5 for shares in draws]) < 20.7
        assert unlikely([shamir.combine(shares, 2)[0] >> 5 for shares in draws[:99]]) > 20.7


def unlikely(draws: list[int]) -> float:
    """x such that uniform draws from 0..7 come this far out with chance e^-x at most."""
    counts, expected = Counter(draws), len(draws) / 8
    statistic = sum((counts[value] - expected) ** 2 / expected for value in range(8))
    # Laurent and Massart 2000: P(chi2 > k + 2 sqrt(k x) + 2 x) <= exp(-x), solved for x.
    excess = max(statistic - 7, 0.0)
    return ((math.sqrt(7 + 2 * excess) - math.sqrt(7)) / 2) ** 2


def test_a_wrong_share_gives_another_secret() -> None:
    secret = shamir.new_secret()
    shares = shamir.split(secret, [1, 2, 3], 3)
    shares[2] = shares[2][:-1] + bytes([shares[2][-1] ^ 1])

    assert shamir.combine(shares, 3) != secret


@pytest.mark.parametrize(
    ("secret", "places", "threshold"),
    [
        (b"\xff" * 32, [1, 2], 2),
        (b"x" * 33, [1, 2], 2),
        (b"x", [0, 1], 2),
        (b"x", [1, 1], 2),
        (b"x", [1, 2], 3),
        (b"x", [1, 2], 0),
    ],
)
def test_odd_sharings_are_refused(secret: bytes, places: list[int], threshold: int) -> None:
    with pytest.raises(SettingError):
        shamir.split(secret, places, threshold)


def test_new_secrets_are_in_the_field_and_differ() -> None:
    secrets = {shamir.new_secret() for _ in range(50)}

    assert len(secrets) == 50
    assert all(int.from_bytes(secret, "big") < shamir.PRIME for secret in secrets)
