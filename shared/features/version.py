"""Version of features: models and devices' stores carry it, and need no extractor for that."""

FEATURE_VERSION = 2
"""Since 2, features are computed over the speech of a recording; 1 read all of it.

It is raised when features change, so that models, and what devices learned, never meet features of
another version under the same name. The cache goes by fingerprints and does not need it.
"""
