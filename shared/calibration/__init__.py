"""Calibration heads: one user's small correction of what the shared model predicts.

What a head is stands in ``head``, the directions in which it may change the last layer in
``adapter_basis``, where users start in ``head_prior``, how few labels become one in ``map_fit``,
what that minimises in ``objective``, and what another model may use of it in ``head_transfer``.
Prediction sets are in ``conformal``; what training users release about both, ``head_statistics``.
"""

from sottovoce.shared.calibration.adapter_basis import AdapterBasis
from sottovoce.shared.calibration.head import (
    MAX_HEAD_BYTES,
    MAX_LOGIT,
    CalibrationHead,
    HeadAdapter,
    SealedHead,
    UnverifiedHead,
    calibrate_logits,
    from_bytes,
    identity_head,
    to_bytes,
)
from sottovoce.shared.calibration.head_prior import HeadPrior, prior_from_dict, prior_from_file
from sottovoce.shared.calibration.map_fit import HeadFit, fit_head, fit_head_only, select_usable

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_LOGIT",
    "AdapterBasis",
    "CalibrationHead",
    "HeadAdapter",
    "HeadFit",
    "HeadPrior",
    "SealedHead",
    "UnverifiedHead",
    "calibrate_logits",
    "fit_head",
    "fit_head_only",
    "from_bytes",
    "identity_head",
    "prior_from_dict",
    "prior_from_file",
    "select_usable",
    "to_bytes",
]
