"""Calibration heads: one user's small correction of the shared model's predictions.

``head`` defines a head, ``adapter_basis`` the directions in which it may change the last layer, and
``head_prior`` the prior of users' heads. ``map_fit`` fits a head on a few labels, minimising
``objective``; ``head_transfer`` carries it over to another model. ``conformal`` computes prediction
sets, and ``head_statistics`` the statistics that training users release for both.
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
