"""Posterior of a user's calibration head, and its transfer to another model.

A head is of no use behind another model: it undoes *that* model's faults. What it says of the user
lasts better: how far the head lies from the prior's mean of its model, and how much of the prior's
variance the labels explained. So a head travels with both, and is transferred::

    mean     = the new prior's mean + correlation * (head - the old prior's mean)
    variance = the new prior's variance * (1 - correlation^2 * variance_explained)

These are mean and variance of a Gaussian whose correlation with the old one is ``correlation``. The
result is only where a fit for the new model starts: with correlation 1 (the same model) it goes on
where the labels ended, with 0, or where no variance was explained, it is the new prior. Emotions
are matched by their names; one that the old model did not know starts as the new prior has it.
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
"""A head of more emotions travels alone: what a transfer needs would not fit its sealed length."""

_MIN_VARIANCE_SHARE: Final = 1e-6
_ROUNDING: Final = 1e-9
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
    """A fitted head, and what its transfer to another model needs.

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
    """The posterior of a head of which nothing else is known; it cannot be transferred."""
    zeros = torch.zeros(1 + head.classes, dtype=torch.float64)
    return HeadPosterior(head=head, prior_mean=head, variance_explained=zeros)


def posterior_from_fit(fit: HeadFit, prior: HeadPrior, names: Sequence[str]) -> HeadPosterior:
    """The posterior that a fit found, relative to the prior of its model's users.

    Args:
        fit: The fit; where it started from a transferred prior, what that explained counts too.
        prior: Where users of this model start.
        names: The emotions, in the order of the classes; none where they are not known.
    """
    head = fit.head
    explained = 1 - fit.variance * prior.precision
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
    """Transfer a posterior: the prior from which a fit for another model starts.

    Args:
        posterior: Of a head of the other model.
        prior: Where users of this model start.
        names: This model's emotions, in the order of its classes.
        correlation: Correlation of one user's heads under the two models, in [0, 1].

    Returns:
        The prior itself where the posterior cannot be transferred or explains nothing; else one
        that is as wide or narrower, with the user's own mean. Biases share one width, that of their
        mean variance.
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
    left = left.clamp(min=_MIN_VARIANCE_SHARE)
    return replace(
        prior,
        mean=mean,
        log_temperature_sd=prior.log_temperature_sd * math.sqrt(float(left[0])),
        bias_sd=prior.bias_sd * math.sqrt(float(left[1:].mean())),
    )


def to_bytes(posterior: HeadPosterior, model_hash: str) -> bytes:
    """A posterior as bytes, bound to its model: at most 1,864 for 64 emotions.

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
    """The posterior that :func:`to_bytes` wrote, or a head alone, as earlier releases stored it.

    Raises:
        ModelError: Damaged bytes, a newer schema, or a head of another model.
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
