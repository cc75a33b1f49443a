"""Before a run: from a privacy target and public corpora to a plan."""

__all__ = ["demo_job", "job_record", "noise_calibration", "public_pretraining", "recipe"]
