"""A secure sum from its first message to its opening, over whatever carries the messages."""

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sottovoce.server.secagg import Opened, ServerRound
from sottovoce.shared import wire
from sottovoce.shared.errors import AggregationError, EngineError
from sottovoce.shared.privacy.users import sum_name
from sottovoce.shared.secagg.settings import SecureAggregation

LOG = logging.getLogger("sottovoce.server")

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


Send = Callable[[Mapping[str, wire.SumRequest]], Mapping[str, bytes]]
"""Carries requests to users, and brings the answers that came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureExchange:
    """How one run makes its secure sums.

    Attributes:
        plan: SHA-256 of the run's plan.
        roster: From users' names to their public identity keys.
        send: Carries the messages.
        simulated: Whether sums keep their names when they are begun again, so that a simulation
            repeats; a real server never uses a name twice.
    """

    plan: str
    roster: Mapping[str, bytes]
    send: Send
    simulated: bool

    def sum(
        self,
        kind: str,
        settings: SecureAggregation,
        users: Iterable[str],
        summed_up: wire.TrainRequest | wire.CalibrateRequest | None = None,
    ) -> Opened:
        """One secure sum over these users.

        Args:
            kind: ``enrolment``, ``head-statistics`` or ``round-N``.
            settings: The plan's, of that sum.
            users: Who is invited.
            summed_up: The request whose answers are summed, where there is one.

        Raises:
            EngineError: It stays closed.
        """
        name = sum_name(self.plan, kind, "" if self.simulated else secrets.token_hex(8))

        def ask(step: str, requests: Mapping[str, bytes]) -> Mapping[str, bytes]:
            asked = summed_up if step == "mask" else None
            train = asked if isinstance(asked, wire.TrainRequest) else None
            calibrate = asked if isinstance(asked, wire.CalibrateRequest) else None
            return self.send(
                {
                    user: wire.SumRequest(
                        plan=self.plan,
                        name=name,
                        step=step,
                        body=body,
                        train=train,
                        calibrate=calibrate,
                    )
                    for user, body in requests.items()
                }
            )

        try:
            opened = summed(settings, name, {user: self.roster[user] for user in users}, ask)
        except AggregationError as error:
            raise EngineError(
                f"{kind}: {error}. The rounds before are kept: run again with --resume"
            ) from error
        for user, fault in opened.faults.items():
            LOG.warning("%s takes no part in %s: %s", user, kind, fault)
        return opened
