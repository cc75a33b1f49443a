"""What a device learns from its user: the speaker mean, the calibration head, feedback."""

__all__ = ["example_store", "feedback", "head_calibrator", "speaker_adapter"]
