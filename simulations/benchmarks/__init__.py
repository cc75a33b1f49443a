"""Benchmarks of speed and memory; never part of the tests.

``python -m sottovoce.simulations.benchmarks`` measures all benches interleaved, several times over,
so that a noisy machine disturbs all of them equally, and writes medians and ratios as JSON and a
page.
"""

__all__ = [
    "harnesses",
    "head_benchmarks",
    "local_engine",
    "microbenchmarks",
    "pfl",
    "pfl_worker",
    "plain_loop",
    "ray_engine",
    "secure_sums",
    "subprocesses",
    "workloads",
]
