"""Before a run: from a privacy target and public corpora to a plan."""
