"""Benchmark of a whole secure sum in one process: all devices' work and the server's."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from sottovoce.client.federation.secagg_client import DeviceRound
from sottovoce.server.aggregation.secagg_server import ServerRound, UnmaskedSum
from sottovoce.shared import crypto
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.discrete_gaussian import RandomWords, SystemRandomWords
from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
from sottovoce.shared.secure_aggregation.quantisation import Floats

PARAMETERS, COHORTS = 10_000, (24, 91)
_DROPOUT, _CORRUPTION, _NOISE = 0.1, 0.1, 2.0


def list_secure_sum_benchmarks() -> Iterator[tuple[str, Callable[[], object]]]:
    """Iterate over one benchmark for each size of cohort; a tenth drops out before masking."""
    for devices in COHORTS:
        yield f"secure sum: {devices} devices, {PARAMETERS} parameters", _bench(devices)


def _bench(devices: int) -> Callable[[], object]:
    """One round of fresh keys, shares, noise and masks; identities and updates are made once."""
    settings = select_parameters(
        devices,
        PARAMETERS,
        1.0,
        dropout=_DROPOUT,
        corruption=_CORRUPTION,
        noise_multiplier=_NOISE,
    )
    identities = {f"user {number:03d}": crypto.new_key() for number in range(devices)}
    random = np.random.default_rng(0)
    updates = {user: random.normal(size=PARAMETERS) for user in identities}
    # As many as the protocol tolerates: the server then reconstructs their masks, its costliest
    # case.
    lost = set(sorted(identities)[: devices - settings.quorum])
    return lambda: run_secure_round(settings, identities, updates, lost)


def run_secure_round(
    settings: SecureAggregationConfig,
    identities: dict[str, bytes],
    updates: dict[str, np.ndarray],
    dropped: set[str],
) -> UnmaskedSum:
    """Run all exchanges of a round; ``dropped`` devices leave before they send their update."""
    roster = {user: crypto.identity_public_key(key) for user, key in identities.items()}
    server = ServerRound(settings=settings, round_name="bench", roster=roster)
    devices = {
        user: DeviceRound(
            user=user, identity=key, roster=roster, settings=settings, round_name="bench"
        )
        for user, key in identities.items()
    }
    asked = server.request_keys()
    asked = server.broadcast_keys({user: devices[user].advertise(asked[user]) for user in asked})
    asked = server.route_shares({user: devices[user].share(asked[user]) for user in asked})
    masked = {
        user: devices[user].mask(asked[user], partial(_contribution, updates[user]))
        for user in asked
        if user not in dropped
    }
    asked = server.announce_survivors(masked)
    asked = server.route_signatures({user: devices[user].agree(asked[user]) for user in asked})
    return server.unmask_sum({user: devices[user].unmask(asked[user]) for user in asked})


def _contribution(update: Floats) -> tuple[Floats, RandomWords]:
    """What a device adds, and where its noise comes from."""
    return update, SystemRandomWords()
