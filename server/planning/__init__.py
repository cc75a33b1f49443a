"""Before a run: from a privacy target and public corpora to a plan."""

__all__ = ["demo_job", "noise_calibration", "public_pretraining", "recipe"]
