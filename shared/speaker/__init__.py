"""Speaker statistics: estimated, shrunk to the population's, and removed from features."""

__all__ = [
    "familiar_speech",
    "familiarity",
    "neutral_direction",
    "normalisation",
    "unlabelled_adaptation",
]
