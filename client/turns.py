"""Rounds in which users take turns: what a device does so that its own never come too near.

Where the noise of rounds hangs together, a user's rounds add up to what the ledger says only if
they lie far enough apart (see ``privacy.bands``). The server's groups see to that; the device does
not rely on it. Its ledger, which outlives crashes, says which rounds it took part in.
"""

from torch import Tensor

from sottovoce.client.device import Device, Pending
from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.privacy.bands import Bands
from sottovoce.shared.privacy.release import Kind, Release


def release(device: Device, pending: Pending, bands: Bands) -> Tensor:
    """Book a round's update and give it out, if it is far enough from every other.

    Args:
        device: Whose.
        pending: The round, not yet booked.
        bands: How far rounds must lie apart.

    Returns:
        The released vector.

    Guarantees:
        - The record is on disk before the update is computed; see ``Device.release``.
        - No two booked rounds of a run lie closer than its spacing, nor closer than any that its
          earlier rounds were booked with, whatever the server asks, in whatever order, before or
          after a crash.
        - Each round is answered for one request. The same again gets the same bytes; where they
          were lost, a simulated device makes them again and a real one gives nothing.

    Raises:
        PrivacyError: Too near, or given already and lost; nothing was booked or computed.
        BudgetSpent: The budget would be passed; nothing was booked or computed.
    """
    if device.holds(pending):
        kept = device.kept(pending)
        if kept is not None:
            return kept
        if device.facts.simulated_seed is None:
            raise PrivacyError(
                f"{pending.name} was booked already, and what was given is not kept; under noise "
                "that hangs together a round is given once. The next one is the next turn's"
            )
    else:
        _check_apart(device, pending.release, bands)
    return device.release(pending.name, pending.content, pending.release, pending.make)


def _check_apart(device: Device, new: Release, bands: Bands) -> None:
    """Refuse a round too near one that was booked; torn lines are of rounds that never left."""
    for old in device.ledger.of_run(new.run):
        if old.kind is not Kind.GRADIENT:
            continue
        apart = bands.spacing
        if old.user and old.user.bands:
            apart = max(apart, old.user.bands.spacing)
        if abs(new.round - old.round) < apart:
            raise PrivacyError(
                f"round {new.round} is asked, and this device took part in round {old.round}; "
                f"rounds of one user must lie {apart} apart, or they cost more than is booked. "
                "Nothing was booked or sent"
            )
