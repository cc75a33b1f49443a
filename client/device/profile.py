"""The decisions of a device's owner, and the owner's recordings as features."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

import torch
from torch import Tensor

from sottovoce.client.device.intended_use import IntendedUse, IntendedUseRecord
from sottovoce.client.device.vault import write_file
from sottovoce.shared import codec, validation
from sottovoce.shared.bounded_files import read_bounded_file
from sottovoce.shared.codec import Name
from sottovoce.shared.errors import LedgerError, PrivacyError, SettingError
from sottovoce.shared.features.version import FEATURE_VERSION
from sottovoce.shared.identity import find_name, tidy_name
from sottovoce.shared.models.examples import Examples, concatenate_examples
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import PrivacyUnit

PROFILE_FILE: Final = "device.json"
"""The profile's file in a device's folder."""

_SCHEMA: Final = 2
_MAX_PROFILE_BYTES: Final = 1 << 20
_FLOORS: Final = ("min_cohort", "min_dishonest_share")

MAX_ENROLMENTS: Final = 10**6
"""Largest number of an enrolment."""

UNKNOWN_LABEL: Final = -1
"""Label of a clip that its user has not labelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceProfile:
    """Decisions of a device's owner.

    Attributes:
        user: The user's pseudonym.
        budgets: What the device may spend in its life, one for each unit that is promised anything;
            none at all allows unprotected releases.
        contributes: Whether the device takes part in training; if not, it only receives models.
        withdrawn: Whether the owner has withdrawn consent: nothing is trained or sent then.
        enrolment: Number of the owner's enrolment, from 1; each consent after a withdrawal begins
            the next one.
        neutral_enrolment: Whether the clips that enrol the user are known to be neutral.
        labels: Names of the labels that the clips carry.
        simulated_seed: Seed of a simulated device, whose noise can be repeated and protects
            nobody; None on a real one.
        min_cohort: Fewest devices that a secure sum may be made of, at least 3. A plan whose quorum
            is smaller is refused: who hides among how many is the owner's decision, not the
            server's.
        min_dishonest_share: Least share of a secure sum's devices, in [0, 1), that the plan must
            take to side with the server, and whose noise it does not count.
        intended_use: What the device is for. With a declaration, everything waits for the user's
            consent (see ``consent``); None on simulated devices and those of earlier releases.
    """

    user: str
    budgets: tuple[PrivacyBudget, ...]
    contributes: bool = True
    withdrawn: bool = False
    enrolment: int = 1
    neutral_enrolment: bool = False
    labels: tuple[str, ...]
    simulated_seed: int | None = None
    min_cohort: int = 10
    min_dishonest_share: float = 0.1
    intended_use: IntendedUse | None = None

    def __post_init__(self) -> None:
        validation.require_whole_number(min_cohort=self.min_cohort)
        validation.require_at_least(3, min_cohort=self.min_cohort)
        validation.require_fraction(min_dishonest_share=self.min_dishonest_share)
        validation.require_count(1, MAX_ENROLMENTS, enrolment=self.enrolment)

    def with_tidy_user(self) -> "DeviceProfile":
        r"""Write the user's name in one form, so that no two spellings of it are two users.

        Raises:
            SettingError: A name without a visible character.

        Example:
            >>> DeviceProfile(user=" Jose\u0301", budgets=(), labels=()).with_tidy_user().user
            'José'
        """
        user = tidy_name(self.user)
        if not user:
            raise SettingError("the user's name is empty; give the device a pseudonym")
        return replace(self, user=user)

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON object, for ``device.json``; without a declared use as ever."""
        use = {"intended_use": self.intended_use.to_dict()} if self.intended_use else {}
        # Said where it is not the default, so that other versions read the devices of most owners.
        consent: dict[str, Any] = {"withdrawn": True} if self.withdrawn else {}
        consent |= {} if self.enrolment == 1 else {"enrolment": self.enrolment}
        return {
            "user": self.user,
            "budgets": [budget.to_dict() for budget in self.budgets],
            "contributes": self.contributes,
            **consent,
            "neutral_enrolment": self.neutral_enrolment,
            "labels": list(self.labels),
            "simulated_seed": self.simulated_seed,
            "min_cohort": self.min_cohort,
            "min_dishonest_share": self.min_dishonest_share,
            **use,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, name: str) -> "DeviceProfile":
        """Read what :meth:`to_dict` gave.

        Args:
            content: The values, as a JSON reader gives them.
            name: What to call them in messages.

        Raises:
            PrivacyError: A value of another type, a budget or a floor that cannot be, or a key that
                is unknown: ignored, a misspelt decision of the owner would not be followed.
        """
        unknown = sorted(set(content) - set(_ProfileRecord.__annotations__))
        if unknown:
            known = ", ".join(sorted(_ProfileRecord.__annotations__))
            raise PrivacyError(
                f"{name} is damaged: {', '.join(unknown[:3])} is unknown; its keys are {known}"
            )
        record = codec.convert_record(content, _ProfileRecord, name=name, error=PrivacyError)
        floors: dict[str, Any] = {key: record[key] for key in _FLOORS if key in record}
        use = record.get("intended_use")
        try:
            return cls(
                user=record["user"],
                budgets=_read_budgets(record),
                contributes=record.get("contributes", True),
                withdrawn=record.get("withdrawn", False),
                enrolment=record.get("enrolment", 1),
                neutral_enrolment=record.get("neutral_enrolment", False),
                labels=record["labels"],
                simulated_seed=record.get("simulated_seed"),
                intended_use=IntendedUse.from_dict(use) if use else None,
                **floors,
            )
        except SettingError as error:
            raise PrivacyError(f"{name} is damaged: {error}") from error


class _BudgetRecord(TypedDict):
    epsilon: float
    delta: float
    unit: NotRequired[PrivacyUnit]
    per_run: NotRequired[float | None]
    renyi_order: NotRequired[float | None]


class _ProfileRecord(TypedDict):
    user: Name
    labels: tuple[Name, ...]
    contributes: NotRequired[bool]
    withdrawn: NotRequired[bool]
    enrolment: NotRequired[int]
    neutral_enrolment: NotRequired[bool]
    simulated_seed: NotRequired[int | None]
    min_cohort: NotRequired[int]
    min_dishonest_share: NotRequired[float]
    intended_use: NotRequired[IntendedUseRecord]
    budgets: NotRequired[list[_BudgetRecord]]
    # The first devices had one, for utterances, or null.
    budget: NotRequired[_BudgetRecord | None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelledFeatures:
    """Features of the device's own recordings, and what each is used for.

    Attributes:
        examples: Features, frames and labels; a label of -1 is unknown.
        for_enrolment: Which clips the user's normaliser is learned from, shape (utterances,), bool.
        for_head: Which labelled clips the user's head is fitted on, shape (utterances,), bool.
        for_training: Which labelled clips training uses, shape (utterances,), bool.
        neutral: Which clips are known to be neutral speech, shape (utterances,), bool; None where
            that is not known of each.
        extractor: What computed the features; "" where that is not known.
        feature_version: Version of the features.
    """

    examples: Examples
    for_enrolment: Tensor
    for_head: Tensor
    for_training: Tensor
    neutral: Tensor | None = None
    extractor: str = ""
    feature_version: int = FEATURE_VERSION

    @classmethod
    def without_recordings(cls, *, width: int) -> "LabelledFeatures":
        """Make the features of a user who has recorded nothing yet.

        Args:
            width: How many features the model's extractor gives for an utterance, at least 1.

        Returns:
            No utterances, of that width.

        Example:
            >>> len(LabelledFeatures.without_recordings(width=2304).examples)
            0
        """
        none = torch.zeros(0, dtype=torch.bool)
        numbers = torch.zeros(0, dtype=torch.int64)
        examples = Examples(features=torch.zeros(0, width), frames=numbers, labels=numbers)
        return cls(examples=examples, for_enrolment=none, for_head=none, for_training=none)

    @property
    def has_neutral_enrolment(self) -> bool:
        """Whether each of the clips that enrol the user is known to be neutral; one at least."""
        if self.neutral is None or not bool(self.for_enrolment.any()):
            return False
        return bool(self.neutral[self.for_enrolment].all())

    def select(self, index: Tensor) -> "LabelledFeatures":
        """Select some of the clips.

        Args:
            index: Shape (utterances,), bool.
        """
        return replace(
            self,
            examples=self.examples.select(index),
            for_enrolment=self.for_enrolment[index],
            for_head=self.for_head[index],
            for_training=self.for_training[index],
            neutral=None if self.neutral is None else self.neutral[index],
        )

    def restrict(self, index: Tensor) -> "LabelledFeatures":
        """Let only some clips train and fit the head; all go on to enrol the user.

        Args:
            index: Shape (utterances,), bool.
        """
        return replace(self, for_head=self.for_head & index, for_training=self.for_training & index)

    def fits(self, extractor: str, width: int) -> bool:
        """Whether a model that reads an extractor's features can read the clips.

        Args:
            extractor: Its name.
            width: How many features it gives.
        """
        same = self.extractor in ("", extractor) and self.feature_version == FEATURE_VERSION
        return same and self.examples.features.shape[-1] == width

    def extend(self, more: "LabelledFeatures") -> "LabelledFeatures":
        """Add more clips behind those that there are.

        Args:
            more: Of the same extractor; where there are no clips yet, of any.

        Raises:
            SettingError: Clips of another extractor.
        """
        if not len(self.examples):
            return more
        if not self.fits(more.extractor, more.examples.features.shape[-1]):
            raise SettingError(
                f"the device's clips are features of {self.extractor or 'an unknown extractor'}, "
                f"{self.examples.features.shape[-1]} wide, and these are of {more.extractor}, "
                f"{more.examples.features.shape[-1]} wide; enrol with one extractor, or forget the "
                "old clips first"
            )
        return LabelledFeatures(
            examples=concatenate_examples([self.examples, more.examples]),
            for_enrolment=torch.cat([self.for_enrolment, more.for_enrolment]),
            for_head=torch.cat([self.for_head, more.for_head]),
            for_training=torch.cat([self.for_training, more.for_training]),
            neutral=torch.cat([_neutral_mask(self), _neutral_mask(more)]),
            extractor=more.extractor,
        )

    def choose_enrolment(self) -> "LabelledFeatures":
        """Choose the clips that enrol the user: those known to be neutral, or else all.

        The mean of known neutral speech is the better one, and other clips would blur it.
        """
        if self.neutral is None:
            return self
        if bool(self.neutral.any()):
            return replace(self, for_enrolment=self.neutral)
        # The last neutral clip was forgotten.
        none_left = not bool(self.for_enrolment.any())
        return replace(self, for_enrolment=~self.neutral) if none_left else self

    def with_label_order(
        self, own_labels: Sequence[str], labels: Sequence[str]
    ) -> "LabelledFeatures":
        """Renumber the labels in another order; ``UNKNOWN_LABEL`` where that has no such label.

        Args:
            own_labels: Names of the labels that the clips carry.
            labels: The others', in their order.
        """
        found = [find_name(name, labels) for name in own_labels]
        order = [UNKNOWN_LABEL if name is None else labels.index(name) for name in found]
        # Index -1 reads the last entry, so that an unlabelled clip stays unlabelled.
        numbers = torch.tensor([*order, UNKNOWN_LABEL])[self.examples.labels]  # unknown is the last
        examples = replace(self.examples, labels=numbers)
        if examples.votes is not None:
            examples = replace(examples, votes=_reorder_votes(examples.votes, order, len(labels)))
        return replace(self, examples=examples)

    def to_tensors(self) -> dict[str, Tensor]:
        """Convert to named tensors; half precision is plenty for log-mel and halves the disk."""
        features = self.examples.features
        more = {} if self.neutral is None else {"neutral": self.neutral}
        if self.examples.votes is not None:
            more["votes"] = self.examples.votes
        if self.extractor:
            words = f"{self.feature_version} {self.extractor}".encode()
            more["extractor"] = torch.frombuffer(bytearray(words), dtype=torch.uint8)
        return {
            "features": features.half() if features.dim() == 3 else features,
            "frames": self.examples.frames,
            "labels": self.examples.labels,
            "enrols": self.for_enrolment,
            "calibrates": self.for_head,
            "trains": self.for_training,
            **more,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "LabelledFeatures":
        """Read what :meth:`to_tensors` gave."""
        words = bytes(tensors["extractor"].tolist()).decode() if "extractor" in tensors else ""
        version, _, extractor = words.partition(" ")
        examples = Examples(
            features=tensors["features"].float(),
            frames=tensors["frames"],
            labels=tensors["labels"],
            votes=tensors.get("votes"),
        )
        return cls(
            examples=examples,
            for_enrolment=tensors["enrols"],
            for_head=tensors["calibrates"],
            for_training=tensors["trains"],
            neutral=tensors.get("neutral"),
            extractor=extractor,
            feature_version=int(version or FEATURE_VERSION),
        )


def _reorder_votes(votes: Tensor, order: Sequence[int], classes: int) -> Tensor:
    """Shares of the votes in another order of the classes, less those for what it does not have."""
    kept = torch.zeros(len(votes), classes)
    for ours, theirs in enumerate(order):
        if theirs != UNKNOWN_LABEL:
            kept[:, theirs] += votes[:, ours]
    return kept


def _neutral_mask(clips: LabelledFeatures) -> Tensor:
    """Mask of the clips that are known to be neutral, shape (utterances,), bool."""
    if clips.neutral is None:
        return torch.zeros(len(clips.examples), dtype=torch.bool)
    return clips.neutral


def _read_budgets(record: _ProfileRecord) -> tuple[PrivacyBudget, ...]:
    """Budgets of a record; one that names none at all is damaged, for none lets everything pass."""
    if "budget" in record:
        budget = record["budget"]
        return (PrivacyBudget(**budget),) if budget else ()
    if "budgets" not in record:
        raise PrivacyError("device.json is damaged: it names no budgets; restore it from a backup")
    return tuple(PrivacyBudget(**budget) for budget in record["budgets"])


def write_profile(path: Path, profile: DeviceProfile) -> None:
    """Write the owner's decisions to ``device.json``.

    Raises:
        PrivacyError: The disk refuses.
    """
    record = {"schema": _SCHEMA, **profile.to_dict()}
    write_file(path, (json.dumps(record, indent=1) + "\n").encode())


def read_profile(path: Path) -> DeviceProfile:
    """Read the owner's decisions from ``device.json``.

    Raises:
        SettingError: There is no device.
        PrivacyError: Its record is damaged, or of another release.
    """
    name, way_out = str(path), "restore it from a backup"
    try:
        data = read_bounded_file(path, max_bytes=_MAX_PROFILE_BYTES, error=PrivacyError)
        record = codec.decode_json(data, dict[str, Any], name=name, error=PrivacyError)
        if (schema := record.pop("schema", None)) != _SCHEMA:
            raise PrivacyError(
                f"{path} has schema {schema!r:.20}, this version reads {_SCHEMA}; update the app, "
                "or make the device anew"
            )
        return DeviceProfile.from_dict(record, name=name)
    except FileNotFoundError:
        raise SettingError(
            f"{path.parent} holds no device; make one by `sottovoce device create`"
        ) from None
    except LedgerError as error:  # a budget that cannot be
        raise PrivacyError(f"{path} is damaged ({error}); {way_out}") from error
    except PrivacyError as error:
        raise PrivacyError(f"{error}; {way_out}") from error
