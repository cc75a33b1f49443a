"""Graph of the pairs of users that share masks: a ring in a random order."""

import hashlib
from collections.abc import Iterable, Mapping

from sottovoce.shared import crypto
from sottovoce.shared.errors import SettingError

NeighbourGraph = Mapping[str, frozenset[str]]
"""Neighbours of every user; symmetric, without loops."""


def harary_graph(users: Iterable[str], degree: int, seed: bytes) -> NeighbourGraph:
    """Draw a k-regular, k-connected graph (Harary 1962) over a random order of the users.

    Users form a ring in the order of SHA-256(seed, user); each is joined to the next k/2 users on
    both sides (Bell et al. 2020, section 3.2). With at most k + 1 users the graph is complete.

    Args:
        users: Names of the users, all different, in any order.
        degree: k, even and at least 2; odd only if it makes the graph complete.
        seed: Public bytes: the hash of all advertisements of the round.

    Returns:
        Every user's neighbours.

    Raises:
        SettingError: Fewer than two users, names that repeat, or a degree out of range.

    Guarantees:
        - A pure function of its arguments: everybody draws the same graph from the same seed.
        - Each user has exactly min(k, users - 1) neighbours, and losing any k - 1 users leaves
          the others connected.
        - To users who fixed their keys before seeing others', the order is random (SHA-256 as a
          random oracle). A server with lying devices may try other keys for these, and so choose
          among graphs: T tries multiply the failure probabilities of ``parameter_selection`` by
          at most T.

    Example:
        >>> graph = harary_graph(["ada", "bob", "cem", "dee", "eve"], degree=2, seed=b"round 1")
        >>> {len(neighbours) for neighbours in graph.values()}
        {2}
        >>> all(user in graph[other] for user in graph for other in graph[user])
        True
    """
    names = list(users)
    if len(names) < 2 or len(set(names)) != len(names):
        raise SettingError(f"{len(set(names))} users among {len(names)} names; give 2 or more")
    reach = min(degree, len(names) - 1)
    complete = reach == len(names) - 1
    if reach < 1 or (reach % 2 and not complete):
        raise SettingError(f"degree is {degree}; it must be even and at least 2")
    if complete:
        return {name: frozenset(names) - {name} for name in names}
    ring = sorted(
        # A keyed hash instead of a shuffle: no library's generator has to stay the same for it.
        names,
        key=lambda name: hashlib.sha256(seed + crypto.encode_context(name)).digest(),
    )
    steps = [step for half in range(1, reach // 2 + 1) for step in (half, -half)]
    return {
        name: frozenset(ring[(index + step) % len(ring)] for step in steps)
        for index, name in enumerate(ring)
    }
