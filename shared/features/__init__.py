"""What a model may see of a voice: descriptors, frozen encoders, and their cache."""
