"""Who masks with whom: a ring of all users in an order that nobody chose."""

import hashlib
from collections.abc import Iterable, Mapping

from sottovoce.shared import crypto
from sottovoce.shared.errors import SettingError

NeighbourGraph = Mapping[str, frozenset[str]]
"""Neighbours of every user; symmetric, nobody is their own neighbour."""


def harary_graph(users: Iterable[str], degree: int, seed: bytes) -> NeighbourGraph:
    """A k-regular graph that is k-connected (Harary 1962), over a random order of the users.

    Users stand in a ring in the order of SHA-256(seed, user); each is tied to the k/2 next ones on
    both sides (Bell et al. 2020, section 3.2). With k or fewer others all are tied to all.

    Args:
        users: Their names, all different, in any order.
        degree: k, even and at least 2; odd only where it makes the graph complete.
        seed: Public bytes. Here: the hash of all advertisements of the round.

    Returns:
        Every user's neighbours.

    Raises:
        SettingError: Fewer than two users, names that repeat, or a degree out of range.

    Guarantees:
        - A pure function of its arguments: everybody draws the same graph from the same seed.
        - Each user has exactly min(k, users - 1) neighbours, and losing any k - 1 users leaves
          the others connected.
        - To whoever fixed their keys before seeing others', the order is random (SHA-256 taken as
          a random function). A server with lying devices may try other keys for those, and so
          look at other graphs: T tries raise the failure
          probabilities of ``parameter_selection`` T times.
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
        names, key=lambda name: hashlib.sha256(seed + crypto.encode_context(name)).digest()
    )
    steps = [step for half in range(1, reach // 2 + 1) for step in (half, -half)]
    return {
        name: frozenset(ring[(index + step) % len(ring)] for step in steps)
        for index, name in enumerate(ring)
    }
