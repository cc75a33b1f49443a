"""Experiments behind docs/results: one module a page, run by ``sottovoce reproduce NAME``."""

__all__ = [
    "ablation",
    "accuracy",
    "audit",
    "commands",
    "correlated_noise",
    "fairness",
    "fairness_page",
    "generalisation",
    "heads",
    "losses",
    "personalisation",
    "population",
    "recognition",
    "secure_utterance",
    "streaming",
    "sweep",
]
