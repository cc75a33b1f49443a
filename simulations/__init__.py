"""Corpora, protocols, engines, reports and benchmarks: the harness around the two apps."""

__all__ = [
    "audit",
    "benchmarks",
    "corpora",
    "data",
    "devices",
    "engines",
    "evaluation",
    "experiments",
    "population",
    "reports",
    "results",
    "runs",
    "scenario",
    "sweeps",
    "verification",
]
