"""Groups that test clips belong to, as the manifest of their corpus has them."""

from collections.abc import Iterable, Mapping
from typing import Final

from sottovoce.shared.errors import SettingError
from sottovoce.shared.identity import identity_key
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.evaluation.predictions import UNKNOWN, Predictions, age_band
from sottovoce.simulations.results.prediction_table import make_pseudonym

ATTRIBUTES: Final = ("gender", "age", "race", "ethnicity", "language", "intensity")
"""What groups are made by. All but intensity are of people."""

_NO_GROUP: Final = frozenset({"", "unknown", "unspecified", "n/a", "nan", "none", "not available"})


def read_groups(clip: Clip) -> dict[str, str]:
    """Read the groups of a clip and its speaker, by attribute; "unknown" where nothing is said.

    Race and ethnicity are columns of the manifest, and are passed on in the corpus's words.

    Example:
        >>> from pathlib import Path
        >>> clip = Clip(clip_id="a", speaker="s", emotion="sad", label="sad", path=Path("a.wav"))
        >>> read_groups(clip)["gender"]
        'unknown'
    """
    # Columns are called Race or race: whoever wrote the manifest chose.
    others = {identity_key(name): value for name, value in clip.other_columns}
    found: Mapping[str, str | None] = {
        "gender": clip.gender,
        "age": age_band(clip.age),
        "race": others.get("race"),
        "ethnicity": others.get("ethnicity"),
        "language": clip.language,
        "intensity": clip.intensity,
    }
    return {
        name: value if value and identity_key(value) not in _NO_GROUP else UNKNOWN
        for name, value in found.items()
    }


def match_groups(
    predictions: Predictions, clips: Iterable[Clip], *, run: str
) -> dict[str, tuple[str, ...]]:
    """Find the groups of the clips in a run's table of predictions.

    Args:
        predictions: What ``prediction_table.read_predictions`` gave: clips are pseudonyms.
        clips: The clips of the run's corpus, in any order.
        run: Name of the run, which the pseudonyms were made with.

    Returns:
        The group of each row, by attribute.

    Raises:
        SettingError: The corpus lacks a clip that was predicted, or has it of another speaker.
    """
    corpus = {make_pseudonym(run, clip.clip_id): clip for clip in clips}
    rows = list(zip(predictions.clips, predictions.speakers, strict=True))
    strange = [name for name, who in rows if name not in corpus or corpus[name].speaker != who]
    if strange:
        raise SettingError(
            f"{len(strange)} of {len(rows)} predictions are of clips that this corpus does not "
            "have; give the corpus that the run was made on"
        )
    groups = [read_groups(corpus[name]) for name, _ in rows]
    return {name: tuple(one[name] for one in groups) for name in ATTRIBUTES}
