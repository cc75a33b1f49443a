"""Speaker statistics: estimated, shrunk to the population's, and removed from features."""

__all__ = ["neutral_direction", "normalisation", "unlabelled_adaptation"]
