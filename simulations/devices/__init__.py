"""Simulated devices: in memory while they work, their ledgers in one database.

A simulated device protects nobody, so nothing is gained by sealing its data or by syncing a file
for each ledger line. Its messages, its ledger's chain and accounting and its refusals are those
of every device. Where processes on other machines must find devices, they are in folders.
"""

__all__ = ["backends", "database", "device_pool", "in_memory"]
