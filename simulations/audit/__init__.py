"""Attacks on a run, by the owner: what an adversary can show against what was promised."""
