"""The plan of a training run: the public facts on which server and devices agree.

Sampler, clip, noise and ledger record all come from the plan, so they cannot disagree: a device
books ``plan.gradient_release(round)`` and trains with ``plan.mechanism``, which are one setting.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from sottovoce.shared import codec, validation
from sottovoce.shared.calibration.head_statistics import CalibrationRelease
from sottovoce.shared.errors import MessageError, SettingError, SottovoceError
from sottovoce.shared.identity import identity_key
from sottovoce.shared.models.losses import CROSS_ENTROPY
from sottovoce.shared.models.parameters import hash_model
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.privacy.participation import Participation
from sottovoce.shared.privacy.release import Release
from sottovoce.shared.privacy.scheme import PrivacyScheme
from sottovoce.shared.privacy.schemes import scheme_of
from sottovoce.shared.privacy.user_level import SecureSumConfigs, UserLevelPrivacy
from sottovoce.shared.protocol.local_training import (
    NO_CURRICULUM,
    ExampleLevelMechanism,
    GradientMechanism,
    LocalTraining,
    NoPrivacy,
)
from sottovoce.shared.speaker.normalisation import (
    EXACT_CENTRE,
    EXACT_MEAN,
    CentreRelease,
    NormaliserRelease,
)

SCHEMA = 4

_MAX_ROUNDS, _MAX_STEPS, _MAX_NAME_LENGTH = 1_000_000, 10_000, 5_000
"""Bounds on a plan that comes from a server."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of a run that all its devices follow.

    Attributes:
        run: Name of the run, part of every release's name.
        labels: Emotions in the order of the model's classes.
        extractor: Name of the feature extractor.
        projection_hash: SHA-256 of the public projection.
        model: The shared model.
        rounds: Rounds of training, at least 1.
        training: Local training of one round.
        mechanism: Clip and noise of an utterance's gradient, or no privacy.
        centre: The noised sum for this population's centre; None takes the public corpora's
            centre.
        normaliser: The noised mean of the user that training uses; None trains with the centre
            alone, as for users who will enrol with little or nothing.
        count_noise: Standard deviation of the noise on the label histogram (sensitivity 1); 0 for
            no privacy of utterances.
        user: What hides a whole user in every sum over users; None where nothing does.
        calibration: Statistics for heads and prediction sets after the last round; None asks none.
        secure_sums: How every sum is made where the noise that hides an utterance is added in
            shares; None elsewhere. Secure sums that hide a user are in ``user``.
        unit: Name of the privacy scheme where noise alone does not tell it; empty for the units
            that are built in.
    """

    run: str
    labels: tuple[str, ...]
    extractor: str
    projection_hash: str
    model: ModelSpec
    rounds: int
    training: LocalTraining
    mechanism: GradientMechanism
    centre: CentreRelease | None
    normaliser: NormaliserRelease | None
    count_noise: float
    user: UserLevelPrivacy | None = None
    calibration: CalibrationRelease | None = None
    secure_sums: SecureSumConfigs | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        validation.require_at_least(1, rounds=self.rounds)
        validation.require_non_negative(count_noise=self.count_noise)
        distinct = {identity_key(label) for label in self.labels}
        if not len(self.labels) == len(distinct) == self.model.classes:
            raise SettingError(
                f"labels {self.labels} do not name the model's {self.model.classes} classes, "
                "each once"
            )
        self.training.loss.require_coordinates(self.model.classes)
        noises = [self.mechanism.noise_multiplier, self.count_noise]
        parts = (self.centre, self.normaliser, self.calibration)
        noises += [part.noise_multiplier for part in parts if part]
        if len({noise > 0 for noise in noises}) != 1:
            raise SettingError(
                "a plan noises all of its releases or none: an epsilon that covers only some of "
                "gradients, centre, normaliser, label counts and head statistics would promise "
                "nothing"
            )
        self.scheme.check_plan(self)

    @cached_property
    def scheme(self) -> PrivacyScheme:
        """Privacy scheme of the plan: its bounds, noise, records, limits and sentences."""
        return scheme_of(self)

    @property
    def participation(self) -> Participation:
        """Which rounds a user takes part in."""
        return self.scheme.participation(self)

    @property
    def initial_clip_norm(self) -> float:
        """The first round's clip norm on a user's update, where it is learned; else 1."""
        return self.scheme.initial_clip_norm(self)

    @property
    def extra_coordinates(self) -> int:
        """How many numbers a device sends beside its update."""
        return self.scheme.extra_coordinates(self)

    def progress(self, number: int) -> float:
        """Which part of the rounds is over in one of them, from 0 in the first to 1 in the last."""
        return (number - 1) / (self.rounds - 1) if self.rounds > 1 else 1.0

    def normaliser_release(self) -> Release | None:
        """The ledger's record of the training normaliser; None where there is none to book.

        Where only users are hidden, it never leaves but inside updates that are bounded as a whole.
        """
        return self.scheme.normaliser_release(self)

    def centre_release(self) -> Release | None:
        """The ledger's record of the device's share of the centre; None where none is sent."""
        return self.scheme.centre_release(self)

    def calibration_release(self) -> Release | None:
        """The ledger's record of the head statistics; None where none are asked for."""
        return self.scheme.calibration_release(self)

    def counts_release(self) -> Release:
        """The ledger's record of the label histogram."""
        return self.scheme.counts_release(self)

    def gradient_release(self, number: int) -> Release:
        """The ledger's record of one round's update; rounds count from 1."""
        return self.scheme.gradient_release(self, number)

    def all_releases(self) -> Iterator[Release]:
        """Everything a device releases in its part of the run; no device releases more."""
        once = (self.centre_release(), self.normaliser_release(), self.calibration_release())
        yield from (release for release in once if release)
        yield self.counts_release()
        yield from self.scheme.round_releases(self)

    def all_rounds_release(self) -> Release | None:
        """The ledger's record of all rounds where each device draws whether it joins a round.

        It pays for every round at once, those that it will not join included: whoever does not see
        the draws must take it to be in any. None where everybody joins every round.
        """
        return self.scheme.all_rounds_release(self)

    def to_json(self) -> str:
        """Encode the plan as JSON, for messages and checkpoints."""
        record = asdict(self) | {"user": self.user.to_dict() if self.user else None}
        if self.training.loss == CROSS_ENTROPY:  # plans from before there were others keep theirs
            del record["training"]["loss"]
        else:
            record["training"]["loss"] = self.training.loss.to_dict()
        if self.training.targets == "majority":  # likewise
            del record["training"]["targets"]
        if self.training.curriculum == NO_CURRICULUM:
            del record["training"]["curriculum"]
        if not self.unit:  # plans of the units that are built in travel as they always did
            del record["unit"]
        if self.secure_sums is None:  # likewise
            del record["secure_sums"]
        else:
            record["secure_sums"] = self.secure_sums.to_dict()
        if not math.isfinite(self.mechanism.clip_norm):  # infinities are not JSON
            record |= {name: bool(getattr(self, name)) for name in ("centre", "normaliser")}
            record["mechanism"] = None
        # Sorted, for the hash of this text is what server and devices agree on.
        return json.dumps({"schema": SCHEMA} | record, sort_keys=True, allow_nan=False)

    def content_hash(self) -> str:
        """SHA-256 of the plan."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        """Computed once: every message asks for it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def hash_model(self, weights: Tensor) -> str:
        """SHA-256 of a model of this plan: of the plan, which names the projection, and weights."""
        return hash_model(weights, self)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan from its JSON text.

        Raises:
            MessageError: Not a plan, or one of another schema.
        """
        try:
            record = codec.decode_json(text, dict[str, Any], name="the plan")
            schema = record.pop("schema")
            if schema != SCHEMA:
                raise MessageError(
                    f"the plan has schema {schema}; this version reads {SCHEMA}: update the older "
                    "of server and device, or prepare the job again"
                )
            plan = cls(**_settings(record))
            _require_bounded(plan)
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise MessageError(f"the plan cannot be read: {error}") from error
        # Already in words for the peer; a SottovoceError below is a setting's, and gets them.
        except MessageError:
            raise
        except SottovoceError as error:
            raise MessageError(f"the plan makes no sense: {error}") from error
        return plan


def _require_bounded(plan: Plan) -> None:
    """Refuse what would occupy a device for ever: a server chooses these numbers."""
    limits = {
        "rounds": (plan.rounds, _MAX_ROUNDS),
        "steps": (plan.training.steps, _MAX_STEPS),
        "length of a name": (
            max(len(str(text)) for text in (plan.run, plan.extractor, *plan.labels)),
            _MAX_NAME_LENGTH,
        ),
    }
    for name, (value, limit) in limits.items():
        if value > limit:
            raise MessageError(f"the plan's {name} is {value}; at most {limit}")


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild the nested settings."""
    mechanism = record["mechanism"]
    if mechanism is None:
        centre = EXACT_CENTRE if record["centre"] else None
        normaliser = EXACT_MEAN if record["normaliser"] else None
    else:
        centre = CentreRelease(**record["centre"]) if record["centre"] else None
        normaliser = NormaliserRelease(**record["normaliser"]) if record["normaliser"] else None
    calibration, secure_sums = record["calibration"], record.get("secure_sums")
    return dict(record) | {
        "labels": tuple(record["labels"]),
        "model": ModelSpec.from_dict(record["model"]),
        "training": LocalTraining.from_dict(record["training"]),
        "mechanism": ExampleLevelMechanism(**mechanism) if mechanism else NoPrivacy(),
        "centre": centre,
        "normaliser": normaliser,
        "user": UserLevelPrivacy.from_dict(record["user"]) if record["user"] else None,
        "calibration": CalibrationRelease(**calibration) if calibration else None,
        "secure_sums": None if secure_sums is None else SecureSumConfigs.from_dict(secure_sums),
    }
