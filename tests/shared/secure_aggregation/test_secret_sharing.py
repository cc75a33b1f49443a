"""Any threshold of shares gives the secret back; fewer say nothing."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.shared.errors import AggregationError, SettingError
from sottovoce.shared.secure_aggregation import secret_sharing


@given(st.data(), st.binary(min_size=16, max_size=31), st.integers(1, 12))
def test_any_threshold_of_shares_is_enough(
    data: st.DataObject, secret: bytes, holders: int
) -> None:
    threshold = data.draw(st.integers(1, holders))
    points = data.draw(
        st.lists(st.integers(1, 1000), min_size=holders, max_size=holders, unique=True)
    )
    shares = secret_sharing.split_secret(secret, points, threshold)
    chosen = data.draw(st.permutations(points))[: data.draw(st.integers(threshold, holders))]

    assert (
        secret_sharing.combine_shares({point: shares[point] for point in chosen}, threshold)[
            -len(secret) :
        ]
        == secret
    )
    with pytest.raises(AggregationError, match="are needed"):
        secret_sharing.combine_shares(
            {point: shares[point] for point in chosen[: threshold - 1]}, threshold
        )


@pytest.mark.parametrize(
    "secret", [b"", b"\x00" * 32, (secret_sharing.PRIME - 1).to_bytes(32, "big")]
)
def test_the_ends_of_the_field_come_back(secret: bytes) -> None:
    shares = secret_sharing.split_secret(secret, [1, 2, 3], 2)

    assert secret_sharing.combine_shares({1: shares[1], 3: shares[3]}, 2) == secret.rjust(
        32, b"\x00"
    )


def test_one_share_too_few_is_uniform_whatever_the_secret() -> None:
    """Top three bits of one of two shares, by chi-square; the secret itself would fail."""
    for secret in (b"\x00" * 32, b"\x11" * 32):
        draws = [secret_sharing.split_secret(secret, [1, 2], 2) for _ in range(4000)]
        assert unlikely([shares[1][0] >> 5 for shares in draws]) < 20.7
        assert (
            unlikely([secret_sharing.combine_shares(shares, 2)[0] >> 5 for shares in draws[:99]])
            > 20.7
        )


def unlikely(draws: list[int]) -> float:
    """x such that uniform draws from 0..7 come this far out with chance e^-x at most."""
    counts, expected = Counter(draws), len(draws) / 8
    statistic = sum((counts[value] - expected) ** 2 / expected for value in range(8))
    # Laurent and Massart 2000: P(chi2 > k + 2 sqrt(k x) + 2 x) <= exp(-x), solved for x.
    excess = max(statistic - 7, 0.0)
    return ((math.sqrt(7 + 2 * excess) - math.sqrt(7)) / 2) ** 2


def test_a_wrong_share_gives_another_secret() -> None:
    secret = secret_sharing.new_secret()
    shares = secret_sharing.split_secret(secret, [1, 2, 3], 3)
    shares[2] = shares[2][:-1] + bytes([shares[2][-1] ^ 1])

    assert secret_sharing.combine_shares(shares, 3) != secret


@pytest.mark.parametrize(
    ("secret", "points", "threshold"),
    [
        (b"\xff" * 32, [1, 2], 2),
        (b"x" * 33, [1, 2], 2),
        (b"x", [0, 1], 2),
        (b"x", [1, 1], 2),
        (b"x", [1, 2], 3),
        (b"x", [1, 2], 0),
    ],
)
def test_odd_sharings_are_refused(secret: bytes, points: list[int], threshold: int) -> None:
    with pytest.raises(SettingError):
        secret_sharing.split_secret(secret, points, threshold)


def test_new_secrets_are_in_the_field_and_differ() -> None:
    secrets = {secret_sharing.new_secret() for _ in range(50)}

    assert len(secrets) == 50
    assert all(int.from_bytes(secret, "big") < secret_sharing.PRIME for secret in secrets)
