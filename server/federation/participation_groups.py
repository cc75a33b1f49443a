"""Participation groups: users split by a public rule, for the length of a run."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.errors import ModelError

GROUPS_FILE = "groups.json"


def assign_groups(
    folder: Path, users: Sequence[str], *, salt: str, min_separation: int, training_started: bool
) -> dict[str, int]:
    """Assign each user a group, from 0 to ``min_separation`` - 1.

    Group g trains in rounds g + 1, g + 1 + ``min_separation`` and so on. Users are taken in the
    order of SHA-256 over salt and pseudonym, each into the smallest group: nobody's data has a say,
    and groups differ by one user at most.

    Args:
        folder: Where the split is stored, so that a run that goes on with fewer or more users
            leaves everybody where they were: a user who changed groups could train too soon.
        users: Pseudonyms.
        salt: The run's name; in a simulation its seed, which no spelling of settings changes.
        min_separation: How many groups.
        training_started: Whether rounds were made already.

    Raises:
        ModelError: The split is damaged, or gone in the middle of a run.
    """
    path = folder / GROUPS_FILE
    stored: dict[str, int] = {}
    if path.exists() or training_started:
        stored = _read(path, min_separation)
    sizes, groups = Counter(stored.values()), dict(stored)
    for user in sorted(set(users) - set(stored), key=lambda user: _sort_key(salt, user)):
        # The smallest group first, the lowest number among equals.
        groups[user] = min(range(min_separation), key=lambda group: sizes[group])
        sizes[groups[user]] += 1
    if groups != stored:
        replace_file(path, json.dumps(groups, sort_keys=True, indent=1).encode())
    return groups


def list_users(folder: Path) -> list[str]:
    """List the users in the stored split; none where there is no split that can be read."""
    try:
        return list(json.loads((folder / GROUPS_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return []


def remove_user(folder: Path, user: str) -> bool:
    """Remove a user from the stored split; whether they were in it. All others stay."""
    if user not in list_users(folder):
        return False
    path = folder / GROUPS_FILE
    groups = json.loads(path.read_text())
    del groups[user]
    replace_file(path, json.dumps(groups, sort_keys=True, indent=1).encode())
    return True


def _sort_key(salt: str, user: str) -> str:
    """Key that users are ordered by."""
    return hashlib.sha256(f"{salt}\x1f{user}".encode()).hexdigest()


def _read(path: Path, min_separation: int) -> dict[str, int]:
    """Read the stored split."""
    try:
        groups = {str(user): int(group) for user, group in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{path} is missing or damaged ({error}); without it users could train too soon after "
            "their last round. Put it back, or begin a new run"
        ) from error
    if not all(0 <= group < min_separation for group in groups.values()):
        raise ModelError(f"{path} names groups beyond {min_separation}; it is another run's")
    return groups
