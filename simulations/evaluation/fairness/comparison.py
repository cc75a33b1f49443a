"""Gaps between groups of speakers, with intervals and p-values corrected for their number.

What is asked is whether the next speakers of a group would be served worse, so speakers are drawn,
never clips: clips of one speaker are not independent. fairlearn's ``MetricFrame`` gives the same
figures by group, but draws rows for its intervals, which makes them far too narrow here, and has
no test.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from sottovoce.shared import seeding
from sottovoce.shared.errors import SettingError
from sottovoce.simulations.evaluation.bootstrap import ConfidenceInterval
from sottovoce.simulations.evaluation.bootstrap_side import BootstrapSide
from sottovoce.simulations.evaluation.fairness.speaker_groups import SpeakerGroups
from sottovoce.simulations.evaluation.metrics import CountArray, FloatArray
from sottovoce.simulations.evaluation.predictions import UNKNOWN

MIN_SPEAKERS: Final = 5
"""Groups of fewer speakers are not compared: their figures are those of single people."""

COVERAGE: Final = 0.8
"""Share of all clips, the most confident, that count as answered."""

DEFAULT_DRAWS: Final = 10_000
_LEVEL: Final = 0.95
# Sums of permuted groups come in another order: equal gaps may differ in their last bits.
_ROUNDING: Final = 1e-12

Measure = Callable[[CountArray], FloatArray]
"""From how often each cell is drawn, shape (draws, cells), to one value a draw."""

MEASURES: Final[Mapping[str, Callable[[BootstrapSide, CountArray], FloatArray]]] = {
    "uar": BootstrapSide.measure_uar,
    "ece": BootstrapSide.measure_ece,
    "answered": lambda side, cohorts: side.measure_answered(cohorts, COVERAGE),
}
"""UAR; expected calibration error; share answered where ``COVERAGE`` of all clips are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """The widest gap between two groups.

    Attributes:
        highest: Group with the highest value.
        lowest: Group with the lowest.
        interval: Difference between these two, at 95 %; not corrected for their being chosen.
        by_chance: How wide one gap in twenty is if groups mean nothing.
        p_value: Chance of a gap as wide between any two groups if groups meant nothing, by
            permutation; it allows for their being chosen.
        corrected: The same, corrected for all gaps that were tested together.
    """

    highest: str
    lowest: str
    interval: ConfidenceInterval
    by_chance: float
    p_value: float
    corrected: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupComparison:
    """One measure by group.

    Attributes:
        groups: Value and interval at 95 %, over new speakers, by group.
        speakers: Number of speakers by group.
        gap: Between the highest and the lowest.
    """

    groups: Mapping[str, ConfidenceInterval]
    speakers: Mapping[str, int]
    gap: Gap


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroupedClips:
    """Test clips, whose they are and which groups they belong to.

    Attributes:
        speakers: Speaker of each clip.
        labels: True class of each, shape (utterances,), int64.
        attributes: The group of each clip, by attribute; "unknown" where nothing is known.
    """

    speakers: Sequence[str]
    labels: CountArray
    attributes: Mapping[str, Sequence[str]]


def compare_attributes(
    clips: GroupedClips,
    probabilities: FloatArray,
    *,
    less: FloatArray | None = None,
    seed: int = 0,
    draws: int = DEFAULT_DRAWS,
) -> dict[str, dict[str, GroupComparison]]:
    """Compare the groups of every attribute by every measure.

    Clips of unknown groups, of groups with fewer than ``MIN_SPEAKERS`` speakers, and of emotions
    that a group lacks altogether are left out. Attributes that leave fewer than two groups are
    not compared.

    Args:
        clips: The test clips.
        probabilities: Predictions of them, shape (utterances, classes).
        less: Other predictions of the same clips. If given, what is compared is the change from
            these: a gap then is what one group loses more than another.
        seed: Of all draws.
        draws: How many samples of speakers, and as many permutations.

    Returns:
        Comparisons by attribute and measure; p-values corrected (Holm 1979) for all of them.
    """
    found: dict[str, dict[str, GroupComparison]] = {}
    # A generator for each comparison: one attribute more changes nothing about the others.
    for attribute, names in clips.attributes.items():
        kept = _select_clips(clips, names)
        if len({names[row] for row in kept}) < 2:
            continue
        groups = SpeakerGroups([clips.speakers[row] for row in kept], [names[row] for row in kept])
        sides = [
            BootstrapSide(one[kept], clips.labels[kept], groups.cells)
            for one in (probabilities, less)
            if one is not None
        ]
        found[attribute] = {
            name: compare_groups(
                groups,
                partial(_measure_change, measure, sides),
                np.random.default_rng(seeding.derive_seed(seed, "fairness", attribute, name)),
                draws=draws,
            )
            for name, measure in MEASURES.items()
        }
    return _correct(found)


def compare_groups(
    groups: SpeakerGroups, measure: Measure, generator: np.random.Generator, *, draws: int
) -> GroupComparison:
    """Compare groups by one measure.

    Intervals: bootstrap over speakers (Efron & Tibshirani 1993), shifted so that what was drawn
    lies around the estimate: a calibration error of fewer different clips is larger on average,
    which says nothing about other speakers. p-value: permutation
    of groups among speakers, one more than the permutations with as wide a gap by one more than
    all (Phipson & Smyth 2010), which is valid for few speakers, too, and never 0.

    Args:
        groups: The groups and their speakers.
        measure: What is compared.
        generator: Draws speakers and permutations.
        draws: How many of each.

    Returns:
        The comparison, its p-value not corrected.
    """
    # As many draws as there are rows: one here, in which everybody is as they are.
    own = groups.group_of_cell[None]
    everybody = np.ones_like(own)
    values = _measure_by_group(groups, measure, everybody, own)[0]
    drawn = _measure_by_group(groups, measure, groups.draw_speakers(draws, generator), own)
    permuted = _measure_by_group(
        groups, measure, everybody, groups.permute_groups(draws, generator)
    )
    high, low = int(values.argmax()), int(values.argmin())
    chance = np.ptp(permuted, axis=1)
    as_wide = int((chance >= np.ptp(values) - _ROUNDING).sum())
    p_value = (1 + as_wide) / (1 + draws)
    intervals = [
        _interval(value, column) for value, column in zip(values.tolist(), drawn.T, strict=True)
    ]
    return GroupComparison(
        groups=dict(zip(groups.names, intervals, strict=True)),
        speakers=groups.count_speakers(),
        gap=Gap(
            highest=groups.names[high],
            lowest=groups.names[low],
            interval=_interval(float(np.ptp(values)), drawn[:, high] - drawn[:, low]),
            by_chance=float(np.quantile(chance, _LEVEL)),
            p_value=p_value,
            corrected=p_value,
        ),
    )


def correct_p_values(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number: Holm, A simple sequentially rejective procedure (1979).

    The chance that any true hypothesis among them falls below a level stays below that level,
    however they depend on each other.

    Args:
        p_values: In any order, each in [0, 1].

    Returns:
        Corrected values, in the same order.

    Raises:
        SettingError: A value outside [0, 1], or NaN.

    Example:
        >>> correct_p_values([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    if not all(0 <= one <= 1 for one in p_values):
        raise SettingError(f"p_values are {list(p_values)}; each must be from 0 to 1")
    # From the smallest; a later one is never below an earlier one.
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def _select_clips(clips: GroupedClips, names: Sequence[str]) -> CountArray:
    """Rows of groups that are large enough, of emotions that all of them have."""
    speakers = Counter(name for _, name in set(zip(clips.speakers, names, strict=True)))
    large = {name for name, count in speakers.items() if count >= MIN_SPEAKERS} - {UNKNOWN}
    emotions = [
        {int(label) for label, own in zip(clips.labels, names, strict=True) if own == name}
        for name in large
    ]
    shared = set.intersection(*emotions) if emotions else set()
    return np.array(
        [
            row
            for row, (label, name) in enumerate(zip(clips.labels, names, strict=True))
            if name in large and int(label) in shared
        ],
        dtype=np.int64,
    )


def _measure_change(
    measure: Callable[[BootstrapSide, CountArray], FloatArray],
    sides: Sequence[BootstrapSide],
    cohorts: CountArray,
) -> FloatArray:
    """The measure on the first side, less that on the second where there is one."""
    first, *others = (measure(side, cohorts) for side in sides)
    return first - others[0] if others else first


def _measure_by_group(
    groups: SpeakerGroups, measure: Measure, cohorts: CountArray, group_of_cell: CountArray
) -> FloatArray:
    """The measure of each draw and group, shape (draws, groups)."""
    columns = [measure(cohorts * (group_of_cell == name)) for name in range(len(groups.names))]
    return np.stack(columns, axis=1)


def _interval(estimate: float, drawn: FloatArray) -> ConfidenceInterval:
    """The middle 95 % of what was drawn, less its bias."""
    shifted = drawn - (drawn.mean() - estimate)
    low, high = np.quantile(shifted, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return ConfidenceInterval(estimate=estimate, low=float(low), high=float(high))


def _correct(
    found: Mapping[str, Mapping[str, GroupComparison]],
) -> dict[str, dict[str, GroupComparison]]:
    """The comparisons with corrected p-values."""
    flat = [(a, m, one) for a, by_measure in found.items() for m, one in by_measure.items()]
    values = correct_p_values([one.gap.p_value for _, _, one in flat])
    result: dict[str, dict[str, GroupComparison]] = {attribute: {} for attribute in found}
    for (attribute, name, one), value in zip(flat, values, strict=True):
        result[attribute][name] = replace(one, gap=replace(one.gap, corrected=value))
    return result
