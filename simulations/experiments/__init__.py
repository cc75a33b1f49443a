"""Experiments behind docs/results: one module a page, run by ``sottovoce reproduce NAME``."""

__all__ = [
    "ablation",
    "accuracy",
    "audit",
    "commands",
    "correlated_noise",
    "generalisation",
    "heads",
    "losses",
    "personalisation",
    "population",
    "secure_utterance",
    "streaming",
    "sweep",
]
