"""A second opinion on every claim of a finished run."""
