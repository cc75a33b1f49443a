"""Experiments behind docs/results: one module a page, run by ``sottovoce reproduce NAME``."""

__all__ = [
    "accuracy",
    "audit",
    "commands",
    "correlated_noise",
    "heads",
    "losses",
    "padding",
    "personalisation",
    "population",
    "secure_utterance",
    "sweep",
]
