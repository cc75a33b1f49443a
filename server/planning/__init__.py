"""Before a run: from a privacy target and public corpora to a plan."""

__all__ = ["noise_calibration", "public_pretraining"]
