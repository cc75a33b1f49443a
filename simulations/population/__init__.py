"""A synthetic population, each user made on demand: voices, behaviour, ledgers.

Nothing here lists users. A user is an index from 0; everything about one is a function of the run's
seed and that index, but for the few things that must outlive a process, which are in one database.
"""

__all__ = [
    "availability",
    "fold",
    "fold_devices",
    "host",
    "ledger_groups",
    "run",
    "users",
    "voice_model",
]
