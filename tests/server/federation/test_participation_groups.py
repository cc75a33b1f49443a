"""Participation groups: even, public, and fixed for the length of a run."""

from collections import Counter
from pathlib import Path

import pytest

from sottovoce.server.federation import participation_groups
from sottovoce.shared.errors import ModelError

USERS = [f"u{number:02d}" for number in range(17)]


def split(
    folder: Path, users: list[str] = USERS, *, run: str = "r", begun: bool = False
) -> dict[str, int]:
    """Four groups."""
    return participation_groups.assign_groups(
        folder, users, salt=run, min_separation=4, training_started=begun
    )


def test_groups_are_even_and_depend_on_nothing_but_names(tmp_path: Path) -> None:
    first = split(tmp_path / "a")
    assert sorted(Counter(first.values()).values()) == [4, 4, 4, 5]
    assert split(tmp_path / "b", USERS[::-1]) == first
    assert split(tmp_path / "c", run="s") != first


def test_who_comes_or_goes_moves_nobody_else(tmp_path: Path) -> None:
    first = split(tmp_path, USERS[:12])
    assert split(tmp_path, USERS[3:], begun=True) == first | {
        user: group for user, group in split(tmp_path, USERS).items() if user in USERS[12:]
    }
    assert split(tmp_path, USERS[:2], begun=True).items() >= first.items()
    assert max(Counter(split(tmp_path).values()).values()) == 5


@pytest.mark.parametrize("groups", [None, b"{", b"[1]", b'{"u00": "x"}', b'{"u00": 4}'])
def test_in_the_middle_of_a_run_a_lost_split_is_not_guessed(
    tmp_path: Path, groups: bytes | None
) -> None:
    split(tmp_path)
    path = tmp_path / participation_groups.GROUPS_FILE
    path.unlink()
    if groups is not None:
        path.write_bytes(groups)
    with pytest.raises(ModelError):
        split(tmp_path, begun=True)


def test_fewer_users_than_groups_leave_some_empty(tmp_path: Path) -> None:
    assert sorted(split(tmp_path, USERS[:3]).values()) == [0, 1, 2]
