"""Experiments behind docs/results: one module a page, run by ``sottovoce reproduce NAME``."""
