"""A simulated run, from a scenario to its folder."""

__all__ = ["fold", "progress", "simulation"]
