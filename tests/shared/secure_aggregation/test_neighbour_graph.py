"""Everybody draws the same graph; it is regular, symmetric and hard to cut."""

import itertools

import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.shared.secure_aggregation.neighbour_graph import NeighbourGraph, harary_graph


def users(count: int) -> list[str]:
    return [f"user {number}" for number in range(count)]


def connected(graph: NeighbourGraph, without: set[str]) -> bool:
    left = set(graph) - without
    reached: set[str] = set()
    waiting = [min(left)]
    while waiting:
        user = waiting.pop()
        reached.add(user)
        waiting += (graph[user] & left) - reached
    return reached == left


@pytest.mark.parametrize(
    ("count", "degree"), [(2, 1), (3, 2), (9, 4), (24, 10), (24, 23), (91, 42)]
)
def test_it_is_regular_and_symmetric(count: int, degree: int) -> None:
    graph = harary_graph(users(count), degree, b"seed")

    assert {len(near) for near in graph.values()} == {degree}
    for user, near in graph.items():
        assert user not in near
        assert all(user in graph[other] for other in near)


def test_it_stays_connected_without_any_few_and_not_without_some_more() -> None:
    graph = harary_graph(users(9), 4, b"seed")

    for lost in itertools.combinations(graph, 3):
        assert connected(graph, set(lost))
    assert not all(connected(graph, set(lost)) for lost in itertools.combinations(graph, 4))


def test_fewer_users_than_neighbours_are_all_tied() -> None:
    graph = harary_graph(users(5), 10, b"seed")

    assert all(near == set(graph) - {user} for user, near in graph.items())


def test_the_seed_alone_decides() -> None:
    names = users(24)
    graph = harary_graph(names, 6, b"seed")

    assert graph == harary_graph(reversed(names), 6, b"seed")
    assert graph != harary_graph(names, 6, b"other")


def test_neighbours_are_drawn_evenly() -> None:
    """A pair is tied with chance k / (n - 1), whoever they are."""
    rounds = 2000
    ties = dict.fromkeys(users(11)[1:], 0)
    for number in range(rounds):
        for other in harary_graph(users(11), 4, number.to_bytes(4, "big"))["user 0"]:
            ties[other] += 1

    limit = 6 * (rounds * 0.4 * 0.6) ** 0.5
    assert all(abs(count - 0.4 * rounds) < limit for count in ties.values())


@pytest.mark.parametrize(
    ("names", "degree"), [(["a"], 2), (["a", "a", "b"], 2), (users(9), 3), (users(9), 0)]
)
def test_odd_graphs_are_refused(names: list[str], degree: int) -> None:
    with pytest.raises(SettingError):
        harary_graph(names, degree, b"seed")
