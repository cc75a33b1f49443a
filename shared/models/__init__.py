"""The shared models, by name."""
