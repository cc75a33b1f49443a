"""Members of a run over a crowd: one node, one user, on disk."""

from pathlib import Path

import pytest

from sottovoce.server.members import Members, Tally
from sottovoce.shared.errors import ModelError


def test_members_outlive_the_server(tmp_path: Path) -> None:
    path = tmp_path / "members.sqlite"
    assert Members(path).add({7: "ada", 9: "ben"}, 2) == {7: "ada", 9: "ben"}

    again = Members(path)
    assert again.users([5, 7, 9]) == {7: "ada", 9: "ben"}
    assert again.users([5]) == again.users([]) == {}
    assert again.count() == 2
    assert [again.joined([5, 7, 9], number) for number in (1, 2)] == [0, 2]


def test_a_user_has_one_node_and_a_node_one_user(tmp_path: Path) -> None:
    """Two nodes for one user would give that user two updates in a round that bounds one."""
    members = Members(tmp_path / "members.sqlite")
    members.add({7: "ada"}, 1)

    assert members.add({8: "ada", 7: "ben", 9: "cleo"}, 2) == {9: "cleo"}
    assert members.users([7, 8, 9]) == {7: "ada", 9: "cleo"}


def test_a_round_that_is_tried_again_replaces_its_first_try(tmp_path: Path) -> None:
    members = Members(tmp_path / "members.sqlite")
    members.keep(1, Tally(sampled=20, used=3))
    members.keep(1, Tally(sampled=20, newcomers=18, silent=7, refused=1, used=12))

    assert members.rounds() == {1: Tally(sampled=20, newcomers=18, silent=7, refused=1, used=12)}


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "members.sqlite"
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(ModelError, match=r"members.sqlite cannot be used .* --resume"):
        Members(path)
