"""What a device holds of its user: enrolled, listed, exported, erased."""

__all__ = ["creation", "data_export", "device_erasure", "enrolment", "recordings", "release_log"]
