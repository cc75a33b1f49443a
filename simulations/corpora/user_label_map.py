"""A user's own label map: labels to keep, merge, drop or rename, as a table.

``labels.csv`` in a manifest's folder, or any file named by ``--label-map``::

    label,emotion
    excited,happy
    other,drop
    Lampenfieber,stage_fright
    calm,keep

It goes before the table of ``label_map``. ``*`` stands for every label that it does not name.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sottovoce.shared.errors import CorpusError, SettingError
from sottovoce.shared.identity import identity_key
from sottovoce.simulations.corpora import label_map
from sottovoce.simulations.corpora.table import MAX_NAME, Tally, read_table

LABEL_MAP_FILE: Final = "labels.csv"
COLUMNS: Final = ("label", "emotion")
KEEP: Final = "keep"
DROP: Final = "drop"
EVERYTHING_ELSE: Final = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class UserLabelMap:
    """A user's decisions about labels.

    Attributes:
        name: Its file, or the name of a built-in one.
        actions: By the label's key, a class, ``keep`` or ``drop``.
    """

    name: str
    actions: Mapping[str, str]

    def translate(self, label: str) -> str | None:
        """Translate a label into a class.

        Args:
            label: As the corpus has it.

        Returns:
            Its class, ``drop``, or None where the map says nothing of it.

        Example:
            >>> four = BUILT_IN_MAPS["iemocap4"]
            >>> four.translate("exc"), four.translate("fru"), four.translate("Neutral")
            ('happy', 'drop', 'neutral')
        """
        ours = label_map.harmonise_label(label)
        # As it is written, then by the table's name for it, then everything else.
        for key in (identity_key(label), identity_key(ours), EVERYTHING_ELSE):
            action = self.actions.get(key)
            if action is not None:
                return label_map.name_class(label) if action == KEEP else action
        return None

    def unused_labels(self, labels: Set[str]) -> list[str]:
        """Labels that it names and a corpus does not have, sorted."""
        met = {identity_key(name) for name in labels}
        met |= {identity_key(label_map.harmonise_label(name)) for name in labels}
        return sorted(set(self.actions) - met - {EVERYTHING_ELSE})


BUILT_IN_MAPS: Mapping[str, UserLabelMap] = {
    "iemocap4": UserLabelMap(
        name="iemocap4",
        actions={
            "neutral": "neutral",
            "happy": "happy",
            "excited": "happy",
            "sad": "sad",
            "angry": "angry",
            EVERYTHING_ELSE: DROP,
        },
    ),
}
"""Label maps by name. ``iemocap4``: the four classes that most work on IEMOCAP reports."""


def read_label_map(source: str | Path) -> UserLabelMap:
    """Read a label map.

    Args:
        source: A table with the columns ``label`` and ``emotion``, or a name of
            ``BUILT_IN_MAPS``.

    Raises:
        SettingError: There is no such file or map.
        CorpusError: It is no label map; names the line.
    """
    if str(source) in BUILT_IN_MAPS:
        return BUILT_IN_MAPS[str(source)]
    path = Path(source).expanduser()
    if not path.is_file():
        raise SettingError(
            f"label map {source}: there is no such file; name a table with the columns "
            f"{' and '.join(COLUMNS)}, or one of {', '.join(BUILT_IN_MAPS)}"
        )
    tally = Tally()
    table = read_table(path, tally, wanted=COLUMNS)
    for column in COLUMNS:
        if table.columns.count(column) != 1:
            raise CorpusError(
                f"{path} has {table.columns.count(column)} columns {column}; a label map has the "
                f"columns {' and '.join(COLUMNS)}, once"
            )
    actions: dict[str, str] = {}
    for row in table.rows:
        where = f"{path}, line {row.line}"
        action = _read_action(row["label"], row["emotion"], where)
        if actions.setdefault(identity_key(row["label"]), action) != action:
            raise CorpusError(f"{where}: {row['label']!r} is mapped twice; leave one line")
    # A line that was not understood would be a label that is not mapped.
    for found in tally.findings():
        if "left out" in found.action or "not there" in found.action:
            raise CorpusError(f"{path}: {found}")
    return UserLabelMap(name=str(source), actions=actions)


def _read_action(label: str, emotion: str, where: str) -> str:
    """What one line does with a label."""
    action = identity_key(emotion)
    if not identity_key(label) or not action:
        raise CorpusError(
            f"{where}: label {label!r} and emotion {emotion!r}; write both, and {DROP} to leave a "
            "label out"
        )
    if max(len(label), len(emotion)) > MAX_NAME:
        raise CorpusError(f"{where}: a label may have at most {MAX_NAME} characters")
    if action == KEEP and label == EVERYTHING_ELSE:
        raise CorpusError(f"{where}: {KEEP} is for single labels; leave this line out")
    return action if action in (KEEP, DROP) else label_map.name_class(emotion)
