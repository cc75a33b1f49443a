"""Independent verification of every privacy claim of a finished run."""

__all__ = [
    "consistency_checks",
    "curve_checks",
    "ledger_checks",
    "recompute",
    "registry",
    "second_accountant",
    "statement",
]
