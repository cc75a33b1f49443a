"""One whole secure sum in one process: every device's work and the server's, added up."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from sottovoce.client.secagg import DeviceRound
from sottovoce.server.secagg import Opened, ServerRound
from sottovoce.shared import crypto
from sottovoce.shared.secagg.arrangement import settings_for
from sottovoce.shared.secagg.discrete import RandomWords, SystemWords
from sottovoce.shared.secagg.quantise import Floats
from sottovoce.shared.secagg.settings import SecureAggregation

PARAMETERS, COHORTS = 10_000, (24, 91)
_DROPOUT, _CORRUPTION, _NOISE = 0.1, 0.1, 2.0


def secure_sums() -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and work of one bench for each size of cohort; a tenth drops out before masking."""
    for devices in COHORTS:
        yield f"secure sum: {devices} devices, {PARAMETERS} parameters", _bench(devices)


def _bench(devices: int) -> Callable[[], object]:
    """One round of fresh keys, shares, noise and masks; identities and updates are made once."""
    settings = settings_for(
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
    lost = set(sorted(identities)[: devices - settings.quorum])
    return lambda: one_round(settings, identities, updates, lost)


def one_round(
    settings: SecureAggregation,
    identities: dict[str, bytes],
    updates: dict[str, np.ndarray],
    lost: set[str],
) -> Opened:
    """All five exchanges; ``lost`` devices drop out before they send their masked update."""
    roster = {user: crypto.identity_public(key) for user, key in identities.items()}
    server = ServerRound(settings=settings, round_name="bench", roster=roster)
    devices = {
        user: DeviceRound(
            user=user, identity=key, roster=roster, settings=settings, round_name="bench"
        )
        for user, key in identities.items()
    }
    asked = server.advertise()
    asked = server.share({user: devices[user].advertise(asked[user]) for user in asked})
    asked = server.mask({user: devices[user].share(asked[user]) for user in asked})
    masked = {
        user: devices[user].mask(asked[user], partial(_given, updates[user]))
        for user in asked
        if user not in lost
    }
    asked = server.agree(masked)
    asked = server.unmask({user: devices[user].agree(asked[user]) for user in asked})
    return server.finish({user: devices[user].unmask(asked[user]) for user in asked})


def _given(update: Floats) -> tuple[Floats, RandomWords]:
    """What a device adds, and where its noise comes from."""
    return update, SystemWords()
