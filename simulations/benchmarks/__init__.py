"""Benchmarks of speed and memory; never part of the tests.

``python -m sottovoce.simulations.benchmarks`` measures all benches interleaved, several times over,
so that a noisy machine disturbs all of them equally, and writes medians and ratios as JSON and a
page. ``python -m sottovoce.simulations.benchmarks.runtime`` measures what prediction without torch
takes, in an environment of its own.
"""

__all__ = [
    "exported_answers",
    "harnesses",
    "head_benchmarks",
    "local_engine",
    "microbenchmarks",
    "pfl",
    "pfl_worker",
    "plain_loop",
    "ray_engine",
    "runtime",
    "secure_sums",
    "subprocesses",
    "workloads",
]
