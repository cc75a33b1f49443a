"""Embedded voices for the demo, the tests and populations of any size."""

__all__ = ["sample_recordings", "source_filter", "speakers", "synthetic_corpus"]
