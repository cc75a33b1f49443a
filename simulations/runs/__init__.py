"""A simulated run, from a scenario to its folder."""

__all__ = [
    "fold",
    "fold_devices",
    "fold_spec",
    "ledger_archive",
    "progress",
    "run_content",
    "run_folder",
    "simulation",
    "speaker_run",
]
