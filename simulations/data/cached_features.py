"""Features that were all computed before, straight from the cache.

Apart from ``feature_extraction``, whose source is part of the cache's key: an edit there would
have every feature computed anew. What lies here decides no value.
"""

import json
import time
from collections.abc import Sequence

from sottovoce.shared.features.cache import FeatureCache
from sottovoce.simulations.data.feature_extraction import (
    FeatureTable,
    Recording,
    RecordingIndex,
)


def load_cached_features(
    recordings: Sequence[Recording], extractor: str, cache: FeatureCache
) -> FeatureTable | None:
    """The table that ``extract_features`` would give, where nothing is left to be computed.

    Args:
        recordings: With names that are unique.
        extractor: Name, as ``registry.create_extractor`` takes it.
        cache: Where features are kept.

    Returns:
        None where a recording is missing from the cache, or its entry is damaged.
    """
    started = time.monotonic()
    index = RecordingIndex.build(recordings, extractor)
    entries = index.cached_entries(cache)
    names = {recording.clip_id for recording in recordings}
    if len(entries) < len({*index.contents.values()}) or len(names) < len(recordings):
        return None
    return index.build_table(entries, computed=0, corrupt=0, started=started)


def fingerprint_features(
    recordings: Sequence[Recording], extractor: str
) -> tuple[dict[str, str], str]:
    """Fingerprint everything that determines recordings' features, without reading features.

    Returns:
        Content keys by clip, of all whose bytes can be read, and a hash of all that decides their
        features and which of them are left out.
    """
    index = RecordingIndex.build(recordings, extractor)
    reasons = {clip: str(error) for clip, error in index.unreadable.items()}
    facts = [index.fingerprint, index.contents, reasons]
    return dict(index.contents), json.dumps(facts, sort_keys=True)
