"""Verify a run's privacy budget from its ledgers: ``python examples/verify_budget.py runs/demo``.

Two accountants that share no code compute every epsilon again. The exit status says whether they
agree with what the run claims.
"""

import sys

from sottovoce import verify

if __name__ == "__main__":
    verification = verify(sys.argv[1])
    print("\n".join(verification.report_lines()))
    largest = max(check.pld_epsilon for check in verification.ledger_checks)
    print(f"largest epsilon of a client: {largest:.3f} of {verification.promised_epsilon:g}")
    sys.exit(0 if verification.is_consistent else 1)
