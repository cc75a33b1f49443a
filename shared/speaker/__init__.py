"""A speaker's statistics: estimated, shrunk to the population's, removed from features."""

__all__ = ["neutral_direction", "normalisation", "unlabelled_adaptation"]
