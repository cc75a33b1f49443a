"""Streams of a test speaker's unlabelled speech: one of an even mix, one that is mostly neutral."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sottovoce.shared import seeds
from sottovoce.shared.neutral import NEUTRAL
from sottovoce.simulations.corpora.clips import Clip

LONGEST = 20
_SKEW = 4
"""Neutral clips for each other one in a skewed stream: 80 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Streams:
    """Two streams of one speaker, equally long, and what is scored behind both.

    Attributes:
        even: Places of the clips in which every emotion comes as often as can be.
        skewed: Places of clips of which 80 % are neutral.
        scored: Places of all others; every emotion keeps at least one there.
    """

    even: tuple[int, ...]
    skewed: tuple[int, ...]
    scored: tuple[int, ...]


def draw(clips: Sequence[Clip], number: int, *, seed: int) -> Streams | None:
    """Draw two streams from a speaker's clips, each clip at most once in each.

    They are as long as the speaker's neutral clips allow, in fives, at most ``LONGEST``. The even
    one prefers clips of the skewed one, so that more are left to score.

    Args:
        clips: All clips of one speaker.
        number: Number of the draw.
        seed: Of all draws.

    Returns:
        None where the speaker has fewer than 5 neutral clips.
    """
    emotions = [clip.emotion for clip in clips]
    calm = sum(emotion in NEUTRAL for emotion in emotions)
    others = min(LONGEST // (_SKEW + 1), (calm - 1) // _SKEW)
    if others < 1:
        return None
    random = seeds.numpy_rng(seed, "streams", clips[0].speaker, number)
    left = Counter(emotions)
    skewed: list[int] = []
    room = {True: others * _SKEW, False: others}
    for place in random.permutation(len(clips)).tolist():
        neutral = emotions[place] in NEUTRAL
        if room[neutral] and left[emotions[place]] > 1:
            room[neutral] -= 1
            left[emotions[place]] -= 1
            skewed.append(place)
    if any(room.values()):  # calm and neutral may not all be spared
        return None
    even = tuple(_even(emotions, skewed, left, random))
    used = {*skewed, *even}
    scored = tuple(place for place in range(len(clips)) if place not in used)
    return Streams(even=even, skewed=tuple(skewed), scored=scored)


def _even(
    emotions: Sequence[str], skewed: Sequence[int], left: Counter[str], random: np.random.Generator
) -> Iterator[int]:
    """Places in turns of emotions, in random order, until there are as many as are skewed."""
    order = random.permutation(len(emotions)).tolist()
    taken = set(skewed)
    turns = {
        emotion: sorted((p for p in order if emotions[p] == emotion), key=lambda p: p not in taken)
        for emotion in random.permutation(sorted(set(emotions))).tolist()
    }
    wanted = len(skewed)
    while wanted and any(turns.values()):
        for emotion, places in turns.items():
            place = places.pop(0) if places else None
            if place is None or not wanted or (place not in taken and left[emotion] < 2):
                continue
            left[emotion] -= place not in taken
            wanted -= 1
            yield place
