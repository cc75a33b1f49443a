"""A scenario: everything that decides a simulated run."""
