"""Minimum separation between a device's own rounds, enforced on the device.

Where noise is correlated across rounds, a user's rounds add up to what the ledger says only if they
are far enough apart (see ``privacy.banded_noise``). The server's participation groups see to that;
the device does not rely on it. Its ledger, which outlives crashes, says which rounds it took part
in.
"""

from torch import Tensor

from sottovoce.client.device.device import Device, PreparedRelease
from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.release import Release, ReleaseKind


def release_if_spaced(
    device: Device, prepared: PreparedRelease, banded_noise: BandedNoise
) -> Tensor:
    """Book a round's update and release it, if it is far enough from every other.

    Args:
        device: Whose.
        prepared: The round, not yet booked.
        banded_noise: Says how far apart a user's rounds must be.

    Returns:
        The released vector.

    Guarantees:
        - The record is on disk before the update is computed; see ``Device.book_and_release``.
        - No two booked rounds of a run lie closer than its minimum separation, nor closer than any
          that its earlier rounds were booked with, whatever the server asks, in whatever order,
          before or after a crash.
        - Each round is answered for one request. The same again gets the same bytes; where they
          were lost, a simulated device makes them again and a real one gives nothing.

    Raises:
        PrivacyError: Too near, or released already and lost; nothing was booked or computed.
        BudgetSpent: The budget would be passed; nothing was booked or computed.
    """
    if device.has_booked(prepared):
        stored = device.find_released(prepared)
        if stored is not None:
            return stored
        # Computed anew, a real device's noise would be another: two releases on one booking.
        if device.profile.simulated_seed is None:
            raise PrivacyError(
                f"{prepared.name} was booked already, and what was released is not kept; under "
                "noise that is correlated across rounds a round is released once. The next one is "
                "that of this user's group"
            )
    else:
        _check_separation(device, prepared.release, banded_noise)
    return device.book_and_release(
        prepared.name, prepared.request_digest, prepared.release, prepared.compute
    )


def _check_separation(device: Device, new: Release, banded_noise: BandedNoise) -> None:
    """Refuse a round too near one that was booked; torn lines are of rounds that never left."""
    for old in device.ledger.releases_of(new.run):
        if old.kind is not ReleaseKind.GRADIENT:
            continue
        min_separation = banded_noise.min_separation
        if old.user and old.user.bands:
            # The wider of the two: a plan that changed must not loosen what was booked under.
            min_separation = max(min_separation, old.user.bands.min_separation)
        if abs(new.round - old.round) < min_separation:
            raise PrivacyError(
                f"round {new.round} is asked, and this device took part in round {old.round}; "
                f"rounds of one user must be {min_separation} apart (min_separation), or they cost "
                "more than is booked. Nothing was booked or sent"
            )
