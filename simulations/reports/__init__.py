"""From a run's JSON to pages a person can read."""
