"""A scenario: everything that decides a simulated run."""

__all__ = ["loading", "population", "presets", "scenario", "settings"]
