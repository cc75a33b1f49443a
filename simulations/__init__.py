"""Corpora, protocols, engines, reports and benchmarks: the harness around the two apps."""
