"""Streams of a test speaker's unlabelled speech: one balanced, one mostly neutral."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sottovoce.shared import seeding
from sottovoce.shared.speaker.neutral_direction import NEUTRAL_LABELS
from sottovoce.simulations.corpora.corpus import Clip

MAX_STREAM_CLIPS = 20
_SKEW = 4
"""Neutral clips for each other one in a skewed stream: 80 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnlabelledStreams:
    """Two streams of one speaker, equally long, and the clips that are scored after both.

    Attributes:
        balanced: Indices of the clips in which every emotion comes as often as can be.
        skewed: Indices of clips of which 80 % are neutral.
        scored: Indices of all others; every emotion keeps at least one there.
    """

    balanced: tuple[int, ...]
    skewed: tuple[int, ...]
    scored: tuple[int, ...]


def draw_streams(clips: Sequence[Clip], number: int, *, seed: int) -> UnlabelledStreams | None:
    """Draw two streams from a speaker's clips, each clip at most once in each.

    They are as long as the speaker's neutral clips allow, in fives, at most ``MAX_STREAM_CLIPS``.
    The balanced one prefers clips of the skewed one, so that more are left to score.

    Args:
        clips: All clips of one speaker.
        number: Number of the draw.
        seed: Of all draws.

    Returns:
        None where the speaker has fewer than 5 neutral clips.
    """
    emotions = [clip.emotion for clip in clips]
    neutral_count = sum(emotion in NEUTRAL_LABELS for emotion in emotions)
    # One neutral clip stays to be scored, hence the - 1.
    others = min(MAX_STREAM_CLIPS // (_SKEW + 1), (neutral_count - 1) // _SKEW)
    if others < 1:
        return None
    random = seeding.numpy_rng(seed, "streams", clips[0].speaker, number)
    left = Counter(emotions)
    skewed: list[int] = []
    room = {True: others * _SKEW, False: others}
    for index in random.permutation(len(clips)).tolist():
        neutral = emotions[index] in NEUTRAL_LABELS
        # The last clip of an emotion is never used: each must remain to be scored.
        if room[neutral] and left[emotions[index]] > 1:
            room[neutral] -= 1
            left[emotions[index]] -= 1
            skewed.append(index)
    if any(room.values()):  # calm and neutral may not all be spared
        return None
    even = tuple(_draw_balanced(emotions, skewed, left, random))
    used = {*skewed, *even}
    scored = tuple(index for index in range(len(clips)) if index not in used)
    return UnlabelledStreams(balanced=even, skewed=tuple(skewed), scored=scored)


def _draw_balanced(
    emotions: Sequence[str], skewed: Sequence[int], left: Counter[str], random: np.random.Generator
) -> Iterator[int]:
    """Indices, emotion by emotion in random order, until there are as many as are skewed."""
    order = random.permutation(len(emotions)).tolist()
    taken = set(skewed)
    by_emotion = {
        # Clips of the skewed stream first: every one used twice leaves another to score.
        emotion: sorted((p for p in order if emotions[p] == emotion), key=lambda p: p not in taken)
        for emotion in random.permutation(sorted(set(emotions))).tolist()
    }
    wanted = len(skewed)
    while wanted and any(by_emotion.values()):
        for emotion, indices in by_emotion.items():
            index = indices.pop(0) if indices else None
            # A clip of the skewed stream costs nothing; another one must not be its emotion's last.
            if index is None or not wanted or (index not in taken and left[emotion] < 2):
                continue
            left[emotion] -= index not in taken
            wanted -= 1
            yield index
