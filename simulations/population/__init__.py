"""A crowd of made-up users, each made when asked for: who they are, how they behave, their books.

Nothing here lists users. A user is a place from 0; everything about one is a function of the run's
seed and that place, but for the few things that must outlive a process, which lie in one database.
"""
