"""From a recording to a prediction, or to an abstention that says why."""

__all__ = [
    "decision",
    "evidence",
    "onnx_recogniser",
    "prediction",
    "quality_gate",
    "recogniser",
    "recording_features",
    "user_personalisation",
]
