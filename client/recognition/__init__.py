"""From a recording to a prediction, or to an abstention that says why."""

__all__ = [
    "continuous",
    "decision",
    "evidence",
    "onnx_recogniser",
    "prediction",
    "quality_gate",
    "recogniser",
    "recording_features",
    "segmentation",
    "speech_stream",
    "timeline",
    "user_personalisation",
]
