"""From a recording to a prediction, or to an abstention that says why."""

__all__ = ["evidence", "prediction", "recogniser", "recording_features", "user_personalisation"]
