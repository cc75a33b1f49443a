"""A second opinion on every claim of a finished run."""

__all__ = ["consistency_checks", "ledger_checks", "recompute", "second_accountant"]
