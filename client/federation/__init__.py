"""A device's part in a run: enrolment, rounds, secure sums, statistics, the final model."""
