"""Speakers in groups: which samples of speakers could have been drawn, and which groups formed.

A *cell* is all that one speaker has in one group. For an attribute of people (gender, age) each
speaker has one cell; for one of clips (intensity) a speaker has a cell in several groups.
"""

from collections.abc import Sequence

import numpy as np

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.simulations.evaluation.bootstrap import draw_cohorts
from sottovoce.simulations.evaluation.metrics import CountArray
from sottovoce.simulations.evaluation.predictions import natural_sort_key


class SpeakerGroups:
    """Cells of speakers and groups, resampled by speaker.

    Args:
        speakers: Speaker of each clip.
        groups: Group of each clip.

    Attributes:
        names: The groups, in natural order.
        cells: Cell of each clip, shape (utterances,), int64, from 0 without gaps.
        group_of_cell: Index into ``names``, shape (cells,), int64.

    Raises:
        SettingError: Columns of different lengths, or fewer than two groups.

    Example:
        >>> groups = SpeakerGroups(["a", "a", "b"], ["female", "female", "male"])
        >>> groups.names, groups.cells.tolist(), groups.group_of_cell.tolist()
        (('female', 'male'), [0, 0, 1], [0, 1])
    """

    def __init__(self, speakers: Sequence[str], groups: Sequence[str]) -> None:
        if len(speakers) != len(groups):
            raise SettingError(f"groups has {len(groups)} rows for {len(speakers)} speakers' clips")
        self.names = tuple(sorted(set(groups), key=natural_sort_key))
        if len(self.names) < 2:
            raise SettingError(f"{len(self.names)} group cannot be compared; it takes two or more")
        pairs = list(zip(speakers, groups, strict=True))
        index = {pair: number for number, pair in enumerate(sorted(set(pairs)))}
        self.cells: CountArray = np.array([index[pair] for pair in pairs], dtype=np.int64)
        self.group_of_cell: CountArray = np.array(
            [self.names.index(group) for _, group in index], dtype=np.int64
        )
        cells_of: dict[str, list[int]] = {}
        for (speaker, _), cell in index.items():
            cells_of.setdefault(speaker, []).append(cell)
        self._cells_of_speakers = list(cells_of.values())

    def count_speakers(self) -> dict[str, int]:
        """Count the speakers of each group."""
        counts = np.bincount(self.group_of_cell, minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def draw_speakers(self, draws: int, generator: np.random.Generator) -> CountArray:
        """Draw speakers with replacement, among those of the same groups.

        A group keeps its number of speakers, so that none is ever empty, and all that a speaker
        has comes along with the speaker.

        Args:
            draws: How many samples to draw, at least 1.
            generator: Draws the speakers.

        Returns:
            How often each cell is drawn, shape (draws, cells).
        """
        alike: dict[tuple[int, ...], list[list[int]]] = {}
        for own in self._cells_of_speakers:
            alike.setdefault(tuple(self.group_of_cell[own].tolist()), []).append(own)
        cohorts = np.zeros((draws, len(self.group_of_cell)), dtype=np.int64)
        for members in alike.values():
            drawn = draw_cohorts(len(members), draws, generator)
            # Speakers down the rows, their cells (as many each) along the columns.
            for column in np.array(members).T:
                cohorts[:, column] = drawn
        return cohorts

    def permute_groups(self, draws: int, generator: np.random.Generator) -> CountArray:
        """Give out the groups anew, as if they meant nothing.

        Speakers change groups among each other. Where a speaker has clips of several groups, the
        groups of each speaker's cells change among themselves instead: this compares speakers
        with themselves.

        Args:
            draws: How many times, at least 1.
            generator: Draws the orders.

        Returns:
            The group of each cell, shape (draws, cells).
        """
        validation.require_at_least(1, draws=draws)
        found = np.tile(self.group_of_cell, (draws, 1))
        if all(len(own) == 1 for own in self._cells_of_speakers):
            return generator.permuted(found, axis=1)
        for own in self._cells_of_speakers:
            found[:, own] = generator.permuted(found[:, own], axis=1)
        return found
