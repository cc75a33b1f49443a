"""The recogniser for browsers: an npm package, and the command that puts a static site together."""

__all__ = ["site"]
