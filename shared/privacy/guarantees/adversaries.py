"""Adversaries that a guarantee is read against, and what each unit of privacy says of each.

Every scheme states its own table (``PrivacyScheme.adversaries``); documentation and pages print it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sottovoce.shared.errors import SettingError


class Adversary(StrEnum):
    """Who might want to learn about a user, in the words of tables."""

    NETWORK = "Network: reads and changes what is sent"
    MODEL_RECIPIENT = "Recipient of the released models"
    CURIOUS_SERVER = "Server, honest but curious: follows the protocol, remembers everything"
    LYING_SERVER = "Server, lying: sends whatever plan, model or request it likes"
    PARTICIPANT = "Another participant"
    COALITION = "Coalition of k participants"
    THIEF = "Thief of the device's folder"
    SUPPLIER = "Supplier of the code"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversaryBound:
    """A guarantee against one adversary.

    Attributes:
        adversary: Against whom.
        holds: What holds, "nothing" included.
        assumption: Under which assumption; where nothing holds, why.
    """

    adversary: Adversary
    holds: str
    assumption: str

    def to_record(self) -> dict[str, str]:
        """JSON's view of the row."""
        return {
            "adversary": self.adversary.value,
            "holds": self.holds,
            "assumption": self.assumption,
        }


NOTHING: Final = "Nothing"
ONE_UTTERANCE: Final = "(ε, δ) for one utterance, over the device's whole life"
ONE_USER: Final = "(ε, δ) for everything that one user has"

POST_PROCESSING: Final = (
    "Models are computed from messages that keep the promise already (post-processing)."
)

NEIGHBOURING_NOTE: Final = (
    "Neighbouring data sets differ by add/remove (unbounded differential privacy): one unit is in "
    "one of them and not in the other. Changing an utterance, its label included, is two changes: "
    "one removed and one added. The device of a removed user stays and adds nothing: that it takes "
    "part is no secret."
)

_ON_EVERY_DEVICE: Final = {
    Adversary.THIEF: (
        "Features, speaker statistics and head cannot be read; the ledger and the user's name can",
        (
            "The device was created with a passphrase that cannot be guessed; without one the key "
            "lies beside the vault."
        ),
    ),
    Adversary.SUPPLIER: (
        NOTHING,
        "Code that runs on a device can read everything there: install only what you trust.",
    ),
}
"""What no unit of privacy changes."""


def make_adversary_table(
    bounds: Mapping[Adversary, tuple[str, str]],
) -> tuple[AdversaryBound, ...]:
    """Make the table of one unit, with what is the same for all units.

    Args:
        bounds: What holds and under which assumption, for every adversary that the unit concerns.

    Raises:
        SettingError: An adversary is left out: silence would read as safety.

    Example:
        >>> table = make_adversary_table(dict.fromkeys(list(Adversary)[:6], (NOTHING, "No noise.")))
        >>> [row.adversary.name for row in table][-2:]
        ['THIEF', 'SUPPLIER']
    """
    whole = _ON_EVERY_DEVICE | dict(bounds)
    missing = [one.value for one in Adversary if one not in whole]
    if missing:
        raise SettingError(f"adversaries without a statement: {'; '.join(missing)}")
    return tuple(
        AdversaryBound(adversary=one, holds=whole[one][0], assumption=whole[one][1])
        for one in Adversary
    )
