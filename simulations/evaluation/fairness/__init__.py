"""Whom a model serves worse: groups of speakers, gaps between them, and what privacy changes."""

__all__ = ["attributes", "comparison", "run_section", "speaker_groups", "speaker_spread"]
