"""A run on the server: job, participants, cohorts, messages, checkpoints."""
