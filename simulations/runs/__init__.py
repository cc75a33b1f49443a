"""A simulated run, from a scenario to its folder."""
