"""Calibration heads: one user's small correction of the shared model's predictions.

``head`` defines a head, ``adapter_basis`` the directions in which it may change the last layer, and
``head_prior`` the prior of users' heads. ``map_fit`` fits a head on a few labels, minimising
``objective``; ``head_transfer`` carries it over to another model. ``conformal`` computes prediction
sets on the scores that ``conformal_fit`` fits, and ``head_statistics`` the statistics that training
users release for both.

The names of this package are loaded when they are first used (PEP 562): prediction needs
``conformal`` and ``portable_head``, which load no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sottovoce.shared.calibration.adapter_basis import AdapterBasis
    from sottovoce.shared.calibration.conformal_fit import fit_population_scores
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
    "fit_population_scores",
    "from_bytes",
    "identity_head",
    "prior_from_dict",
    "prior_from_file",
    "select_usable",
    "to_bytes",
]

_MODULES = {
    "AdapterBasis": "adapter_basis",
    "CalibrationHead": "head",
    "HeadAdapter": "head",
    "HeadFit": "map_fit",
    "HeadPrior": "head_prior",
    "MAX_HEAD_BYTES": "head",
    "MAX_LOGIT": "head",
    "SealedHead": "head",
    "UnverifiedHead": "head",
    "calibrate_logits": "head",
    "fit_head": "map_fit",
    "fit_head_only": "map_fit",
    "fit_population_scores": "conformal_fit",
    "from_bytes": "head",
    "identity_head": "head",
    "prior_from_dict": "head_prior",
    "prior_from_file": "head_prior",
    "select_usable": "map_fit",
    "to_bytes": "head",
}
"""By public name, the module of this package that defines it."""


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    # In the module from now on, so that this is called once a name.
    return globals().setdefault(name, value)
