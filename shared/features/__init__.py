"""Features of speech: acoustic descriptors, frozen encoders, and their cache."""

__all__ = [
    "cache",
    "descriptors",
    "extractor",
    "fingerprint",
    "log_mel",
    "pitch",
    "pretrained",
    "registry",
    "rhythm",
    "spectral",
    "version",
    "whisper",
    "whisper_weights",
]
