"""Names of emotions, one for each."""

from collections.abc import Mapping
from typing import Final

# An order of our own, so that columns of the same classes mean the same in every run.
CANONICAL_EMOTIONS: Final = (
    "neutral",
    "calm",
    "happy",
    "sad",
    "angry",
    "fearful",
    "disgust",
    "surprised",
    "bored",
    "contempt",
    "excited",
    "frustrated",
)
"""Our words, in the order in which classes are always listed; others follow by alphabet."""

VALENCE_AROUSAL: Final[Mapping[str, tuple[float, float]]] = {
    "neutral": (0.0, 0.0),
    "calm": (0.7, -0.5),
    "happy": (0.8, 0.5),
    "sad": (-0.6, -0.3),
    "angry": (-0.5, 0.6),
    "fearful": (-0.6, 0.6),
    "disgust": (-0.6, 0.4),
    "surprised": (0.4, 0.7),
    "bored": (-0.6, -0.6),
    "contempt": (-0.5, 0.2),
    "excited": (0.6, 0.7),
    "frustrated": (-0.6, 0.5),
}
"""Valence and arousal of emotion words, in [-1, 1].

Coarse, to a tenth, after the ratings of Russell & Mehrabian 1977 (doi:10.1016/0092-6566(77)90037-X)
where they have the word or a near one; contempt is our guess. They order emotions, and measure no
recording.
"""
