"""What the server does for calibration heads: it keeps them sealed, and fits their prior."""
