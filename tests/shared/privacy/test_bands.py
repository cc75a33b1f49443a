"""Noise that hangs together: sensitivity by brute force, covariance by hand, rounds kept apart."""

import math
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.bands import Bands
from sottovoce.shared.privacy.release import (
    Kind,
    Mechanism,
    NoisedBy,
    Release,
    Unit,
    UserNoise,
)

ROUNDS = 9
DELTA = 1e-3
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
SETTINGS = [(1, 1), (1, 3), (2, 2), (2, 4), (3, 3), (4, 4), (3, 5), (9, 9)]


def written_out(bands: Bands, rounds: int = ROUNDS) -> Matrix:
    """C, entry by entry."""
    matrix = np.zeros((rounds, rounds))
    for row in range(rounds):
        for column in range(rounds):
            if 0 <= row - column < bands.count:
                matrix[row, column] = bands.coefficients[row - column]
    return matrix


def moved(matrix: Matrix, pattern: tuple[int, ...]) -> float:
    """How far a user in these rounds moves CG, squared, at worst: vectors of length 1 each.

    The entries of C'C are not negative, so it is worst where all point one way.
    """
    gram = matrix.T @ matrix
    assert (gram >= 0).all()
    return float(gram[np.ix_(pattern, pattern)].sum())


def apart(pattern: tuple[int, ...], spacing: int) -> bool:
    """Whether a pattern of rounds keeps its distance."""
    return all(after - before >= spacing for before, after in pairwise(pattern))


def patterns(rounds: int = ROUNDS) -> list[tuple[int, ...]]:
    """Every set of rounds, places from 0."""
    return [p for size in range(1, rounds + 1) for p in combinations(range(rounds), size)]


@pytest.mark.parametrize(("count", "spacing"), SETTINGS)
def test_no_pattern_that_keeps_its_distance_moves_more_than_is_booked(
    count: int, spacing: int
) -> None:
    bands = Bands.square_root(bands=count, spacing=spacing)
    matrix = written_out(bands)
    allowed = [pattern for pattern in patterns() if apart(pattern, spacing)]

    most = max(moved(matrix, pattern) for pattern in allowed)

    assert max(len(pattern) for pattern in allowed) == bands.most(ROUNDS)
    booked = bands.most(ROUNDS) * bands.norm**2
    assert most <= booked * (1 + 1e-12)
    full = [p for p in allowed if p[-1] + count <= ROUNDS]  # whole columns: nothing to spare
    for pattern in full:
        assert moved(matrix, pattern) == pytest.approx(len(pattern) * bands.norm**2)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_pattern_that_comes_nearer_moves_more(count: int) -> None:
    bands = Bands.square_root(bands=count, spacing=count)
    matrix = written_out(bands)
    for near in range(1, count):
        assert moved(matrix, (0, near)) > 2 * bands.norm**2 * 1.01
    assert moved(matrix, (0, count)) == pytest.approx(2 * bands.norm**2)


def lines(bands: Bands, rounds: tuple[int, ...], multiplier: float = 2.0) -> list[Release]:
    """The records of a user's rounds, from 1."""
    user = UserNoise(
        noise_multiplier=multiplier, clip_norm=1.0, noised_by=NoisedBy.SERVER, bands=bands
    )
    return [
        Release(kind=Kind.GRADIENT, mechanism=Mechanism.GAUSSIAN, run="r", round=number, user=user)
        for number in rounds
    ]


def test_the_accountant_never_says_less_than_the_matrix_for_any_pattern() -> None:
    bands = Bands.square_root(bands=3, spacing=3)
    matrix, multiplier = written_out(bands), 2.0
    for pattern in patterns(6):
        told = accountant.epsilon(
            lines(bands, tuple(place + 1 for place in pattern)), DELTA, unit=Unit.USER
        )
        mu = math.sqrt(moved(matrix, pattern)) / (multiplier * bands.norm)
        plain = UserNoise(noise_multiplier=1 / mu, clip_norm=1.0, noised_by=NoisedBy.SERVER)
        one = Release(
            kind=Kind.GRADIENT, mechanism=Mechanism.GAUSSIAN, run="r", round=1, user=plain
        )
        true = accountant.epsilon([one], DELTA, unit=Unit.USER)
        assert told >= true * (1 - 1e-9)
        if apart(pattern, 3) and pattern[-1] + 3 <= ROUNDS:
            assert told == pytest.approx(true, rel=1e-9)


def test_rounds_apart_add_up_and_rounds_too_near_cost_as_one_way() -> None:
    bands = Bands.square_root(bands=3, spacing=3)

    def price(*rounds: int) -> float:
        return accountant.epsilon(lines(bands, rounds), DELTA, unit=Unit.USER)

    doubled = accountant.epsilon(lines(bands, (1,), multiplier=1.0), DELTA, unit=Unit.USER)
    assert price(1, 4) == price(2, 9) == price(9, 2)
    assert price(1, 3) == price(5, 5) == pytest.approx(doubled)
    assert price(1, 4) < price(1, 3) < price(1, 3, 5) < math.inf
    other = [lines(bands, (1,))[0], *lines(bands, (2,))]
    elsewhere = [other[0], Release(**{**_fields(other[1]), "run": "s"})]
    assert accountant.epsilon(elsewhere, DELTA, unit=Unit.USER) == price(1, 4), (
        "another run's noise"
    )


def _fields(release: Release) -> dict[str, Any]:
    """A release's fields."""
    return {name: getattr(release, name) for name in Release.__dataclass_fields__}


@pytest.mark.parametrize(("count", "spacing"), SETTINGS)
def test_what_hangs_together_is_the_inverse_of_the_matrix(count: int, spacing: int) -> None:
    bands = Bands.square_root(bands=count, spacing=spacing)
    inverse = np.linalg.inv(written_out(bands))
    fresh = torch.randn(ROUNDS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    past: list[torch.Tensor] = []
    rows = []
    for row in fresh:
        rows.append(bands.correlated(row, past))
        past = bands.needed([*past, rows[-1]])
        assert len(past) <= count - 1

    assert np.allclose(torch.stack(rows).numpy(), inverse @ fresh.numpy())
    for rounds in range(1, ROUNDS + 1):
        summed = np.linalg.norm(inverse[:rounds].sum(0))
        assert bands.growth(rounds) == pytest.approx(summed)


def test_without_bands_the_noise_of_rounds_adds_up_as_it_did() -> None:
    alone = Bands.square_root(bands=1, spacing=4)
    assert [alone.growth(rounds) for rounds in (1, 7, 16)] == [1.0, math.sqrt(7), 4.0]
    assert alone.norm == 1.0
    fresh = torch.randn(3, dtype=torch.float64)
    assert torch.equal(alone.correlated(fresh, []), fresh)


def test_less_noise_adds_up_at_the_same_price() -> None:
    rounds = 32
    whole = [
        Bands.square_root(bands=count, spacing=8).growth(rounds)
        * Bands.square_root(bands=count, spacing=8).norm
        for count in (1, 2, 4, 8)
    ]
    assert whole == sorted(whole, reverse=True)
    assert whole[-1] < 0.65 * whole[0]


def test_the_square_root_squared_is_summing_up() -> None:
    bands = Bands.square_root(bands=ROUNDS, spacing=ROUNDS)
    squared = written_out(bands) @ written_out(bands)
    assert np.allclose(squared, np.tril(np.ones((ROUNDS, ROUNDS))))


def test_groups_and_blocks_keep_users_apart() -> None:
    bands = Bands.square_root(bands=3, spacing=4)
    assert [bands.group(number) for number in range(1, 10)] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert [bands.block(number) for number in range(1, 10)] == [1, 1, 1, 1, 5, 5, 5, 5, 9]
    assert [bands.most(rounds) for rounds in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"spacing": 0},
        {"spacing": 1.5},
        {"spacing": math.nan},
        {"spacing": 1, "coefficients": (1.0, 0.5)},
        {"spacing": 2, "coefficients": ()},
        {"spacing": 2, "coefficients": (0.5,)},
        {"spacing": 2, "coefficients": (1.0, 1.5)},
        {"spacing": 2, "coefficients": (1.0, -0.5)},
        {"spacing": 2, "coefficients": (1.0, math.nan)},
        {"spacing": 3, "coefficients": (1.0, 0.2, 0.3)},
    ],
)
def test_bands_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        Bands(**wrong)


@pytest.mark.parametrize(
    "beside",
    [
        {"sample_rate": 0.5},
        {"sums": 2},
        {"discrete": True},
        {"noised_by": NoisedBy.DEVICES},
        {"noised_by": NoisedBy.SHARES},
    ],
)
def test_bands_go_with_nothing_that_they_are_not_priced_for(beside: dict[str, Any]) -> None:
    usual: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "noised_by": NoisedBy.SERVER,
        "bands": Bands.square_root(bands=2, spacing=2),
    }
    UserNoise(**usual)
    with pytest.raises(SettingError, match="bands"):
        UserNoise(**usual | beside)


def test_a_record_says_what_hangs_together_and_an_old_one_stays_as_it_was() -> None:
    (line,) = lines(Bands.square_root(bands=3, spacing=5), (2,))
    assert Release.from_dict(line.to_dict()) == line
    told = line.to_dict()["user"]["bands"]
    assert (told["spacing"], list(told["coefficients"])) == (5, [1.0, 0.5, 0.375])

    plain = UserNoise(noise_multiplier=1.0, clip_norm=1.0, noised_by=NoisedBy.SERVER)
    assert "bands" not in plain.to_dict()
    assert UserNoise.from_dict(plain.to_dict()) == plain
