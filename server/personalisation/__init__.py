"""What the server does for calibration heads: it keeps them sealed, and fits their prior."""

__all__ = ["head_store", "prior_calibration", "prior_estimation"]
