"""Whatever is released in whatever order: the ledger never says less than another route finds.

The other route shares no code with the accountant. Gaussian releases without sampling have a
closed form (Balle and Wang 2018, theorem 8). With sampling, a lower bound: losses are rounded down
on a grid, what lies beyond the grid is dropped, and steps are composed by a Fourier transform. Both
mistakes lower the result, so a ledger below it would be below the truth.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from builders import make_release
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import (
    Mechanism,
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)

DELTA = 1e-5
GRID, CELLS = 2e-3, 1 << 16
ROUNDING = 1e-9
"""More than the Fourier transform's rounding adds to a chance."""

Array = np.ndarray[tuple[int], np.dtype[np.float64]]
Step = tuple[float, float, int]
"""Sampling rate, noise multiplier, number of steps."""


# --- the other route ----------------------------------------------------------------------------


def normal(x: float) -> float:
    """The standard normal's distribution function."""
    return math.erfc(-x / math.sqrt(2)) / 2


def least(holds: Callable[[float], bool]) -> float:
    """The least epsilon from which something holds, rounded down to 1e-7."""
    low, high = 0.0, 1.0
    if holds(low):
        return 0.0
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low


def closed_form(mu: float) -> float:
    """Epsilon of a Gaussian of this mu, exactly."""

    def holds(epsilon: float) -> bool:
        first = normal(mu / 2 - epsilon / mu)
        return first - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu) <= DELTA

    return least(holds)


@cache
def losses(rate: float, noise: float, added: bool) -> Array:
    """Chances of one step's privacy loss on the grid, rounded down; middle cell: loss 0."""
    edges = np.linspace(-14 * noise, 1 + 14 * noise, 40_001)
    scale = noise * math.sqrt(2)
    without = np.array([math.erf(x / scale) / 2 for x in edges])
    moved = np.array([math.erf((x - 1) / scale) / 2 for x in edges])
    mixed = (1 - rate) * without + rate * moved
    # The loss grows with x, so in every cell it is least at one of its edges.
    ratio = np.log(1 - rate + rate * np.exp((2 * edges - 1) / (2 * noise**2)))
    chances = np.diff(without if added else mixed)
    low = -ratio[1:] if added else ratio[:-1]
    index = np.floor(low / GRID).astype(int) + CELLS // 2
    within = (index >= 0) & (index < CELLS)
    return np.bincount(index[within], weights=chances[within], minlength=CELLS)


def below(steps: Sequence[Step]) -> float:
    """An epsilon that the true one is not below."""
    if all(rate == 1 for rate, _, _ in steps):
        mu = math.sqrt(sum(count / noise**2 for _, noise, count in steps))
        return closed_form(mu) if mu else 0.0
    return max(_composed(tuple(sorted(steps)), added) for added in (False, True))


@cache
def _composed(steps: tuple[Step, ...], added: bool) -> float:
    """The larger direction decides."""
    spectrum = np.ones(CELLS // 2 + 1, dtype=complex)
    for rate, noise, count in steps:
        spectrum *= np.fft.rfft(np.fft.ifftshift(losses(rate, noise, added))) ** count
    chances = np.fft.fftshift(np.fft.irfft(spectrum, CELLS)).clip(min=0)
    loss = (np.arange(CELLS) - CELLS // 2) * GRID

    def holds(epsilon: float) -> bool:
        over = loss > epsilon
        gap = float((chances[over] * -np.expm1(epsilon - loss[over])).sum())
        return gap - ROUNDING <= DELTA

    return least(holds)


def steps_of(releases: Sequence[Release], unit: PrivacyUnit) -> list[Step] | None:
    """Who is hidden by what, read from the releases anew; None where somebody is not."""
    steps = []
    correlated: dict[tuple[str, SumMechanism], list[int]] = {}
    for one in releases:
        if one.mechanism is Mechanism.ENCRYPTION:
            continue
        user = one.user
        if one.mechanism is Mechanism.NONE or (unit is PrivacyUnit.USER and user is None):
            return None
        if (
            user is not None
            and user.bands
            and (unit is PrivacyUnit.USER or not one.noise_multiplier)
        ):
            correlated.setdefault((one.run, user), []).append(one.round)
        elif unit is PrivacyUnit.USER and user is not None:
            steps.append((user.sample_rate, user.noise_multiplier, 1))
        elif one.noise_multiplier:
            steps.append((one.sample_rate, one.noise_multiplier, one.steps))
        else:
            steps.append((1.0, (user.noise_multiplier if user else 0.0) / 2, 1))
    further = 2 if unit is PrivacyUnit.UTTERANCE else 1
    return steps + [(1.0, 1 / (mu(*one) * further), 1) for one in correlated.items()]


def mu(whose: tuple[str, SumMechanism], rounds: Sequence[int]) -> float:
    """Of one run's rounds under correlated noise: C written out, one direction for all."""
    user = whose[1]
    column = user.bands.coefficients if user.bands else ()
    moved = np.zeros(max(rounds) + len(column))
    for number in rounds:
        moved[number : number + len(column)] += column
    draws = user.noise_multiplier * math.hypot(*column)  # over the bound
    return float(np.linalg.norm(moved)) / draws


# --- schedules ----------------------------------------------------------------------------------

IN_A_SUM = partial(
    st.builds,
    SumMechanism,
    noise_multiplier=st.sampled_from([3.0, 6.0]),
    clip_norm=st.just(1.0),
    noised_by=st.sampled_from(NoiseSource),
)
USERS = IN_A_SUM(sample_rate=st.sampled_from([0.2, 1.0]), discrete=st.booleans()) | IN_A_SUM(
    discrete=st.just(True), near_gaussian=st.just(True)
)
GAUSSIAN = st.builds(
    Release,
    kind=st.sampled_from([ReleaseKind.CENTRE, ReleaseKind.LABEL_COUNTS, ReleaseKind.GRADIENT]),
    mechanism=st.just(Mechanism.GAUSSIAN),
    run=st.sampled_from(["r", "s"]),
    round=st.integers(0, 3),
    noise_multiplier=st.sampled_from([1.5, 3.0, 8.0]),
    sample_rate=st.sampled_from([0.1, 1.0]),
    steps=st.integers(1, 3),
    sensitivity=st.just(1.0),
    user=st.none() | USERS,
)
BANDED = st.builds(
    Release,
    kind=st.just(ReleaseKind.GRADIENT),
    mechanism=st.just(Mechanism.GAUSSIAN),
    run=st.sampled_from(["r", "s"]),
    round=st.integers(1, 8),  # separated or too near: whatever a ledger may hold
    user=st.builds(
        SumMechanism,
        noise_multiplier=st.sampled_from([3.0, 6.0]),
        clip_norm=st.just(1.0),
        noised_by=st.just(NoiseSource.SERVER),
        bands=st.sampled_from(
            [BandedNoise.from_square_root(bands=n, min_separation=4) for n in (1, 2, 4)]
        ),
    ),
)
IN_SUMS = st.builds(
    Release,
    kind=st.just(ReleaseKind.GRADIENT),
    mechanism=st.just(Mechanism.GAUSSIAN),
    run=st.just("r"),
    round=st.integers(1, 3),
    user=USERS,
)
SEALED = st.builds(
    Release,
    kind=st.just(ReleaseKind.SEALED_HEAD),
    mechanism=st.just(Mechanism.ENCRYPTION),
    run=st.just("r"),
    round=st.just(3),
)
OPEN = replace(
    Release(kind=ReleaseKind.GRADIENT, mechanism=Mechanism.NONE, run="r", round=1), sensitivity=1.0
)
SCHEDULES = st.lists(st.tuples(GAUSSIAN | IN_SUMS | BANDED | SEALED, st.booleans()), max_size=4)
"""Releases, and whether the power is cut while the next one is written."""


def book(path: Path, schedule: Sequence[tuple[Release, bool]]) -> list[Ledger]:
    """Book a schedule; the ledger as it is read after each entry."""
    read = [Ledger(path)]
    for number, (release, cut) in enumerate(schedule):
        Ledger(path).book_release(f"{number}", release, ())
        if cut:
            line = path.read_bytes().splitlines(keepends=True)[-1]
            with path.open("ab") as file:
                file.write(line[: len(line) // 2])
        read.append(Ledger(path))
    return read


@settings(max_examples=40, deadline=None)
@given(schedule=SCHEDULES, unit=st.sampled_from(PrivacyUnit))
def test_a_ledger_never_says_less_than_another_route_finds(
    schedule: list[tuple[Release, bool]], unit: PrivacyUnit
) -> None:
    with TemporaryDirectory() as folder:
        read = book(Path(folder) / "ledger.jsonl", schedule)
    spent = [ledger.epsilon_spent(DELTA, unit) for ledger in read]

    assert spent == sorted(spent), "a further release never lowers it"
    booked, whole = Counter(read[-1].releases), Counter(release for release, _ in schedule)
    assert not whole - booked, "everything is booked"
    torn = sum(release.kind is ReleaseKind.TORN for release in read[-1].releases)
    assert torn == sum(cut for _, cut in schedule), "and every torn line is charged"
    steps = steps_of(read[-1].releases, unit)
    # Rounded to 12 digits, which the accountant makes up for, see its own tests.
    assert spent[-1] >= (math.inf if steps is None else below(steps)) * (1 - 1e-9)


@settings(max_examples=25, deadline=None)
@given(schedule=SCHEDULES, index=st.integers(0, 4), unit=st.sampled_from(PrivacyUnit))
def test_one_unprotected_release_costs_everything(
    schedule: list[tuple[Release, bool]], index: int, unit: PrivacyUnit
) -> None:
    schedule.insert(index, (OPEN, False))
    with TemporaryDirectory() as folder:
        ledger = book(Path(folder) / "ledger.jsonl", schedule)[-1]

    assert ledger.epsilon_spent(DELTA, unit) == math.inf


# --- and the other route is sharp enough to find something ----------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        [(1.0, 3.0, 4)],
        [(0.1, 1.2, 6)],
        [(0.5, 3.0, 6), (1.0, 8.0, 1)],
        [(0.1, 1.2, 1), (0.5, 1.2, 5), (1.0, 3.0, 2)],
    ],
)
def test_the_other_route_is_close(steps: list[Step]) -> None:
    releases = [make_release(noise, rate=rate, steps=count) for rate, noise, count in steps]
    reported = accounting.compute_epsilon(releases, DELTA)

    assert 0.97 * reported <= below(steps) <= reported
    less = [replace(one, noise_multiplier=one.noise_multiplier * 1.1) for one in releases]
    assert accounting.compute_epsilon(less, DELTA) < below(steps), (
        "a tenth too little noise would be found"
    )
