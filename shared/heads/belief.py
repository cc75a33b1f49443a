"""What is believed of a user's head after labels were heard, and what of it another model may use.

A head is worth nothing behind another model: it undoes *that* model's faults. What it tells of the
user lasts better: how far the head lies from where users of its model usually start, and how much
of the prior's doubt the labels took away. So a head travels with both, and is mapped::

    mean     = the new prior's mean + likeness * (head - the old prior's mean)
    variance = the new prior's variance * (1 - likeness^2 * told)

These are mean and variance of a Gaussian whose correlation with the old one is ``likeness``. The
result is only where a fit for the new model starts: with likeness 1 (the same model) it goes on
where the labels ended, with 0, or where nothing was told, it is the new prior. Emotions are found
again by their names; one that the old model did not know starts as the new prior has it.
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

from sottovoce.shared import check
from sottovoce.shared.errors import ModelError
from sottovoce.shared.heads import head as heads
from sottovoce.shared.heads.fitting import Fit
from sottovoce.shared.heads.head import Head
from sottovoce.shared.heads.prior import HeadPrior

LIKENESS: Final = 0.5
"""Of one user's heads under two models. On RAVDESS their temperatures correlate by 0.74 and their
biases by 0.56, between an open network and a private linear model (``docs/recipes.md``)."""

MOST_MAPPED: Final = 64
"""A head of more emotions travels alone: what mapping needs would not fit its sealed length."""

_LEAST: Final = 1e-6
_ROUNDING: Final = 1e-9
_MAGIC: Final = b"SVBF"
_ALONE: Final = b"SVHD"
_SCHEMA: Final = 1
_HEADER: Final = struct.Struct("<4sBHH")
_FIRST: Final = struct.Struct("<dd")
_TAG: Final = 8
_EACH: Final = np.dtype([("tag", f"V{_TAG}"), ("usual", "<f8"), ("told", "<f4")])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Belief:
    """A fitted head, and what mapping it needs.

    Attributes:
        head: The most probable head.
        usual: The mean of the prior of this model's users.
        told: Share of that prior's variance that labels took away, in [0, 1], shape (1 + classes,),
            float64: log temperature first, then biases. Zeros where nothing was labelled.
        tags: What each emotion's name hashes to; empty where the head cannot be mapped.

    Raises:
        ModelError: Shapes that do not fit, or a share outside [0, 1].
    """

    head: Head
    usual: Head
    told: Tensor
    tags: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        width = self.head.classes
        if self.usual.classes != width or self.told.shape != (1 + width,):
            raise ModelError(
                f"a belief's parts are not all for {width} classes; fit the head again"
            )
        if not bool(((self.told >= 0) & (self.told <= 1)).all()):
            raise ModelError(f"told is {self.told.tolist()}; each must lie in [0, 1]")
        if len(self.tags) not in (0, width) or len(set(self.tags)) != len(self.tags):
            raise ModelError(f"a belief names {len(self.tags)} of {width} emotions, each once")


def alone(head: Head) -> Belief:
    """A head that nothing else is known of; it cannot be mapped."""
    zeros = torch.zeros(1 + head.classes, dtype=torch.float64)
    return Belief(head=head, usual=head, told=zeros)


def learned(found: Fit, prior: HeadPrior, names: Sequence[str]) -> Belief:
    """What labels told beside the head itself.

    Args:
        found: The fit; where it started from another prior, what was mapped counts as told.
        prior: Where users of this model start.
        names: The emotions, in the order of the classes; none where they are not known.
    """
    head = found.head
    told = 1 - found.variance * prior.precision
    told = torch.where(told > _ROUNDING, told, 0.0).clamp(max=1)
    mapped = len(names) == head.classes <= MOST_MAPPED
    return Belief(
        head=head,
        usual=prior.mean,
        told=told,
        tags=tuple(_tag(name) for name in names) if mapped else (),
    )


def mapped(
    belief: Belief, prior: HeadPrior, names: Sequence[str], *, likeness: float = LIKENESS
) -> HeadPrior:
    """Where a fit for another model starts.

    Args:
        belief: Of a head of the other model.
        prior: Where users of this model start.
        names: This model's emotions, in the order of its classes.
        likeness: Correlation of one user's heads under the two models, in [0, 1].

    Returns:
        The prior itself where the belief cannot be mapped or told nothing; else one that is as wide
        or narrower, with the user's own mean. Biases share one width, that of their mean variance.
    """
    check.not_negative(likeness=likeness)
    places = {tag: place for place, tag in enumerate(belief.tags)}
    found = [places.get(_tag(name)) for name in names]
    if len(names) != prior.mean.classes or not belief.tags or not bool(belief.told.any()):
        return prior
    moved = belief.head.bias - belief.usual.bias
    shift = [0.0 if place is None else float(moved[place]) for place in found]
    told = [0.0 if place is None else float(belief.told[1 + place]) for place in found]
    warmer = belief.head.log_temperature - belief.usual.log_temperature
    same = likeness == 1 and prior.knows(belief.head)
    mean = Head(
        log_temperature=prior.mean.log_temperature + likeness * warmer,
        bias=prior.mean.bias + likeness * torch.tensor(shift, dtype=torch.float64),
        adapter=belief.head.adapter if same else None,  # another model has other directions
    )
    left = 1 - likeness**2 * torch.tensor([float(belief.told[0]), *told], dtype=torch.float64)
    left = left.clamp(min=_LEAST)
    return replace(
        prior,
        mean=mean,
        log_temperature_sd=prior.log_temperature_sd * math.sqrt(float(left[0])),
        bias_sd=prior.bias_sd * math.sqrt(float(left[1:].mean())),
    )


def to_bytes(belief: Belief, model_hash: str) -> bytes:
    """A belief as bytes, bound to its model: at most 1,864 for 64 emotions, which can be mapped.

    Args:
        belief: The belief.
        model_hash: SHA-256 of the model its head was fitted for, 64 hexadecimal digits.

    Raises:
        ModelError: A hash that is none.
    """
    whole = heads.to_bytes(belief.head, model_hash)
    header = _HEADER.pack(_MAGIC, _SCHEMA, len(whole), len(belief.tags))
    if not belief.tags:
        return header + whole
    each = np.zeros(len(belief.tags), dtype=_EACH)
    each["tag"] = [np.void(tag) for tag in belief.tags]
    each["usual"] = belief.usual.bias.numpy()
    each["told"] = belief.told[1:].numpy()
    first = _FIRST.pack(belief.usual.log_temperature, float(belief.told[0]))
    return header + whole + first + each.tobytes()


def from_bytes(data: bytes, model_hash: str) -> Belief:
    """The belief that :func:`to_bytes` wrote, or a head alone, as earlier releases kept it.

    Raises:
        ModelError: Damaged bytes, a newer schema, or a head of another model.
    """
    if data[:4] == _ALONE:
        return alone(heads.from_bytes(data, model_hash))
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ModelError(f"{len(data)} bytes are not a kept head; fit the head again")
    _, schema, length, tags = _HEADER.unpack_from(data)
    if schema != _SCHEMA:
        raise ModelError(f"kept head schema {schema} is not {_SCHEMA}; update, or fit it again")
    whole, rest = data[_HEADER.size :][:length], data[_HEADER.size + length :]
    head = heads.from_bytes(whole, model_hash)
    if len(rest) != (_FIRST.size + tags * _EACH.itemsize if tags else 0):
        raise ModelError(f"a kept head of {tags} emotions has {len(data)} bytes; fit it again")
    if not tags:
        return alone(head)
    usual, told = _FIRST.unpack_from(rest)
    each = np.frombuffer(rest, dtype=_EACH, offset=_FIRST.size)
    return Belief(
        head=head,
        usual=Head(log_temperature=usual, bias=torch.from_numpy(each["usual"].copy())),
        told=torch.tensor([told, *each["told"].tolist()], dtype=torch.float64),
        tags=tuple(tag.tobytes() for tag in each["tag"]),
    )


def _tag(name: str) -> bytes:
    """Eight bytes for an emotion's name."""
    return hashlib.sha256(name.encode()).digest()[:_TAG]
