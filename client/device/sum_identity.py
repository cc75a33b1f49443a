"""Who a device is in secure sums, and whom it makes them with."""

import json
from collections.abc import Mapping
from typing import Final

from sottovoce.client.device.profile import DeviceProfile
from sottovoce.client.device.vault import Vault
from sottovoce.shared import crypto, seeding
from sottovoce.shared.errors import PrivacyError

_IDENTITY: Final = "identity"
_ROSTER: Final = "roster"


class SumIdentity:
    """A user's identity key, and the roster that was pinned on the device.

    Args:
        vault: The device's.
        profile: Names the user, and the seed of a simulated device.
    """

    def __init__(self, vault: Vault, profile: DeviceProfile) -> None:
        self._vault: Final = vault
        self._profile: Final = profile

    def read_key(self) -> bytes:
        """Read the private identity key (Ed25519), 32 bytes; made when first asked for."""
        # Made late: most devices never take part in secure sums.
        if not self._vault.has_blob(_IDENTITY):
            self._vault.put(_IDENTITY, self._draw_key())
        return self._vault.get(_IDENTITY)

    def pin_roster(self, roster: Mapping[str, bytes]) -> None:
        """Keep whom this device makes secure sums with.

        Args:
            roster: From users' names to their public identity keys, 32 bytes each. Where it comes
                from decides what it is worth: a server that wrote it can be everybody.
        """
        named = {user: key.hex() for user, key in sorted(roster.items())}
        self._vault.put(_ROSTER, json.dumps(named).encode())

    def read_roster(self) -> dict[str, bytes]:
        """Read whom this device makes secure sums with; see :meth:`pin_roster`.

        Raises:
            PrivacyError: Nobody was pinned.
        """
        if not self._vault.has_blob(_ROSTER):
            raise PrivacyError(
                "no roster is pinned on this device, so it cannot tell users from a server that "
                "plays them; pin one before it takes part in secure sums"
            )
        named = json.loads(self._vault.get(_ROSTER))
        return {user: bytes.fromhex(key) for user, key in named.items()}

    def _draw_key(self) -> bytes:
        """A fresh key; a simulated one is the same in every run."""
        seed = self._profile.simulated_seed
        if seed is None:
            return crypto.new_key()
        return seeding.numpy_rng(seed, "identity", self._profile.user).bytes(crypto.KEY_BYTES)
