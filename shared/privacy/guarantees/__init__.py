"""What a guarantee says beside its epsilon: the whole curve, and its adversaries."""

__all__ = ["adversaries", "privacy_curve"]
