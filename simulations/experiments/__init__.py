"""Experiments behind docs/results: one module a page, run by ``sottovoce reproduce NAME``."""

__all__ = [
    "ablation",
    "default_model",
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
