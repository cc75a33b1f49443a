"""Code that client and server share: audio, features, models, privacy accounting, messages.

Names of axes in all docstrings:

========== ==========================================================================
samples    audio samples of one signal, at the signal's own rate
frames     analysis frames of one utterance
features   features of an utterance or of one of its frames, before the projection
inputs     the same after the projection: the inputs of the model
classes    emotions, in the order of the plan's ``labels``
utterances recordings of one speaker (on a device) or of several (a pooled batch)
params     all weights of the shared model as one flat vector
========== ==========================================================================
"""

__all__ = [
    "atomic_files",
    "audio",
    "calibration",
    "codec",
    "crypto",
    "demo_data",
    "errors",
    "exported",
    "features",
    "memo",
    "models",
    "privacy",
    "protocol",
    "secure_aggregation",
    "seeding",
    "speaker",
    "validation",
]
