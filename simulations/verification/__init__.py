"""Independent verification of every privacy claim of a finished run."""

__all__ = ["consistency_checks", "ledger_checks", "recompute", "second_accountant"]
