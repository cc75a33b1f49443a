"""Calibration heads: one user's small correction of what the shared model says.

What a head is stands in ``head``, the directions in which it may bend the last layer in ``basis``,
where users start in ``prior``, how few labels become one in ``fitting``, what that minimises in
``problem``, and what another model may use of it in ``belief``.
"""

from sottovoce.shared.heads.basis import Basis
from sottovoce.shared.heads.fitting import Fit, fit, fitted, usable
from sottovoce.shared.heads.head import (
    MOST_BYTES,
    MOST_LOGIT,
    Adapter,
    Head,
    KeptHead,
    SealedHead,
    apply,
    from_bytes,
    identity,
    to_bytes,
)
from sottovoce.shared.heads.prior import HeadPrior, prior_from_dict, prior_from_file

__all__ = [
    "MOST_BYTES",
    "MOST_LOGIT",
    "Adapter",
    "Basis",
    "Fit",
    "Head",
    "HeadPrior",
    "KeptHead",
    "SealedHead",
    "apply",
    "fit",
    "fitted",
    "from_bytes",
    "identity",
    "prior_from_dict",
    "prior_from_file",
    "to_bytes",
    "usable",
]
