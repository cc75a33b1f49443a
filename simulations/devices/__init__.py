"""Simulated devices: in memory while they work, their ledgers in one database.

A device of a simulation protects nobody, so nothing is gained by sealing what it holds or by a
synced file for each of its lines. Its messages, its ledger's chain and accounting and its refusals
are those of every device. Where processes on other machines must find devices, they lie in folders.
"""

__all__ = ["backends", "database", "device_pool", "in_memory"]
