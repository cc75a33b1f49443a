"""Lower bounds on epsilon from what attacks saw, each with its confidence.

============= ====================================================================
gaussian      from the mu of a Gaussian mechanism to an epsilon
many_runs     error rates over independent trials with and without one canary
one_run       right guesses about many canaries of one run, by (epsilon, delta)-DP
              (Steinke et al. 2023) and by f-DP (Mahloujifar et al. 2024)
summed_scores the scores of those canaries as two normal distributions
              (Agrawal et al. 2026)
============= ====================================================================
"""

__all__ = ["gaussian", "many_runs", "one_run", "summed_scores"]
