"""The command line ``sottovoce``: a module for each command, or for those that belong together.

A module adds its commands to the parser and imports what they need only when they run, so
``--help`` is quick.
"""

__all__ = [
    "corpora",
    "encoder",
    "evaluation",
    "export",
    "main",
    "model",
    "options",
    "progress_bar",
    "recognition",
    "reproduce",
    "simulate",
    "summary",
    "sweep",
    "verify",
]
