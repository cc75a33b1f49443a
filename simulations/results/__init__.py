"""A run's records: their schemas, run.json and privacy.json."""
