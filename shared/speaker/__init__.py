"""A speaker's statistics: estimated, shrunk to the population's, removed from features."""
