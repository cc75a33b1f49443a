"""Version of features: models and devices' stores carry it, and need no extractor for that."""

from sottovoce.shared.errors import ModelError

FEATURE_VERSION = 2
"""Since 2, features are computed over the speech of a recording; 1 read all of it.

It is raised when features change, so that models, and what devices learned, never meet features of
another version under the same name. The cache goes by fingerprints and does not need it.
"""


def require_feature_version(version: int) -> None:
    """Refuse a model of features that this release does not compute.

    Raises:
        ModelError: Its version is another; the message names both, and the way out.

    Example:
        >>> require_feature_version(FEATURE_VERSION)
    """
    if version != FEATURE_VERSION:
        raise ModelError(
            f"the model reads features of version {version}, and this release computes version "
            f"{FEATURE_VERSION}: its answers would be wrong; train it anew, or install the "
            "release that trained it"
        )
