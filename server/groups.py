"""Who takes turns with whom: groups of users by a public rule, kept for the length of a run."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sottovoce.server.files import replace_file
from sottovoce.shared.errors import ModelError

FILE = "groups.json"


def split(
    folder: Path, users: Sequence[str], *, salt: str, spacing: int, begun: bool
) -> dict[str, int]:
    """The group of each user, from 0 to ``spacing`` - 1; group g trains in round g + 1 and so on.

    Users are taken in the order of SHA-256 over salt and pseudonym, each into the smallest group:
    nobody's data has a say, and groups differ by one user at most.

    Args:
        folder: Where the split is kept, so that a run that goes on with fewer or more users leaves
            everybody where they were: a user who changed groups could train too soon.
        users: Pseudonyms.
        salt: The run's name; in a simulation its seed, which no spelling of settings changes.
        spacing: How many groups.
        begun: Whether rounds were made already.

    Raises:
        ModelError: The split is damaged, or gone in the middle of a run.
    """
    path = folder / FILE
    kept: dict[str, int] = {}
    if path.exists() or begun:
        kept = _read(path, spacing)
    sizes, groups = Counter(kept.values()), dict(kept)
    for user in sorted(set(users) - set(kept), key=lambda user: _place(salt, user)):
        groups[user] = min(range(spacing), key=lambda group: sizes[group])
        sizes[groups[user]] += 1
    if groups != kept:
        replace_file(path, json.dumps(groups, sort_keys=True, indent=1).encode())
    return groups


def _place(salt: str, user: str) -> str:
    """Where in the order."""
    return hashlib.sha256(f"{salt}\x1f{user}".encode()).hexdigest()


def _read(path: Path, spacing: int) -> dict[str, int]:
    """What was kept."""
    try:
        groups = {str(user): int(group) for user, group in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{path} is missing or damaged ({error}); without it users could train too soon after "
            "their last turn. Put it back, or begin a new run"
        ) from error
    if not all(0 <= group < spacing for group in groups.values()):
        raise ModelError(f"{path} names groups beyond {spacing}; it is another run's")
    return groups
