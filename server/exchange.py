"""A secure sum from its first message to its opening, over whatever carries the messages."""

from collections.abc import Callable, Mapping

from sottovoce.server.secagg import Opened, ServerRound
from sottovoce.shared.secagg.settings import SecureAggregation

Ask = Callable[[str, Mapping[str, bytes]], Mapping[str, bytes]]
"""Carries one step's requests, by user, and brings the answers that came."""


def summed(settings: SecureAggregation, name: str, roster: Mapping[str, bytes], ask: Ask) -> Opened:
    """Make a secure sum.

    Args:
        settings: What all devices agreed to.
        name: Unique over all runs.
        roster: Who is invited: from users' names to their public identity keys.
        ask: Carries the messages.

    Raises:
        AggregationError: Below quorum or threshold, or somebody tampered: nothing is opened.
    """
    server = ServerRound(settings=settings, round_name=name, roster=roster)
    requests: Mapping[str, bytes] = server.advertise()
    then = {
        "advertise": server.share,
        "share": server.mask,
        "mask": server.agree,
        "agree": server.unmask,
    }
    for step, following in then.items():
        requests = following(ask(step, requests))
    return server.finish(ask("unmask", requests))
