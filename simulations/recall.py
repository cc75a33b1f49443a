"""Features that were all computed before, straight from the cache.

Apart from ``features``, whose source is part of the cache's key: an edit there would have every
feature computed anew. What lies here decides no value.
"""

import json
import time
from collections.abc import Sequence

from sottovoce.shared.features import extract
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.simulations import features
from sottovoce.simulations.features import FeatureTable, Recording


def recalled(
    recordings: Sequence[Recording], extractor: str, cache: FeatureCache
) -> FeatureTable | None:
    """The table that ``features.features`` would give, where nothing is left to be computed.

    Args:
        recordings: With names that are unique.
        extractor: Name, as ``extract.extractor`` takes it.
        cache: Where features are kept.

    Returns:
        None where a recording is missing from the cache, or its entry is damaged.
    """
    started = time.monotonic()
    fingerprint = features._fingerprint(extract.extractor(extractor))
    contents, unreadable = features._contents(recordings)
    wanted = {contents[one.clip_id]: one for one in recordings if one.clip_id in contents}
    entries = features._cached(wanted, fingerprint, cache)
    names = {recording.clip_id for recording in recordings}
    if len(entries) < len(wanted) or len(names) < len(recordings):
        return None
    return features._table(
        recordings,
        contents,
        entries,
        unreadable,
        extractor=extractor,
        fingerprint=fingerprint,
        computed=0,
        corrupt=0,
        started=started,
    )


def named(recordings: Sequence[Recording], extractor: str) -> tuple[dict[str, str], str]:
    """What decides the features of recordings, without reading any.

    Returns:
        Content keys by clip, of all whose bytes can be read, and a hash of all that decides their
        features and which of them are left out.
    """
    contents, unreadable = features._contents(recordings)
    fingerprint = features._fingerprint(extract.extractor(extractor))
    return contents, json.dumps([fingerprint, contents, unreadable], sort_keys=True)
