"""A run's records: their schemas, run.json and privacy.json."""

__all__ = ["path_names", "privacy_record", "run_record", "schema"]
