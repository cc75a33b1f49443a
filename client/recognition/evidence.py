"""What the model says of a recording, or of the parts of a long one, before anything is decided.

A recording of a minute has no one emotion, and a model of utterances never saw one: it is cut into
windows, of which a bounded number with speech is looked at, spread evenly over its length.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.audio import Signal
from sottovoce.shared.calibration import conformal
from sottovoce.shared.speaker.familiarity import soften_probabilities, temper_probabilities

LONG_S = 10.0
"""Recordings beyond it are looked at in windows: no corpus has utterances as long."""

WINDOW_S = 5.0
"""Length of a window in seconds: a long utterance. Encoders give features of another kind for
inputs much longer than those that a model was trained on."""

MAX_WINDOWS = 20
"""Most windows with speech that are looked at, whatever the length of the recording."""

AGREEMENT = 0.8
"""Share of windows that must agree on an emotion for it to be the recording's."""

MIN_VOTES = 5
"""Fewer windows do not vote: their mean probability decides."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evidence:
    """Probabilities of one recording, or of windows together.

    Attributes:
        probabilities: Shape (classes,), float64, summing to 1, or NaN from a broken model.
        members: Classes of the prediction set, the likeliest first; empty without a threshold.
        unfamiliarity: Distance from the speech that the model knows, in units of its limit; 0 where
            the model does not tell.
        votes: How many windows have each class as their likeliest, shape (classes,), int64.
    """

    probabilities: NDArray[np.float64]
    members: tuple[int, ...]
    unfamiliarity: float
    votes: NDArray[np.int64]

    @property
    def is_mixed(self) -> bool:
        """Whether too few of at least ``MIN_VOTES`` windows agree on one emotion."""
        total = int(self.votes.sum())
        agreeing = int(self.votes[self.probabilities.argmax()])
        return total >= MIN_VOTES and agreeing < AGREEMENT * total


def weigh_probabilities(
    probabilities: NDArray[np.float64],
    unfamiliarity: float,
    *,
    threshold: float | None,
    temperature: float = 1.0,
) -> Evidence:
    """Temper a recording's probabilities where it is unlike what the model knows.

    Args:
        probabilities: What the model and the user's head give, shape (classes,), float64.
        unfamiliarity: Distance from the speech that the model knows, in units of its limit.
        threshold: Largest nonconformity score in a prediction set; None makes no set.
        temperature: What log probabilities are divided by first, at least 1.

    Returns:
        The evidence; beyond the limit its set holds every emotion.
    """
    said = soften_probabilities(temper_probabilities(probabilities, temperature), unfamiliarity)
    members: list[int] = []
    if threshold is not None:
        every = 1.0  # no score is larger
        limit = threshold if unfamiliarity <= 1 else every
        members = conformal.prediction_set_members(said, limit)
    return Evidence(
        probabilities=said,
        members=tuple(members),
        unfamiliarity=unfamiliarity,
        votes=np.bincount([int(said.argmax())], minlength=len(said)),
    )


def mix_evidence(windows: Sequence[Evidence]) -> Evidence:
    """Mix the evidence of windows: mean probabilities, all their sets, median unfamiliarity.

    Args:
        windows: At least one.
    """
    probabilities = np.stack([one.probabilities for one in windows]).mean(0)
    inside = {index for one in windows for index in one.members}
    order = np.argsort(-probabilities, kind="stable").tolist()
    distances = sorted(one.unfamiliarity for one in windows)
    return Evidence(
        probabilities=probabilities,
        members=tuple(index for index in order if index in inside),
        unfamiliarity=distances[(len(distances) - 1) // 2],
        votes=np.stack([one.votes for one in windows]).sum(0),
    )


def iter_windows(signal: Signal) -> Iterator[Signal]:
    """Cut a long recording into windows, in an order whose beginnings all spread over its length.

    Args:
        signal: The recording, longer than ``LONG_S``.

    Yields:
        Windows of ``WINDOW_S``; a rest of less than half of one is left out.

    Example:
        >>> long = Signal(np.arange(40.0) / 40, 1)
        >>> [round(40 * float(window.waveform[0])) for window in iter_windows(long)]
        [0, 20, 10, 30, 5, 25, 15, 35]
    """
    count = max(1, math.floor(signal.duration_s / WINDOW_S + 0.5))
    bits = (count - 1).bit_length()
    # Counting with reversed bits: halves first, then quarters, then eighths (van der Corput).
    for number in range(1 << bits):
        index = int(f"{number:0{bits}b}"[::-1], 2) if bits else 0
        if index < count:
            yield signal.cut(index * WINDOW_S, WINDOW_S)
