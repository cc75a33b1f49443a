"""Names of emotions, one for each."""

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
