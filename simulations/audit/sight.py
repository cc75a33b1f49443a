"""What the server sees of one device, by what the run protects: the attackers' raw material.

An attack asks here and nowhere else, so a unit whose updates are hidden in a sum is attacked
through the same doors as one whose updates lie open.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from sottovoce.shared.errors import SettingError
from sottovoce.simulations.audit.subject import Seen

View = Callable[[Seen, int], dict[str, Tensor]]
"""From a device's life and the number of rounds seen to named vectors, one dimension each."""


def openly(seen: Seen, rounds: int) -> dict[str, Tensor]:
    """Everything that the device sends, as in ``none`` and ``utterance``.

    Args:
        seen: The device's life.
        rounds: How many rounds were seen, from the first on.

    Returns:
        ``first message``: label counts and share of the centre; ``updates``: their mean.
    """
    return {"first message": seen.enrolment.double(), "updates": updates(seen, rounds)}


def updates(seen: Seen, rounds: int) -> Tensor:
    """The mean of the first updates, shape (params,), float64."""
    return seen.updates[:rounds].double().mean(0)


VIEWS: Mapping[str, View] = {"none": openly, "utterance": openly}
"""What lies open to the server, by the unit that a run protects."""


def view(unit: str) -> View:
    """The view of a unit.

    Raises:
        SettingError: A unit that cannot be attacked yet.
    """
    if unit not in VIEWS:
        raise SettingError(f"unit is {unit!r}; this version attacks runs of {', '.join(VIEWS)}")
    return VIEWS[unit]
