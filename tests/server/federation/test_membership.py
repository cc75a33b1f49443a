"""Members of a sampled run: one node, one user, on disk."""

from pathlib import Path

import pytest

from sottovoce.server.federation.membership import MembershipStore, RoundOutcome
from sottovoce.shared.errors import ModelError


def test_members_outlive_the_server(tmp_path: Path) -> None:
    path = tmp_path / "members.sqlite"
    assert MembershipStore(path).add_members({7: "ada", 9: "ben"}, 2) == {7: "ada", 9: "ben"}

    again = MembershipStore(path)
    assert again.users_by_node([5, 7, 9]) == {7: "ada", 9: "ben"}
    assert again.users_by_node([5]) == again.users_by_node([]) == {}
    assert again.count_members() == 2
    assert [again.count_joined([5, 7, 9], number) for number in (1, 2)] == [0, 2]


def test_a_user_has_one_node_and_a_node_one_user(tmp_path: Path) -> None:
    """Two nodes for one user would give that user two updates in a round that bounds one."""
    members = MembershipStore(tmp_path / "members.sqlite")
    members.add_members({7: "ada"}, 1)

    assert members.add_members({8: "ada", 7: "ben", 9: "cleo"}, 2) == {9: "cleo"}
    assert members.users_by_node([7, 8, 9]) == {7: "ada", 9: "cleo"}


def test_a_round_that_is_tried_again_replaces_its_first_try(tmp_path: Path) -> None:
    members = MembershipStore(tmp_path / "members.sqlite")
    members.save_outcome(1, RoundOutcome(sampled=20, used=3))
    members.save_outcome(
        1, RoundOutcome(sampled=20, newcomers=18, unresponsive=7, refused=1, used=12)
    )

    assert members.load_outcomes() == {
        1: RoundOutcome(sampled=20, newcomers=18, unresponsive=7, refused=1, used=12)
    }


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "members.sqlite"
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(ModelError, match=r"members.sqlite cannot be used: the file is damaged"):
        MembershipStore(path)
