"""Speed and memory, measured; never part of the tests.

``python -m sottovoce.simulations.benchmarks`` measures every bench in turns, several times over, so
that a noisy machine disturbs all of them alike, and writes medians and ratios as JSON and a page.
"""
