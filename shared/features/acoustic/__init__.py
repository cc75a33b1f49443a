"""Acoustic descriptors of speech in NumPy: frame by frame, as functionals, and as tables."""

__all__ = [
    "analysis",
    "catalogue",
    "cepstrum",
    "formants",
    "framing",
    "functionals",
    "pitch",
    "rhythm",
    "spectrum",
    "table",
    "voice_quality",
]
