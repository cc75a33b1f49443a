"""Embedded voices for the demo, the tests and populations of any size."""
