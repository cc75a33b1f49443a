"""Posterior of a user's calibration head, and its transfer to another model.

A head is of no use for another model: it corrects the errors of *its* model. Information about the
user lasts longer: how far the head lies from its model's prior mean, and how much of the prior's
variance the labels explained. So a head is stored with both, and is transferred::

    mean     = the new prior's mean + correlation * (head - the old prior's mean)
    variance = the new prior's variance * (1 - correlation^2 * variance_explained)

These are mean and variance of a Gaussian whose correlation with the old one is ``correlation``. The
result is only the prior of a fit for the new model. With correlation 1 (the same model) the fit
continues from the old posterior; with correlation 0, or where no variance was explained, it starts
from the new prior. Emotions are matched by their names; one that the old model did not know starts
from the new prior.
"""

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.calibration import head as heads
from sottovoce.shared.calibration.head import CalibrationHead
from sottovoce.shared.calibration.head_prior import HeadPrior
from sottovoce.shared.calibration.map_fit import HeadFit
from sottovoce.shared.errors import ModelError

HEAD_CORRELATION: Final = 0.5
"""Of one user's heads under two models. On RAVDESS their temperatures correlate by 0.74 and their
biases by 0.56, between an open network and a private linear model (``docs/research/heads.md``)."""

MAX_TRANSFERABLE_CLASSES: Final = 64
"""A head of more emotions is stored alone: its posterior would not fit the sealed length."""

_MIN_VARIANCE_SHARE: Final = 1e-6
_ROUNDING: Final = 1e-9
# Changing the format means a new magic or schema: devices hold these bytes for years.
_MAGIC: Final = b"SVBF"
_HEAD_MAGIC: Final = b"SVHD"
_SCHEMA: Final = 1
_HEADER: Final = struct.Struct("<4sBHH")
_TEMPERATURE_STRUCT: Final = struct.Struct("<dd")
_TAG_BYTES: Final = 8
_CLASS_DTYPE: Final = np.dtype(
    [("tag", f"V{_TAG_BYTES}"), ("prior_mean", "<f8"), ("variance_explained", "<f4")]
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadPosterior:
    """A fitted head with the statistics that its transfer to another model needs.

    Attributes:
        head: The most probable head.
        prior_mean: The mean of the prior of this model's users.
        variance_explained: Share of that prior's variance that labels explained, in [0, 1], shape
            (1 + classes,), float64: log temperature first, then biases. Zeros where nothing was
            labelled.
        class_tags: Hash of each emotion's name; empty where the head cannot be transferred.

    Raises:
        ModelError: Shapes that do not fit, or a share outside [0, 1].
    """

    head: CalibrationHead
    prior_mean: CalibrationHead
    variance_explained: Tensor
    class_tags: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        width = self.head.classes
        if self.prior_mean.classes != width or self.variance_explained.shape != (1 + width,):
            raise ModelError(
                f"a posterior's parts are not all for {width} classes; fit the head again"
            )
        if not bool(((self.variance_explained >= 0) & (self.variance_explained <= 1)).all()):
            raise ModelError(
                f"variance_explained is {self.variance_explained.tolist()}; each must lie in [0, 1]"
            )
        if len(self.class_tags) not in (0, width) or len(set(self.class_tags)) != len(
            self.class_tags
        ):
            raise ModelError(
                f"a posterior names {len(self.class_tags)} of {width} emotions; needed: each once"
            )


def posterior_from_head(head: CalibrationHead) -> HeadPosterior:
    """Make the posterior of a head about which nothing else is known; it cannot be transferred.

    Example:
        >>> posterior_from_head(heads.identity_head(2)).class_tags
        ()
    """
    zeros = torch.zeros(1 + head.classes, dtype=torch.float64)
    return HeadPosterior(head=head, prior_mean=head, variance_explained=zeros)


def posterior_from_fit(fit: HeadFit, prior: HeadPrior, names: Sequence[str]) -> HeadPosterior:
    """Derive the posterior of a fit, relative to the prior of its model's users.

    Args:
        fit: The fit; if it started from a transferred prior, variance explained before counts too.
        prior: The prior of this model's users, before any transfer.
        names: Emotions in the order of the classes; empty if unknown.

    Example:
        >>> from sottovoce.shared.calibration import fit_head, identity_head
        >>> prior = HeadPrior(mean=identity_head(2))
        >>> logits, labels = torch.tensor([[4.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 1])
        >>> fit = fit_head(logits, labels, prior)
        >>> posterior = posterior_from_fit(fit, prior, ["calm", "angry"])
        >>> bool((posterior.variance_explained > 0).all())
        True
    """
    head = fit.head
    explained = 1 - fit.variance * prior.precision
    # Rounding leaves tiny shares where no label bears on a parameter; they are no evidence.
    explained = torch.where(explained > _ROUNDING, explained, 0.0).clamp(max=1)
    transferable = len(names) == head.classes <= MAX_TRANSFERABLE_CLASSES
    return HeadPosterior(
        head=head,
        prior_mean=prior.mean,
        variance_explained=explained,
        class_tags=tuple(_hash_name(name) for name in names) if transferable else (),
    )


def transfer_posterior(
    posterior: HeadPosterior,
    prior: HeadPrior,
    names: Sequence[str],
    *,
    correlation: float = HEAD_CORRELATION,
) -> HeadPrior:
    """Transfer a posterior to another model: the prior from which its fit starts.

    Args:
        posterior: Posterior of a head of the other model.
        prior: The prior of this model's users.
        names: This model's emotions, in the order of its classes.
        correlation: Correlation of one user's heads under the two models, in [0, 1].

    Returns:
        ``prior`` itself if the posterior cannot be transferred or explains nothing; otherwise a
        prior that is as wide or narrower, around the user's own mean. All biases have one standard
        deviation, from their mean variance.

    Example:
        >>> from sottovoce.shared.calibration import identity_head
        >>> posterior = HeadPosterior(
        ...     head=CalibrationHead(log_temperature=0.4, bias=torch.zeros(2)),
        ...     prior_mean=identity_head(2),
        ...     variance_explained=torch.tensor([0.5, 0.0, 0.0]),
        ...     class_tags=(b"calm....", b"angry..."),
        ... )
        >>> new = transfer_posterior(posterior, HeadPrior(mean=identity_head(2)), ["sad", "happy"])
        >>> new.mean.log_temperature
        0.2
    """
    validation.require_non_negative(correlation=correlation)
    old_index = {tag: index for index, tag in enumerate(posterior.class_tags)}
    indices = [old_index.get(_hash_name(name)) for name in names]
    if (
        len(names) != prior.mean.classes
        or not posterior.class_tags
        or not bool(posterior.variance_explained.any())
    ):
        return prior
    moved = posterior.head.bias - posterior.prior_mean.bias
    shift = [0.0 if index is None else float(moved[index]) for index in indices]
    of_biases = posterior.variance_explained[1:]
    explained = [0.0 if index is None else float(of_biases[index]) for index in indices]
    warmer = posterior.head.log_temperature - posterior.prior_mean.log_temperature
    same = correlation == 1 and prior.is_compatible(posterior.head)
    mean = CalibrationHead(
        log_temperature=prior.mean.log_temperature + correlation * warmer,
        bias=prior.mean.bias + correlation * torch.tensor(shift, dtype=torch.float64),
        adapter=posterior.head.adapter if same else None,  # another model has other directions
    )
    left = 1 - correlation**2 * torch.tensor(
        [float(posterior.variance_explained[0]), *explained], dtype=torch.float64
    )
    # A variance of 0 would pin the head there for good.
    left = left.clamp(min=_MIN_VARIANCE_SHARE)
    return replace(
        prior,
        mean=mean,
        log_temperature_sd=prior.log_temperature_sd * math.sqrt(float(left[0])),
        bias_sd=prior.bias_sd * math.sqrt(float(left[1:].mean())),
    )


def to_bytes(posterior: HeadPosterior, model_hash: str) -> bytes:
    """Encode a posterior, bound to its model: at most 1,864 bytes for 64 emotions.

    Args:
        posterior: The posterior.
        model_hash: SHA-256 of the model its head was fitted for, 64 hexadecimal digits.

    Raises:
        ModelError: A hash that is none.
    """
    whole = heads.to_bytes(posterior.head, model_hash)
    header = _HEADER.pack(_MAGIC, _SCHEMA, len(whole), len(posterior.class_tags))
    if not posterior.class_tags:
        return header + whole
    each = np.zeros(len(posterior.class_tags), dtype=_CLASS_DTYPE)
    each["tag"] = [np.void(tag) for tag in posterior.class_tags]
    each["prior_mean"] = posterior.prior_mean.bias.numpy()
    each["variance_explained"] = posterior.variance_explained[1:].numpy()
    first = _TEMPERATURE_STRUCT.pack(
        posterior.prior_mean.log_temperature, float(posterior.variance_explained[0])
    )
    return header + whole + first + each.tobytes()


def from_bytes(data: bytes, model_hash: str) -> HeadPosterior:
    """Decode a posterior, or a head alone, as earlier releases stored heads.

    Raises:
        ModelError: Damaged bytes, a newer schema, or a head of another model.

    Example:
        >>> data = to_bytes(posterior_from_head(heads.identity_head(2)), "ab" * 32)
        >>> from_bytes(data, "ab" * 32).head.classes
        2
    """
    if data[:4] == _HEAD_MAGIC:
        return posterior_from_head(heads.from_bytes(data, model_hash))
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ModelError(f"{len(data)} bytes are not a stored head; fit the head again")
    _, schema, length, tags = _HEADER.unpack_from(data)
    if schema != _SCHEMA:
        raise ModelError(f"stored head schema {schema} is not {_SCHEMA}; update, or fit it again")
    whole, rest = data[_HEADER.size :][:length], data[_HEADER.size + length :]
    head = heads.from_bytes(whole, model_hash)
    # Checked before NumPy reads: the number of tags comes out of untrusted bytes.
    if len(rest) != (_TEMPERATURE_STRUCT.size + tags * _CLASS_DTYPE.itemsize if tags else 0):
        raise ModelError(f"a stored head of {tags} emotions has {len(data)} bytes; fit it again")
    if not tags:
        return posterior_from_head(head)
    log_temperature, explained = _TEMPERATURE_STRUCT.unpack_from(rest)
    each = np.frombuffer(rest, dtype=_CLASS_DTYPE, offset=_TEMPERATURE_STRUCT.size)
    return HeadPosterior(
        head=head,
        prior_mean=CalibrationHead(
            log_temperature=log_temperature, bias=torch.from_numpy(each["prior_mean"].copy())
        ),
        variance_explained=torch.tensor(
            [explained, *each["variance_explained"].tolist()], dtype=torch.float64
        ),
        class_tags=tuple(tag.tobytes() for tag in each["tag"]),
    )


def _hash_name(name: str) -> bytes:
    """Eight bytes for an emotion's name."""
    return hashlib.sha256(name.encode()).digest()[:_TAG_BYTES]
