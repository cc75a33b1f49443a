"""A secure sum from its first message to the unmasking, over whatever carries the messages."""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from sottovoce.server.aggregation.private_sums import PrivateAggregator
from sottovoce.server.aggregation.released_sums import ReleasedSum
from sottovoce.server.aggregation.secagg_server import ServerRound, UnmaskedSum
from sottovoce.shared.errors import AggregationError, EngineError
from sottovoce.shared.printable import get_logger
from sottovoce.shared.privacy.release import Release
from sottovoce.shared.privacy.user_level import ENROLMENT_SUM, SecureSumConfigs, secure_sum_name
from sottovoce.shared.protocol import messages
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig

LOG = get_logger("sottovoce.server")

SendStep = Callable[[str, Mapping[str, bytes]], Mapping[str, bytes]]
"""Carries one step's requests, by user, and brings the answers that came."""


def run_secure_sum(
    settings: SecureAggregationConfig, name: str, roster: Mapping[str, bytes], send_step: SendStep
) -> UnmaskedSum:
    """Make a secure sum.

    Args:
        settings: What all devices agreed to.
        name: Unique over all runs.
        roster: Who is invited: from users' names to their public identity keys.
        send_step: Carries the messages.

    Raises:
        AggregationError: Below quorum or threshold, or somebody tampered: nothing is opened.
    """
    server = ServerRound(settings=settings, round_name=name, roster=roster)
    requests: Mapping[str, bytes] = server.request_keys()
    then = {
        "advertise": server.broadcast_keys,
        "share": server.route_shares,
        "mask": server.announce_survivors,
        "agree": server.route_signatures,
    }
    for step, following in then.items():
        requests = following(send_step(step, requests))
    return server.unmask_sum(send_step("unmask", requests))


SendRequests = Callable[[Mapping[str, messages.SecureSumRequest]], Mapping[str, bytes]]
"""Carries requests to users, and brings the answers that came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureSumExchange:
    """Secure sums of one run, over its message channel.

    Attributes:
        plan_digest: SHA-256 of the run's plan.
        roster: From users' names to their public identity keys.
        send: Carries the messages.
        is_simulated: Whether sums keep their names when they are begun again, so that a simulation
            repeats; a real server never uses a name twice.
    """

    plan_digest: str
    roster: Mapping[str, bytes]
    send: SendRequests
    is_simulated: bool

    def compute_sum(
        self,
        kind: str,
        settings: SecureAggregationConfig,
        users: Iterable[str],
        request: messages.TrainRequest | messages.HeadStatisticsRequest | None = None,
    ) -> UnmaskedSum:
        """Compute one secure sum over these users.

        Args:
            kind: ``enrolment``, ``head-statistics`` or ``round-N``.
            settings: The plan's, of that sum.
            users: Who is invited.
            request: The request whose answers are summed, where there is one.

        Raises:
            EngineError: It stays closed.
        """
        name = secure_sum_name(
            self.plan_digest, kind, "" if self.is_simulated else secrets.token_hex(8)
        )

        def send_step(step: str, requests: Mapping[str, bytes]) -> Mapping[str, bytes]:
            # Only masking computes an update; the other steps need no model on the wire.
            carried = request if step == "mask" else None
            train = carried if isinstance(carried, messages.TrainRequest) else None
            calibrate = carried if isinstance(carried, messages.HeadStatisticsRequest) else None
            return self.send(
                {
                    user: messages.SecureSumRequest(
                        plan_hash=self.plan_digest,
                        name=name,
                        step=step,
                        body=body,
                        train_request=train,
                        statistics_request=calibrate,
                    )
                    for user, body in requests.items()
                }
            )

        try:
            unmasked = run_secure_sum(
                settings, name, {user: self.roster[user] for user in users}, send_step
            )
        except AggregationError as error:
            raise EngineError(
                f"{kind}: {error}. The rounds before are kept: run again with --resume"
            ) from error
        for user, fault in unmasked.faults.items():
            LOG.warning("%s takes no part in %s: %s", user, kind, fault)
        return unmasked


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureAggregator:
    """Releases the secure sums of one run: booked, made, stored, each released once.

    Attributes:
        configs: Settings of the plan's sums.
        exchange: Makes them with the devices.
        aggregator: Books and stores what is released.
    """

    configs: SecureSumConfigs
    exchange: SecureSumExchange
    aggregator: PrivateAggregator

    def release_enrolment(
        self, releases: Mapping[str, Release], users: Sequence[str]
    ) -> ReleasedSum:
        """Make the first secure sum, of label counts and centre; see :meth:`release_sum`."""
        return self.release_sum(ENROLMENT_SUM, releases, users)

    def release_sum(
        self,
        kind: str,
        releases: Mapping[str, Release],
        users: Sequence[str],
        request: messages.TrainRequest | messages.HeadStatisticsRequest | None = None,
    ) -> ReleasedSum:
        """Make one secure sum, or return what was released of it already.

        Args:
            kind: ``enrolment``, ``head-statistics`` or ``round-N``.
            releases: What the ledger says of it, by name.
            users: Who is invited.
            request: The request whose answers are summed, where there is one.

        Guarantees:
            - It is booked before anybody is asked. A try that was interrupted stays booked:
              whoever runs this server may have seen what it unmasked.

        Raises:
            BudgetSpent: The budget would be passed; nobody was asked.
            EngineError: The sum stays closed.
        """
        released = self.aggregator.get_released_sum(kind)
        if released is not None:
            return released
        bookings = [
            # Devices add the noise: the sum exists once it is unmasked, released or not.
            self.aggregator.book_release(name, one, may_be_observed=True)
            for name, one in releases.items()
        ]
        unmasked = self.exchange.compute_sum(kind, self.configs.config_for(kind), users, request)
        survivors = unmasked.survivors
        value = ReleasedSum(
            total=torch.from_numpy(unmasked.total), devices=len(survivors), users=survivors
        )
        return self.aggregator.store_released_sum(kind, bookings, value)
