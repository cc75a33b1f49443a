"""Simulated devices at home: in memory while they work, their books in one database.

A device of a simulation protects nobody, so nothing is gained by sealing what it holds or by a
synced file for each of its lines. Its messages, its ledger's chain and prices and its refusals are
those of every device. Where processes on other machines must find devices, they lie in folders.
"""
