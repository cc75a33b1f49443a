"""Correlated noise: sensitivity by brute force, covariance by hand, rounds kept separated."""

import math
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.release import (
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)

ROUNDS = 9
DELTA = 1e-3
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
SETTINGS = [(1, 1), (1, 3), (2, 2), (2, 4), (3, 3), (4, 4), (3, 5), (9, 9)]


def written_out(bands: BandedNoise, rounds: int = ROUNDS) -> Matrix:
    """C, entry by entry."""
    matrix = np.zeros((rounds, rounds))
    for row in range(rounds):
        for column in range(rounds):
            if 0 <= row - column < bands.band_count:
                matrix[row, column] = bands.coefficients[row - column]
    return matrix


def moved(matrix: Matrix, pattern: tuple[int, ...]) -> float:
    """How far a user in these rounds moves CG, squared, at worst: vectors of norm 1 each.

    The entries of C'C are not negative, so it is worst where all have one direction.
    """
    gram = matrix.T @ matrix
    assert (gram >= 0).all()
    return float(gram[np.ix_(pattern, pattern)].sum())


def is_separated(pattern: tuple[int, ...], min_separation: int) -> bool:
    """Whether a pattern of rounds keeps its distance."""
    return all(after - before >= min_separation for before, after in pairwise(pattern))


def patterns(rounds: int = ROUNDS) -> list[tuple[int, ...]]:
    """Every set of rounds, from 0."""
    return [p for size in range(1, rounds + 1) for p in combinations(range(rounds), size)]


@pytest.mark.parametrize(("count", "min_separation"), SETTINGS)
def test_no_pattern_that_keeps_its_distance_moves_more_than_is_booked(
    count: int, min_separation: int
) -> None:
    bands = BandedNoise.from_square_root(bands=count, min_separation=min_separation)
    matrix = written_out(bands)
    allowed = [pattern for pattern in patterns() if is_separated(pattern, min_separation)]

    most = max(moved(matrix, pattern) for pattern in allowed)

    assert max(len(pattern) for pattern in allowed) == bands.max_participations(ROUNDS)
    booked = bands.max_participations(ROUNDS) * bands.column_norm**2
    assert most <= booked * (1 + 1e-12)
    full = [p for p in allowed if p[-1] + count <= ROUNDS]  # whole columns: nothing to spare
    for pattern in full:
        assert moved(matrix, pattern) == pytest.approx(len(pattern) * bands.column_norm**2)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_pattern_that_comes_nearer_moves_more(count: int) -> None:
    bands = BandedNoise.from_square_root(bands=count, min_separation=count)
    matrix = written_out(bands)
    for near in range(1, count):
        assert moved(matrix, (0, near)) > 2 * bands.column_norm**2 * 1.01
    assert moved(matrix, (0, count)) == pytest.approx(2 * bands.column_norm**2)


def lines(bands: BandedNoise, rounds: tuple[int, ...], multiplier: float = 2.0) -> list[Release]:
    """The records of a user's rounds, from 1."""
    user = SumMechanism(
        noise_multiplier=multiplier, clip_norm=1.0, noised_by=NoiseSource.SERVER, bands=bands
    )
    return [
        Release(
            kind=ReleaseKind.GRADIENT,
            mechanism=Mechanism.GAUSSIAN,
            run="r",
            round=number,
            user=user,
        )
        for number in rounds
    ]


def test_the_accountant_never_says_less_than_the_matrix_for_any_pattern() -> None:
    bands = BandedNoise.from_square_root(bands=3, min_separation=3)
    matrix, multiplier = written_out(bands), 2.0
    for pattern in patterns(6):
        releases = lines(bands, tuple(index + 1 for index in pattern))
        charged = accounting.compute_epsilon(releases, DELTA, unit=PrivacyUnit.USER)
        mu = math.sqrt(moved(matrix, pattern)) / (multiplier * bands.column_norm)
        plain = SumMechanism(noise_multiplier=1 / mu, clip_norm=1.0, noised_by=NoiseSource.SERVER)
        one = Release(
            kind=ReleaseKind.GRADIENT, mechanism=Mechanism.GAUSSIAN, run="r", round=1, user=plain
        )
        true = accounting.compute_epsilon([one], DELTA, unit=PrivacyUnit.USER)
        assert charged >= true * (1 - 1e-9)
        if is_separated(pattern, 3) and pattern[-1] + 3 <= ROUNDS:
            assert charged == pytest.approx(true, rel=1e-9)


def test_separated_rounds_compose_and_nearer_ones_cost_as_one_direction() -> None:
    bands = BandedNoise.from_square_root(bands=3, min_separation=3)

    def epsilon(*rounds: int) -> float:
        return accounting.compute_epsilon(lines(bands, rounds), DELTA, unit=PrivacyUnit.USER)

    doubled = accounting.compute_epsilon(
        lines(bands, (1,), multiplier=1.0), DELTA, unit=PrivacyUnit.USER
    )
    assert epsilon(1, 4) == epsilon(2, 9) == epsilon(9, 2)
    assert epsilon(1, 3) == epsilon(5, 5) == pytest.approx(doubled)
    assert epsilon(1, 4) < epsilon(1, 3) < epsilon(1, 3, 5) < math.inf
    other = [lines(bands, (1,))[0], *lines(bands, (2,))]
    elsewhere = [other[0], Release(**{**_fields(other[1]), "run": "s"})]
    independent = accounting.compute_epsilon(elsewhere, DELTA, unit=PrivacyUnit.USER)
    assert independent == epsilon(1, 4), "another run's noise"


def test_rounds_of_different_bands_are_charged_by_the_longest_reach() -> None:
    """Whatever a server books: noise that reaches five rounds meets all of them."""
    far = BandedNoise.from_square_root(bands=5, min_separation=5)
    near = BandedNoise.from_square_root(bands=2, min_separation=2)

    def epsilon(*releases: Release) -> float:
        return accounting.compute_epsilon(releases, DELTA, unit=PrivacyUnit.USER)

    met = [*lines(far, (1,)), *lines(near, (2, 5))]
    tripled = epsilon(*lines(near, (1,), multiplier=2.0 / 3))
    assert epsilon(*met) == epsilon(*reversed(met)) == pytest.approx(tripled)
    apart = [*lines(far, (1,)), *lines(near, (7, 9))]
    assert epsilon(*apart) == pytest.approx(epsilon(*lines(near, (1, 3, 5))))


def _fields(release: Release) -> dict[str, Any]:
    """A release's fields."""
    return {name: getattr(release, name) for name in Release.__dataclass_fields__}


@pytest.mark.parametrize(("count", "min_separation"), SETTINGS)
def test_correlated_noise_is_the_inverse_of_the_matrix(count: int, min_separation: int) -> None:
    bands = BandedNoise.from_square_root(bands=count, min_separation=min_separation)
    inverse = np.linalg.inv(written_out(bands))
    fresh = torch.randn(ROUNDS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    past: list[torch.Tensor] = []
    rows = []
    for row in fresh:
        rows.append(bands.correlate_noise(row, past))
        past = bands.required_history([*past, rows[-1]])
        assert len(past) <= count - 1

    assert np.allclose(torch.stack(rows).numpy(), inverse @ fresh.numpy())
    for rounds in range(1, ROUNDS + 1):
        summed = np.linalg.norm(inverse[:rounds].sum(0))
        assert bands.cumulative_noise_factor(rounds) == pytest.approx(summed)


def test_without_bands_the_noise_of_rounds_adds_up_as_it_did() -> None:
    alone = BandedNoise.from_square_root(bands=1, min_separation=4)
    assert [alone.cumulative_noise_factor(rounds) for rounds in (1, 7, 16)] == [
        1.0,
        math.sqrt(7),
        4.0,
    ]
    assert alone.column_norm == 1.0
    fresh = torch.randn(3, dtype=torch.float64)
    assert torch.equal(alone.correlate_noise(fresh, []), fresh)


def test_less_noise_adds_up_at_the_same_epsilon() -> None:
    rounds = 32
    whole = [
        BandedNoise.from_square_root(bands=count, min_separation=8).cumulative_noise_factor(rounds)
        * BandedNoise.from_square_root(bands=count, min_separation=8).column_norm
        for count in (1, 2, 4, 8)
    ]
    assert whole == sorted(whole, reverse=True)
    assert whole[-1] < 0.65 * whole[0]


def test_the_square_root_squared_is_summing_up() -> None:
    bands = BandedNoise.from_square_root(bands=ROUNDS, min_separation=ROUNDS)
    squared = written_out(bands) @ written_out(bands)
    assert np.allclose(squared, np.tril(np.ones((ROUNDS, ROUNDS))))


def test_groups_and_blocks_separate_users() -> None:
    bands = BandedNoise.from_square_root(bands=3, min_separation=4)
    groups = [bands.participation_group(number) for number in range(1, 10)]
    assert groups == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert [bands.block_start(number) for number in range(1, 10)] == [1, 1, 1, 1, 5, 5, 5, 5, 9]
    assert [bands.max_participations(rounds) for rounds in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_separation": 0},
        {"min_separation": 1.5},
        {"min_separation": math.nan},
        {"min_separation": 1, "coefficients": (1.0, 0.5)},
        {"min_separation": 2, "coefficients": ()},
        {"min_separation": 2, "coefficients": (0.5,)},
        {"min_separation": 2, "coefficients": (1.0, 1.5)},
        {"min_separation": 2, "coefficients": (1.0, -0.5)},
        {"min_separation": 2, "coefficients": (1.0, math.nan)},
        {"min_separation": 3, "coefficients": (1.0, 0.2, 0.3)},
    ],
)
def test_bands_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        BandedNoise(**wrong)


@pytest.mark.parametrize(
    "beside",
    [
        {"sample_rate": 0.5},
        {"sums": 2},
        {"discrete": True},
        {"noised_by": NoiseSource.DEVICES},
        {"noised_by": NoiseSource.DISTRIBUTED},
    ],
)
def test_bands_go_with_nothing_that_they_are_not_accounted_for(beside: dict[str, Any]) -> None:
    usual: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "noised_by": NoiseSource.SERVER,
        "bands": BandedNoise.from_square_root(bands=2, min_separation=2),
    }
    SumMechanism(**usual)
    with pytest.raises(SettingError, match="bands"):
        SumMechanism(**usual | beside)


def test_a_record_says_what_is_correlated_and_an_old_one_stays_as_it_was() -> None:
    (line,) = lines(BandedNoise.from_square_root(bands=3, min_separation=5), (2,))
    assert Release.from_dict(line.to_dict()) == line
    record = line.to_dict()["user"]["bands"]
    assert set(record) == {"spacing", "coefficients"}, "as every ledger's lines have it"
    assert (record["spacing"], list(record["coefficients"])) == (5, [1.0, 0.5, 0.375])

    plain = SumMechanism(noise_multiplier=1.0, clip_norm=1.0, noised_by=NoiseSource.SERVER)
    assert "bands" not in plain.to_dict()
    assert SumMechanism.from_dict(plain.to_dict()) == plain
