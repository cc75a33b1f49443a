"""What client and server must agree on: audio, features, model, privacy arithmetic, messages.

One legend of shapes for the whole house:

========== ==========================================================================
samples    audio samples of one signal, at the signal's own rate
frames     analysis frames of one utterance
features   numbers that describe an utterance or one of its frames, before the projection
inputs     the same after the projection: what the model reads
classes    emotions, in the order of the plan's ``labels``
utterances recordings of one speaker (on a device) or of several (a pooled batch)
params     all weights of the shared model as one flat vector
========== ==========================================================================
"""

__all__ = [
    "atomic_files",
    "audio",
    "calibration",
    "crypto",
    "errors",
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
