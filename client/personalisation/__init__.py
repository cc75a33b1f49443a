"""What a device learns from its user: the speaker mean, the calibration head, feedback."""
