"""Who takes turns with whom: even, public, and kept for the length of a run."""

from collections import Counter
from pathlib import Path

import pytest

from sottovoce.server import groups
from sottovoce.shared.errors import ModelError

USERS = [f"u{number:02d}" for number in range(17)]


def split(
    folder: Path, users: list[str] = USERS, *, run: str = "r", begun: bool = False
) -> dict[str, int]:
    """Four groups."""
    return groups.split(folder, users, salt=run, spacing=4, begun=begun)


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


@pytest.mark.parametrize("kept", [None, b"{", b"[1]", b'{"u00": "x"}', b'{"u00": 4}'])
def test_in_the_middle_of_a_run_a_lost_split_is_not_guessed(
    tmp_path: Path, kept: bytes | None
) -> None:
    split(tmp_path)
    path = tmp_path / groups.FILE
    path.unlink()
    if kept is not None:
        path.write_bytes(kept)
    with pytest.raises(ModelError):
        split(tmp_path, begun=True)


def test_fewer_users_than_groups_leave_some_empty(tmp_path: Path) -> None:
    assert sorted(split(tmp_path, USERS[:3]).values()) == [0, 1, 2]
